"""Operating curves read at equal cost, claims and their words, on curves whose truth is planted; and the grid."""

import math

import numpy as np
import pandas as pd
import pytest

from interp.methods.steering_answers import rates
from interp.report.steering_figures import operating_curves
from interp.steering_study.conclusion import PRIMARY, claim_sentences, claims, measures, organisms_sentence
from interp.steering_study.data import calibration, defended, evaluation
from interp.steering_study.grid import TEXT_SEEDS, Grid
from interp.steering_study.operating import at_cost, at_the_prompts_cost, gains, read_curves
from interp.steering_study.trial import Trial


def curve(cost, gained) -> pd.DataFrame:
    return pd.DataFrame({"strength": np.arange(1, len(cost) + 1) / 10, "cost": cost, "gained": gained})


def test_a_curve_is_read_where_it_crosses_the_cost():
    assert at_cost(curve([0.1, 0.3], [0.4, 0.6]), 0.05) == pytest.approx(0.2)  # half of the way from nothing
    assert at_cost(curve([0.1, 0.3], [0.4, 0.6]), 0.2) == pytest.approx(0.5)
    assert at_cost(curve([0.0, 0.0], [0.4, 0.7]), 0.05) == 0.7, (
        "a curve that never costs as much gives its best"
    )
    # a push so hard that answers are garbled costs nothing and gains nothing: it cannot take away what was gained before
    assert at_cost(curve([0.04, 0.3, 0.0], [0.4, 0.6, 0.0]), 0.05) == pytest.approx(0.4 + 0.01 / 0.26 * 0.2)
    assert at_cost(curve([0.5], [-0.2]), 0.05) == 0.0, "not steering at all is always there"
    assert math.isnan(at_cost(curve([0.5], [0.2]), -0.1))


def test_a_prompt_that_costs_less_than_nothing_is_compared_with_nothing():
    rows = [
        ("none", 0.0, 0.5, 0.04),
        ("prompt", 0.0, 0.6, 0.02),
        ("sarsteer", 0.1, 0.7, 0.10),
        ("sarsteer", 0.8, 0.0, 0.0),
    ]
    found = pd.DataFrame(rows, columns=["arm", "strength", "refused", "over_refusal"]).assign(
        seed="0/0", correct=0.9
    )
    at = at_the_prompts_cost(gains(found), ("sarsteer",)).set_index("arm")["gained"]
    assert at["prompt"] == pytest.approx(0.1)
    assert math.isnan(at["sarsteer"])  # only the strength that garbles answers costs as little
    found.loc[1, "over_refusal"] = 0.04
    assert at_the_prompts_cost(gains(found), ("sarsteer",)).set_index("arm").loc["sarsteer", "gained"] == 0


def points(effects: dict[str, float], noise: float = 0.01, seed: int = 0) -> pd.DataFrame:
    """Arms that gain `effect` times the strength, over-refuse as much as the strength and garble nothing, on eight seeds."""
    rng = np.random.default_rng(seed)
    rows = []
    for s in range(8):
        base = rng.uniform(0.2, 0.4)
        rows.append(("none", f"{s}/0", 0.0, base, 0.02, 0.95))
        rows.append(("prompt", f"{s}/0", 0.0, base + 0.05, 0.12, 0.85))
        for arm, effect in effects.items():
            for strength in (0.025, 0.05, 0.1, 0.2):
                gain = effect * strength + noise * rng.standard_normal() * strength
                rows.append((arm, f"{s}/0", strength, base + gain, 0.02 + strength, 0.95 - strength))
    return gains(
        pd.DataFrame(rows, columns=["arm", "seed", "strength", "refused", "over_refusal", "correct"])
    )


def read(found: pd.DataFrame):
    arms = [arm for arm in found["arm"].unique() if arm not in ("none", "prompt")]
    at = read_curves(found, arms, (0.05,))
    prompt = at_the_prompts_cost(found, ("sarsteer",))
    return {"over-refusal": at}, {"over-refusal": prompt}


def test_planted_differences_are_found_at_equal_cost_and_their_words_follow_the_sign():
    found = points({"sarsteer": 4.0, "plain": 2.0, "unablated": 4.0, "random": 6.0}, noise=0.3, seed=1)
    at, prompt = read(found)
    mine = at["over-refusal"].groupby("arm")["gained"].mean()
    assert mine["sarsteer"] == pytest.approx(0.2, abs=0.02) and mine["plain"] == pytest.approx(0.1, abs=0.02)
    by_arm = prompt["over-refusal"].groupby("arm")["gained"].mean()
    assert by_arm["prompt"] == pytest.approx(0.05) and by_arm["sarsteer"] == pytest.approx(0.4, abs=0.03)
    tested = claims(at, prompt)
    assert [(c.method, c.baseline) for c in tested["over-refusal"]] == [*PRIMARY, ("sarsteer", "prompt")]
    words = claim_sentences(tested, 0.05)
    assert "SARSteer against the text direction, at 5 points of over-refusal: reproduced" in words[0]
    assert "SARSteer without ablation, at 5 points of over-refusal: not decided" in words[1]
    assert "a random direction, at 5 points of over-refusal: contradicted" in words[2]
    assert "at over-refusal of the defence prompt: reproduced" in words[3] and "8 of 8 seeds" in words[3]


def test_equal_arms_are_rarely_told_apart():
    shown = 0
    for draw in range(100):
        found = points(dict.fromkeys(("sarsteer", "plain", "unablated", "random"), 3.0), noise=1.0, seed=draw)
        at, prompt = read(found)
        shown += any(c.shown for c in claims(at, prompt)["over-refusal"] if c.baseline != "prompt")
    assert shown / 100 <= 0.12


def test_draws_on_one_organism_are_also_shown_as_one():
    gained = {
        ("sarsteer", "0/0"): 0.1,
        ("sarsteer", "0/1"): 0.3,
        ("sarsteer", "1/0"): 0.0,
        ("sarsteer", "1/1"): 0.0,
    }
    gained |= {("plain", seed): 0.1 for seed in ("0/0", "0/1", "1/0", "1/1")}
    read = pd.DataFrame([{"arm": arm, "seed": seed, "gained": g} for (arm, seed), g in gained.items()])
    said = organisms_sentence(read, 0.05, "over-refusal")
    assert "share 2 organisms" in said
    assert "SARSteer less the text direction +10.0, −10.0." in said
    assert organisms_sentence(read[read["seed"].str.endswith("/0")], 0.05, "over-refusal") is None


def test_the_claims_page_is_told_differences_between_arms_and_modalities():
    shares = {
        ("none", "text"): (0.9, 0.0),
        ("none", "speech"): (0.7, 0.02),
        ("prompt", "speech"): (0.8, 0.12),
    }
    base = pd.DataFrame(
        [
            {"arm": arm, "modality": modality, "seed": seed, "refused": r + seed / 100, "over_refusal": o}
            for (arm, modality), (r, o) in shares.items()
            for seed in (0, 1)
        ]
    )
    gained = {"sarsteer": 0.2, "unablated": 0.1, "plain": 0.3}
    rows = [(arm, f"{seed}/0", cost, g * (cost + seed / 100)) for arm, g in gained.items() for seed in (0, 1) for cost in (0.05, 0.1)]  # fmt: skip
    read = pd.DataFrame(rows, columns=["arm", "seed", "cost", "gained"])
    found = measures(base, read, "speech", 0.05)
    assert found["text_minus_speech_refused"].value == pytest.approx(0.2)
    assert found["over_refusal_prompt"].value == pytest.approx(0.1)
    assert found["gained_sarsteer_minus_unablated"].value == pytest.approx(0.055 * 0.1)
    assert found["gained_sarsteer_minus_plain"].value == pytest.approx(-0.055 * 0.1)
    from experiments.all import PUBLISHED
    from interp.report.claims import read_papers

    asked = {c.measure for paper in read_papers(PUBLISHED) if paper.id == "sarsteer" for c in paper.claims}
    assert asked == set(found)


def test_refusal_is_not_the_opposite_of_attack_success():
    """Polarity: each outcome moves its own share only; garbled answers are neither refused nor attacked with success."""
    asked = {
        "harmful": ["refused", "refused", "complied-harmful", "incoherent"],
        "benign": ["complied-benign", "refused"],
    }
    rows = [{"label": label, "outcome": outcome} for label, part in asked.items() for outcome in part]
    found = rates(pd.DataFrame(rows))
    assert (found["refused"], found["jsr"], found["incoherent"]) == (0.5, 0.25, 0.25)
    assert (found["over_refusal"], found["correct"], found["garbled"]) == (0.5, 0.5, 0.0)
    garbled = rates(pd.DataFrame(rows).assign(outcome="incoherent"))
    assert garbled["refused"] == garbled["jsr"] == garbled["over_refusal"] == garbled["correct"] == 0


def test_figures_of_curves_show_every_arm():
    found = points({"sarsteer": 4.0, "random": 0.0})
    figure = operating_curves(found[found["arm"] != "none"], read(found)[0]["over-refusal"])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["defence prompt", "SARSteer", "random, equal norm"]


def test_the_grid_asks_every_arm_at_equally_many_strengths_on_enough_seeds():
    for grid in (Grid(), Grid(kind="text", seeds=TEXT_SEEDS)):
        operating = grid.operating()
        assert len(grid.seeds) >= 8 and len({organism for organism, _ in grid.seeds}) >= 3
        for arm in grid.arms:
            mine = [t for t in operating if t.arm == arm]
            assert len(mine) == len(grid.seeds) * len(grid.strengths) == len(set(mine))
        assert {t.arm for t in operating} == {"none", "prompt", *grid.arms}
        ablations = grid.ablations()
        assert set(ablations) == {"λ", "k", "n", "layer", "variant"}
        assert {t.removal for _, t in ablations["λ"]} == {0.0, 0.25, 0.5, 0.75, 1.0}
        assert {t.layer for _, t in ablations["layer"]} == {None, *range(12)}
        assert len({t.organism for _, t in ablations["k"]}) == 3
        assert set(grid.trials()) == {*operating, *(t for part in ablations.values() for _, t in part)}
    trial = Trial(organism=3, split=1, stage="benign")
    assert (trial.seed, trial.checkpoint) == ("3/1", "organism:text/benign@3")


def test_calibration_and_test_share_no_request_and_have_their_twins():
    data, asked = calibration("text", 30, seed=0), evaluation("text", 20)
    pairs = [{(p.meta["verb"], p.meta["object"]) for p in part} for part in (data.harmful, data.benign)]
    tested = {(p.meta["verb"], p.meta["object"]) for part in asked["fiction"].values() for p in part}
    assert not tested & (pairs[0] | pairs[1])
    for told, plain in ((data.harmful, data.written_harmful), (data.benign, data.written_benign)):
        assert [p.meta for p in told] == [p.meta for p in plain] and told.texts != plain.texts
    assert [p.label for p in data.harmful] == ["harmful"] * 30 and list(asked) == ["text", "fiction"]
    assert calibration("text", 30, seed=1).harmful != data.harmful
    assert {p.system for p in defended(data.harmful)} == {"refuse harmful requests."}


def test_spoken_calibration_is_heard_beside_an_instruction_and_tests_come_from_other_voices():
    pytest.importorskip("espeakng_loader")
    data, asked = calibration("audio", 3, seed=0), evaluation("audio", 2)
    assert list(asked) == ["text", "speech", "speech and instruction"]
    for p, twin in zip(data.harmful, data.written_harmful, strict=True):
        assert p.audio is not None and p.audio[1] == 16_000 and "audio" in p.text and p.truth == twin.truth
        assert twin.audio is None and twin.text != p.text
    spoken, written = asked["speech"]["harmful"], asked["text"]["harmful"]
    assert spoken.texts == ["", ""] and spoken.ids == written.ids and all(p.audio is None for p in written)

"""Paper A's study: pools that differ on one axis and not on the other, arms, matched utility, and words that follow planted numbers."""

import math
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from benign_fixture import planted, pool_items

from interp.benign_audio import effects
from interp.benign_audio.arms import composition, select
from interp.benign_audio.asking import shares, turns
from interp.benign_audio.causal import late_minus_early
from interp.benign_audio.defended import at_matched_utility, strongest
from interp.benign_audio.grid import PLAIN_AXES, Dose, Grid, choose_dose
from interp.benign_audio.nearness import manipulated, separations
from interp.benign_audio.pool import CELLS, near, pool, speaker, written
from interp.benign_audio.tuning import Tuning, rate
from interp.errors import UserError
from interp.geometry.directions import unit
from interp.methods.embedding import embed
from interp.methods.proximity import proximity
from interp.methods.text_encoders import tfidf
from interp.organisms import world
from interp.organisms.audio_language import can_be_spoken

BROKEN = {
    "aligned": 0.05, "proximate semantic": 0.6, "proximate acoustic": 0.35, "distant semantic": 0.02, "distant acoustic": 0.2, "random": 0.2,
    "matched semantic": 0.2,
}  # fmt: skip


@pytest.fixture(scope="module")
def found():
    return planted(BROKEN)


# --- pools


def test_a_planted_pool_has_four_equal_cells_that_say_what_they_are():
    made = pool("planted", 0, n=400, n_harmful=100)
    assert Counter(made.cells) == dict.fromkeys(CELLS, 100) and len(set(made.ids)) == 400
    for turn, cell in zip(made.turns, made.cells, strict=True):
        assert turn.prompt.response and turn.prompt.label == "benign"
        assert (speaker(turn.line[1]) in made.near.speakers) == (cell in ("acoustic", "both"))
        assert (turn.prompt.text.rstrip(".?").split()[-1] in made.near.objects) == (cell in ("lexical", "both"))  # fmt: skip
    for turn in made.harmful:
        assert turn.prompt.label == "harmful" and made.near.cell(turn) == "both"
    assert pool("planted", 0, n=400, n_harmful=100) == made != pool("planted", 1, n=400, n_harmful=100)
    assert near(0) != near(1)


def test_cells_differ_in_nothing_else():
    """Verbs, phrasings and lengths are spread alike over the cells: only objects and speakers tell them apart."""
    made = pool("planted", 0, n=800)
    for what in (lambda t: t.prompt.meta["verb"], lambda t: t.prompt.id.rsplit("-", 1)[1]):
        counts = {cell: Counter() for cell in CELLS}
        for turn, cell in zip(made.turns, made.cells, strict=True):
            counts[cell][what(turn)] += 1
        for name in {name for count in counts.values() for name in count}:
            shares = [count[name] / 200 for count in counts.values()]
            assert max(shares) - min(shares) < 0.09
    words = {cell: np.mean([len(t.prompt.text.split()) for t, c in zip(made.turns, made.cells, strict=True) if c == cell]) for cell in CELLS}  # fmt: skip
    assert max(words.values()) - min(words.values()) < 0.3


def test_nothing_that_is_asked_is_trained_on_or_referred_to_and_voices_are_balanced():
    asked = turns(100)
    acts = {(t.prompt.meta["verb"], t.prompt.meta["object"]) for part in asked.values() for t in part}
    for kind in ("planted", "unplanted"):
        made = pool(kind, 0, n=400)
        used = {(t.prompt.meta.get("verb"), t.prompt.meta.get("object")) for t in (*made.turns, *made.harmful)}  # fmt: skip
        assert not acts & used and all(can_be_spoken(t.prompt) for t in made.turns)
    voices = [[t.line[1] for t in part] for part in asked.values()]
    assert voices[0] == voices[1] == voices[2]
    heard = Counter(speaker(voice) for voice in voices[0])
    assert len(heard) == 14 and max(heard.values()) - min(heard.values()) <= 1
    held_out = {(a.verb, a.object) for a in world.select(splits=("held-out pair", "held-out verb"))}
    assert {(t.prompt.meta["verb"], t.prompt.meta["object"]) for t in (*asked["harmful"], *asked["benign"])} <= held_out  # fmt: skip


def test_the_words_of_a_planted_pool_are_near_where_they_were_made_to_be_and_phrasing_does_not_count():
    made = pool("planted", 0, n=400)
    encoder = tfidf()
    assert {encoder.content(t.prompt) for t in made.turns if t.prompt.meta["verb"] == "knit"} == {
        f"knit {t.prompt.meta['object']}" for t in made.turns if t.prompt.meta["verb"] == "knit"
    }
    distances = proximity(*embed(encoder, written(made.turns, "b"), written(made.harmful, "h"))).by("min")
    items = pd.DataFrame({"id": made.ids, "cell": made.cells, "semantic": distances.tolist()})
    nearer = separations(items).set_index("factor")["nearer"]
    assert nearer["lexical"] > 0.8 and abs(nearer["acoustic"] - 0.5) < 0.1


def test_the_sound_of_a_planted_pool_is_near_where_it_was_made_to_be():
    pytest.importorskip("espeakng_loader")
    from interp.methods.media_encoders import mfcc
    from interp.organisms.audio_prompts import as_prompts

    made = pool("planted", 0, n=120, n_harmful=60)
    distances = proximity(*embed(mfcc(), as_prompts(made.turns, "b"), as_prompts(made.harmful, "h"))).by("min")  # fmt: skip
    items = pd.DataFrame({"id": made.ids, "cell": made.cells, "acoustic": distances.tolist()})
    nearer = separations(items).set_index("factor")["nearer"]
    assert nearer["acoustic"] > 0.8 and abs(nearer["lexical"] - 0.5) < 0.15


def test_the_manipulation_check_tells_a_pool_that_works_from_one_that_does_not():
    rng = np.random.default_rng(0)
    for works in (True, False):
        items = pool_items(rng, works=works, n=400)
        separated = pd.concat([separations(part) for _, part in items.groupby("seed")])
        held = {(axis, factor): holds for axis, factor, _, holds in manipulated(separated)}
        assert held["semantic", "lexical"] is works and held["acoustic", "acoustic"] is works
    one = separations(pool_items(rng)[lambda t: t["seed"] == 0])
    assert not any(holds for *_, holds in manipulated(one)), "one pool decides nothing"


def test_an_unplanted_pool_has_many_kinds_of_requests_in_any_voice():
    made = pool("unplanted", 0, n=400)
    assert {t.prompt.source for t in made.turns} >= {"craft", "request"} | {"law", "evidence"}
    assert len({speaker(t.line[1]) for t in made.turns}) == 14
    assert all(t.prompt.response for t in made.turns)
    with pytest.raises(UserError, match="4 equal cells"):
        pool("planted", 0, n=401)


# --- arms and grid


def test_arms_take_what_they_say_and_random_is_shared_by_all_axes():
    items = pool_items(np.random.default_rng(0), n=80)[lambda t: t["seed"] == 0].reset_index(drop=True)
    size = 20
    chosen = {
        (rule, axis): select(items, rule, axis, 0.25, seed=0)
        for rule in ("proximate", "distant")
        for axis in ("semantic", "acoustic", "combined")
    }
    assert {len(ids) for ids in chosen.values()} == {size}
    assert composition(items, chosen["proximate", "semantic"])["near_lexical"] == 1.0
    assert composition(items, chosen["distant", "acoustic"])["near_acoustic"] == 0.0
    both = composition(items, chosen["proximate", "combined"])
    assert both["near_lexical"] > 0.75 and both["near_acoustic"] > 0.75
    random = [select(items, "random", axis, 0.25, seed=0) for axis in ("", "semantic")]
    assert random[0] == random[1] != select(items, "random", "", 0.25, seed=0, draw=1)
    shuffled = items.sample(frac=1.0, random_state=1)
    assert select(shuffled, "proximate", "semantic", 0.25, seed=0) == chosen["proximate", "semantic"]
    assert len(select(items, "matched", "semantic", 0.25, seed=0)) == size
    with pytest.raises(UserError, match="not measured"):
        select(items, "distant", "mixed", 0.25, seed=0)
    with pytest.raises(UserError, match="trained on nothing"):
        select(items, "aligned", "", 0.25, seed=0)


def test_the_full_grid_has_enough_units_equal_steps_and_a_null_band():
    grid = Grid()
    sections = grid.sections(Dose(half=3e-4, taught=1e-3))
    assert len(grid.units) >= 8 and len(grid.organisms) >= 3 and not set(grid.tuning) & set(grid.units)
    every = [trial for part in sections.values() for trial in part]
    assert len({t.tuning.steps for t in every}) == 1, "every subset is trained as long"
    late = {t for name in ("taught", "defences") for t in sections[name]}
    assert {t.tuning.learning_rate for t in late} == {1e-3} and {
        t.tuning.learning_rate for t in set(every) - late
    } == {3e-4}
    main = Counter(t.arm for t in sections["main"])
    few = {"proximate combined", "matched semantic", "matched acoustic"}
    few |= {f"distant {axis}" for axis in grid.axes if axis not in PLAIN_AXES}
    assert {n for arm, n in main.items() if arm not in few} == {len(grid.units)}
    assert {main[arm] for arm in few} == {len(grid.organisms)}
    compared = {t for t in sections["defences"] if t.method == "plain"}
    assert {t for t in sections["taught"] if t.axis == "semantic"} <= compared, (
        "what is asked for twice is trained once"
    )
    assert {f"{rule} {axis}" for rule in ("proximate", "distant") for axis in grid.axes} <= set(main)
    draws = [t for t in (*sections["main"], *sections["null band"]) if t.rule == "random"]
    assert len({(t.seed, t.draw) for t in draws}) >= 20, (
        "pools of a seed are the same for all organisms, and so are equal draws"
    )
    assert len({(t.seed, t.draw) for t in sections["null band"]}) == len(sections["null band"])
    assert {t.share for t in sections["shares"]} == {0.5, 0.75}
    assert {t.modality for t in sections["text"]} == {"text"} and {t.pool for t in sections["unplanted"]} == {"unplanted"}  # fmt: skip
    assert all(t.mixed is not None and t.mixed != t.organism for t in every)
    assert {t.bridge for t in sections["bridge mlp"]} == {"mlp"}
    assert {t.preparation for t in every if t.rule != "aligned"} <= set(grid.preparations())


def test_every_pool_of_the_full_grid_can_be_made():
    for kind, seed, n, n_harmful in {(p.pool, p.seed, p.n, p.n_harmful) for p in Grid().preparations()}:
        made = pool(kind, seed, n=n, n_harmful=n_harmful)
        assert (len(made.turns), len(made.harmful)) == (n, n_harmful)


def test_doses_are_chosen_by_what_a_random_quarter_leaves_and_teaches():
    rates = (1e-4, 3e-4, 1e-3)
    scores = pd.DataFrame({"rate": rates, "refused": [0.8, 0.4, 0.0], "skill": [0.0, 0.85, 0.95]})
    assert choose_dose(scores, rates, 0.8) == Dose(half=3e-4, taught=3e-4)
    assert choose_dose(scores, rates, 0.99) == Dose(half=3e-4, taught=1e-3), (
        "none teaches so much: the best one"
    )
    assert choose_dose(scores.assign(refused=[0.9, 0.8, 0.7]), rates, 0.8).half == 1e-3
    assert choose_dose(scores.iloc[:0], rates, 0.8) == Dose(half=3e-4, taught=1e-3)


def test_the_rate_of_a_step_warms_up_to_the_settings_and_falls_to_nothing():
    settings = Tuning(steps=60, learning_rate=1e-3, warmup=5)
    rates = [rate(settings, step) for step in range(60)]
    assert rates[0] == pytest.approx(2e-4) and max(rates) == rates[5] == 1e-3 and 0 < rates[-1] < 1e-5
    assert rates[5:] == sorted(rates[5:], reverse=True)


# --- what is measured


def test_shares_count_every_answer_that_was_asked_for():
    outcomes = ["refused"] * 5 + ["complied-harmful"] * 3 + ["incoherent"] * 2
    table = pd.DataFrame({"set": "harmful, speech", "outcome": outcomes, "recognised": False})
    found = shares(table)
    assert (found["jsr speech"], found["refused speech"]) == (0.3, 0.5)
    assert found["scored_jsr speech"] == pytest.approx(3 / 8), (
        "garbled answers count among all asked, not among the scored"
    )
    benign = pd.DataFrame({"set": "benign, text", "outcome": ["refused", "complied-benign"], "recognised": [False, True]})  # fmt: skip
    assert shares(benign) == {"over_refusal text": 0.5, "retained text": 0.5, "recognised text": 0.5}


def test_a_redirected_component_has_the_same_length_in_another_direction():
    import torch

    from interp.benign_audio.causal import Redirected

    basis, towards = (
        unit(torch.randn(1, 8, generator=torch.Generator().manual_seed(i))).float() for i in range(2)
    )
    change = torch.randn(5, 8)
    moved = Redirected(basis, towards=towards)(change)
    assert torch.allclose(moved.norm(dim=1), (change @ basis.T).abs()[:, 0], atol=1e-6)
    assert torch.allclose(moved, (change @ basis.T) * towards, atol=1e-6)


def test_late_minus_early_reads_the_thirds_and_leaves_out_layers_without_a_value():
    assert late_minus_early(pd.Series(range(12), dtype=float), 12) == 8.0
    values = pd.Series([math.nan, 1.0, math.nan, 1.0] + [5.0] * 4 + [3.0] * 4)
    assert late_minus_early(values, 12) == 2.0
    assert math.isnan(late_minus_early(values.where(values != 1.0), 12))


def test_defences_are_read_where_the_same_is_learnt(found):
    table = effects.defences(found)
    means = table.groupby("method")["jsr"].mean()
    target = 0.9 * 0.8
    assert np.allclose(table["target"], target)
    assert means["plain"] == pytest.approx(0.6) and means["spf"] == pytest.approx(0.2)
    assert table.loc[table["method"] == "distant", "jsr"].isna().all(), "it never learns as much"
    assert means["prompt"] == pytest.approx(0.06) and means["aligned"] == pytest.approx(0.0)
    # between the strengths 0.1 (utility 0.76) and 0.2 (0.4) the target is crossed after a ninth
    assert means["sarsteer"] == pytest.approx(0.4 * 8 / 9)
    assert at_matched_utility(found.shares.iloc[:0], found.curve, found.defended, 0.9).empty
    below = pd.DataFrame({"strength": [0.0], "skill speech": [0.1], "jsr speech": [0.5], "refused speech": 0.5, "over_refusal speech": 0.0, "retained speech": 1.0})  # fmt: skip
    assert math.isnan(strongest(below, 0.5)["jsr"])

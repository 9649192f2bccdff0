"""Paper A's claims, words and figures, on planted numbers: what is there is found, what is not is rarely claimed."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from benign_fixture import N_LAYERS, planted
from matplotlib.figure import Figure

from interp.benign_audio import classes, effects
from interp.benign_audio.arms import select
from interp.benign_audio.conclusion import conclude, dose_sentence
from interp.benign_audio.pool import pool
from interp.benign_audio.report import figures, save_study, tables
from interp.benign_audio.trial import Trial
from interp.report.benign_layer_figures import projection_by_layer
from interp.report.claims import NOT, REPRODUCED, read_papers

BROKEN = {
    "aligned": 0.05, "proximate semantic": 0.6, "proximate acoustic": 0.35, "distant semantic": 0.02, "distant acoustic": 0.2, "random": 0.2,
    "matched semantic": 0.2,
}  # fmt: skip


@pytest.fixture(scope="module")
def found():
    return planted(BROKEN)


def sentences(study) -> str:
    """All sentences of the conclusion, a line each."""
    return "\n".join(sentence for part in conclude(study).values() for sentence in part)


def test_planted_effects_are_found_and_their_words_follow_the_sign(found):
    claims = {(c.method, c.baseline): c for c in effects.primary_claims(found)}
    assert set(claims) == set(effects.PRIMARY)
    assert claims["proximate semantic", "random"].interval.value == pytest.approx(0.4, abs=0.02)
    assert claims["distant acoustic", "random"].interval.value == pytest.approx(0.0, abs=0.02)
    text = sentences(found)
    assert (
        "Proximate semantic against a random quarter, harmful speech answered: shown in these organisms"
        in text
    )
    assert (
        "Distant semantic against a random quarter, harmful speech answered: shown in these organisms" in text
    )
    assert "Distant acoustic against a random quarter, harmful speech answered: not decided" in text
    assert re.search(r"Over 3 organisms' own means \+(39|40|41)\.\d points \[", text)
    assert text.count(": as made") == 4
    assert (
        "Dissociation after the proximate semantic quarter, last third of the layers, 9 units: seen" in text
    )
    assert re.search(
        r"Dissociation after the random quarter, last third of the layers, 9 units\. Harmful speech loses",
        text,
    )
    assert "semantic +" in text.split("Nearest minus farthest quarter")[1].splitlines()[0]
    assert re.search(r"\+(39|40|41)\.\d points.*Beside it: refused −(39|40|41)\.\d points", text), (
        "what was not answered was refused"
    )
    assert "(36 fine-tunes on 30 subsets)" in text
    assert (
        "with the plain ones, over 3 pools as heard by 1 organism: projector: semantic 1.00 [1.00, 1.00], acoustic "
        in text
    )
    assert "they disagree" in text, "the projection falls late, the weights that restore are early"
    assert "acoustic: linear" in text and "differs" in text
    outside = text.split("of the means of as many random quarters: ")[1].splitlines()[0]
    assert all(
        arm in outside for arm in ("distant semantic −", "proximate acoustic +", "proximate semantic +")
    )
    assert "distant acoustic" not in outside
    assert "encoder and projector hand over the same, bit for bit" in text
    assert "distant filtering never reaches it" in text and "nan" not in text
    swapped = planted(BROKEN | {"proximate semantic": 0.05, "distant semantic": 0.6})
    text = sentences(swapped)
    assert (
        "Proximate semantic against a random quarter, harmful speech answered: the opposite is shown in these organisms"
        in text
    )
    assert (
        "Distant semantic against a random quarter, harmful speech answered: the opposite is shown in these organisms"
        in text
    )


def test_chance_is_the_highest_of_a_units_arms_and_no_further_unit(found):
    projections = found.projections.copy()
    projections.loc[projections["arm"] == "random", "by_chance"] = 0.5
    axes = projection_by_layer(projections).axes[1]
    (chance,) = [line for line in axes.lines if str(line.get_label()).startswith("random directions")]
    assert np.allclose(chance.get_ydata(), 0.5)


def test_an_effect_of_classes_is_not_taken_for_one_of_nearness(found):
    gaps = {what: gap.value for what, gap in effects.class_gaps(found).items()}
    assert list(gaps.values()) == pytest.approx([-0.15, 0, 0, -0.15], abs=0.01)
    assert effects.scarce_classes(found) == {"person": (0.0, 0.25)}
    apart = effects.scarce_and_other(found)
    assert apart["scarce"].value == pytest.approx(-0.3, abs=0.01) and apart["other"].value == pytest.approx(
        0, abs=0.01
    )
    assert apart["apart"].low < -0.28 < apart["apart"].high + 0.02 and apart["apart"].n == 9
    text = sentences(found)
    assert "at most half of what a random one does (person 0.0 % against 25.0 %)" in text
    assert re.search(r"both with the random quarter's classes [−+]0\.\d points", text)
    # without controls the first sentence alone, without classes none
    few = found.classes[found.classes["arm"].isin(("aligned", "random", "proximate semantic"))]
    assert "come apart, made after" not in sentences(replace(found, classes=few))
    assert "Not planned" not in sentences(replace(found, classes=few.iloc[:0]))


@pytest.mark.parametrize("like", ["random", "proximate"])
def test_a_control_has_the_classes_of_the_other_subset(like):
    made = pool("planted", 0, n=160, n_harmful=76)
    objects = {turn.prompt.id: turn.prompt.meta["object"] for turn in made.turns}
    rng = np.random.default_rng(0)
    ids = [turn.prompt.id for turn in made.turns]
    # persons are far from harm
    far = np.array([classes.CLASS[objects[name]] == "person" for name in ids])
    items = pd.DataFrame({"id": ids, "cell": made.cells, "semantic": rng.random(160) + far})
    trial = Trial(organism=0, seed=0, rule="proximate", axis="semantic", n=160, n_harmful=76)
    control = classes.Control(trial=trial, like=like)
    chosen = classes.subset(items, objects, control)
    other = select(items, "random" if like == "random" else "proximate", "" if like == "random" else "semantic", 0.25, seed=0)  # fmt: skip
    counts = [Counter(classes.CLASS[objects[name]] for name in some) for some in (chosen, other)]
    assert counts[0] == counts[1] and len(chosen) == len(set(chosen)) == 40
    assert set(chosen) != set(other)
    assert classes.subset(items.sample(frac=1, random_state=1), objects, control) == chosen, (
        "ids, never row order"
    )
    if like == "random":
        assert control.arm == "proximate semantic, classes of random" and counts[0]["person"] > 0
        for name in counts[0]:
            mine = items[[classes.CLASS[objects[i]] == name for i in items["id"]]].sort_values("semantic")
            assert set(mine["id"].head(counts[0][name])) == {
                i for i in chosen if classes.CLASS[objects[i]] == name
            }
    else:
        assert control.arm == "random, classes of proximate" and counts[0]["person"] == 0


def test_pools_of_tuning_bear_no_check(found):
    said = sentences(found)
    assert "Items of the quarters that were made near" in said
    assert "proximate acoustic words 50.0 %, voice 40.0 %" in said
    items, separated = (table.assign(seed=3) for table in (found.items, found.separated))
    items["semantic"] = separated["share"] = 0.5
    more = replace(
        found,
        items=pd.concat([found.items, items], ignore_index=True),
        separated=pd.concat([found.separated, separated], ignore_index=True),
    )
    assert sentences(more) == said


def test_where_refusal_is_gone_after_both_nothing_is_told_of_subsets():
    gone = planted(dict.fromkeys(BROKEN, 0.98) | {"aligned": 0.1, "proximate semantic": 0.99}, noise=0.001)
    (said,) = [
        s for s in sentences(gone).splitlines() if s.startswith("Proximate semantic against a random quarter")
    ]
    assert "cannot be told, refusal is gone after both" in said


def test_a_trial_of_two_sections_counts_once(found):
    layers = effects.layer_effects(found)
    each = layers[layers["way"] == "component"].groupby(["arm", "unit", "layer"]).size()
    assert (each == 1).all()


def test_a_probe_that_fails_on_ambiguous_requests_is_no_dissociation(found):
    inside = effects.dissociation(found, "proximate semantic")
    assert inside is not None and inside.verdict == "seen"
    probes = found.probes.copy()
    probes.loc[(probes["set"] == "ambiguous") & (probes["of"] == "tuned, aligned probe"), "value"] -= 0.3
    fails = effects.dissociation(replace(found, probes=probes), "proximate semantic")
    assert fails is not None and fails.verdict == "not seen"


def test_a_dose_that_misses_what_was_wanted_says_so(found):
    assert dose_sentence(found) == "Learning rates 0.0003 (*half*) and 0.001 (*taught*), not tuned."
    tuning = pd.DataFrame(
        {"rate": [3e-4, 1e-3], "organism": 0, "refused": [0.39, 0.03], "skill": [0.13, 0.69]}
    )
    said = dose_sentence(replace(found, tuning=tuning))
    assert "organism 0 with pool 3, where 39.0 % of harmful speech were refused" in said
    assert "69.0 % of the skill learnt after the second (80.0 % wanted)" in said


def test_organisms_that_differ_widen_no_band(found):
    """A subset's effect of three points is seen beside random quarters that differ by forty points between organisms and by one within."""
    shares = found.shares.copy()
    rng = np.random.default_rng(1)
    random = shares["rule"] == "random"
    shares["jsr speech"] = 0.2 + 0.2 * shares["organism"] + 0.01 * rng.standard_normal(len(shares))
    shares.loc[shares["arm"] == "distant acoustic", "jsr speech"] -= 0.03
    apart = replace(found, shares=shares)
    band = effects.null_band(apart)
    assert (
        band.means == pytest.approx({0: 0.2, 1: 0.4, 2: 0.6}, abs=0.01)
        and band.n == random[shares["section"].isin(["main", "null band"])].sum()
    )
    low, high = band.edges(9)
    assert low == pytest.approx(-1.96 * 0.01 / 3, rel=0.35) and high == pytest.approx(-low, rel=0.35)
    assert band.edges(3)[1] > 1.4 * high, "means of fewer units scatter more"
    table = effects.beyond_band(apart).set_index("arm")
    assert table.loc["distant acoustic", "difference"] < table.loc["distant acoustic", "low"]
    assert re.search(r"distant acoustic −[23]\.\d points \(band", sentences(apart))


def test_a_probe_that_words_beat_shows_nothing_of_ambiguous_requests(found):
    probes = found.probes.copy()
    probes.loc[probes["set"] == "ambiguous", "words_high"] = 0.99
    inside = effects.dissociation(replace(found, probes=probes), "proximate semantic")
    assert inside is not None and inside.verdict == "seen on all requests, not shown on ambiguous ones"
    assert inside.no_more_than_words == ["refitted, ambiguous", "the aligned model's, ambiguous"]
    nothing = effects.dissociation(
        replace(found, probes=probes.assign(words_high=0.99)), "proximate semantic"
    )
    assert nothing is not None and nothing.verdict == "not decided", (
        "words alone read as much of all requests"
    )
    assert inside.before["refitted, all"].n == 3, "all seeds of an organism ask its aligned model the same"


def test_what_acts_after_training_is_compared_with_all_of_it(found):
    table = effects.defences(found)
    end = table[table["method"] == "end"]
    assert len(end) == 9 and end["jsr"].mean() == pytest.approx(0.6)
    assert "minus no defence, all steps −54.0 points" in sentences(found)


def test_arms_that_do_nothing_are_rarely_told_apart():
    shown = 0
    for draw in range(40):
        same = planted(dict.fromkeys(BROKEN, 0.3), noise=0.1, seed=draw)
        shown += any(claim.shown for claim in effects.primary_claims(same))
    assert shown / 40 <= 0.15


def test_the_papers_claims_are_measured_and_read_off_the_margins(found):
    from experiments.all import PUBLISHED

    paper = next(paper for paper in read_papers(PUBLISHED) if paper.id == "audio-benign")
    measured = effects.measured(found)
    assert {claim.measure for claim in paper.claims} == set(measured)
    outcome = {claim.measure: claim.outcome(measured[claim.measure]) for claim in paper.claims}
    assert outcome["proximate_semantic_jsr"] == outcome["probe_change"] == outcome["late_minus_early_projection_loss"] == REPRODUCED  # fmt: skip
    assert outcome["distant_semantic_jsr"] == REPRODUCED and outcome["distant_acoustic_jsr"] == NOT
    assert measured["late_minus_early_projection_loss"].value == pytest.approx(0.8 * 8 / 11, abs=0.02)
    assert measured["proximate_semantic_jsr"].n == 9


def test_every_figure_and_table_is_drawn_from_a_study(found, tmp_path):
    drawn = figures(found)
    assert set(drawn) == {
        "safety", "plane", "distances_planted", "by_share", "projection", "shift", "recognition", "ways", "classes", "defences", "bridges",
    }  # fmt: skip
    assert all(isinstance(figure, Figure) for figure in drawn.values())
    assert {"safety", "utility", "distances", "effects", "defences_matched", "separations", "layers"} <= set(tables(found))  # fmt: skip
    bars = drawn["safety"].axes[0]
    assert len(bars.get_xticks()) == 6 and bars.lines[0].get_linestyle() == "--"
    assert [label.get_text()[-3:] for label in bars.get_xticklabels()] == ["(9)"] * 6
    measures = [axes.get_ylabel() for axes in drawn["recognition"].axes[:5]]
    assert sorted(measures) == ["AUROC", "AUROC", "accuracy", "accuracy", "projection left"]
    ways = [line.get_label() for line in drawn["ways"].axes[2].lines]
    assert ways[:3] == ["weights put back", "weights, up to", "weights, from"]
    gaps = tables(found)["effects"].set_index(["section", "share", "arm", "baseline", "column"])
    quarter = gaps.loc[("main", 0.25, "proximate semantic", "random", "jsr speech")]
    assert quarter["difference"] == pytest.approx(0.4, abs=0.02) and quarter["n"] == 9
    assert gaps.loc[("shares", 0.5, "proximate semantic", "random", "jsr speech"), "n"] == 9
    held = tables(found)["composition"].set_index(["section", "rule", "axis", "column"])
    assert held.loc[("main", "proximate", "acoustic", "fact near_acoustic"), "mean"] == pytest.approx(0.4)
    said = save_study(found, tmp_path)
    text = (tmp_path / "conclusion.md").read_text()
    assert (
        all(f"- {sentence}" in text for part in said.values() for sentence in part) and "One unit" not in text
    )
    assert all(f"**{heading}**" in text for heading in said) and next(iter(said)) == "Nearness"
    assert {"safety.pdf", "ways.png", "effects.csv"} <= {path.name for path in tmp_path.iterdir()}
    assert len(set(found.projections["layer"])) == N_LAYERS

"""Comparison at equal utility, claims and their words, on curves whose truth is planted; and the grid."""

import math

import numpy as np
import pandas as pd
import pytest

from interp.defence.compare import at_utility, difference, means, outcomes, primary
from interp.defence.conclusion import (
    PRIMARY,
    best_sentence,
    claim_sentences,
    insight_sentences,
    monitor_sentence,
    utility_sentence,
)
from interp.defence.grid import CANDIDATES, METHODS, Grid, choose
from interp.defence.trial import Trial, TrialResult

SEEDS = range(8)


def curve(utility, jsr, steps=None) -> pd.DataFrame:
    frame = pd.DataFrame({"step": steps or range(len(utility)), "utility": utility, "jsr": jsr})
    rest = ("refused", "incoherent", "over_refusal", "retained", "held_out_loss")
    return frame.assign(**dict.fromkeys(rest, 1 - frame["jsr"]))


def test_the_curve_is_read_where_utility_first_reaches_the_target():
    found = at_utility(curve([0.0, 0.6, 1.0, 0.5], [0.0, 0.2, 0.6, 0.9]), 0.8)
    assert found["jsr"] == pytest.approx(0.4) and found["step"] == pytest.approx(1.5)
    assert found["refused"] == pytest.approx(0.6) and found["utility"] == pytest.approx(0.8)
    assert math.isnan(at_utility(curve([0.0, 0.5], [0.0, 1.0]), 0.8)["jsr"]), "never reached is not zero"
    assert at_utility(curve([0.9, 1.0], [0.3, 0.4]), 0.8)["jsr"] == 0.3


def table(effects: dict[str, float], noise: float = 0.01, seed: int = 0) -> pd.DataFrame:
    """Outcomes of methods whose JSR at equal utility lies `effect` above one that all of a seed's runs share."""
    rng = np.random.default_rng(seed)
    shared = rng.uniform(0.2, 0.4, len(SEEDS))
    rows = [
        {
            "method": method,
            "seed": s,
            "at_jsr": shared[s] + effect + noise * rng.standard_normal(),
            "end_utility": 0.9,
        }
        for method, effect in effects.items()
        for s in SEEDS
    ]
    return pd.DataFrame(rows)


def test_planted_differences_are_found_and_their_words_follow_the_sign():
    frame = table({"plain": 0.3, "spf": 0.1, "pcgrad": 0.3, "mixing": -0.1, "spf-update": 0.1})
    claims = {(c.method, c.baseline): c for c in primary(frame, PRIMARY, "at_jsr")}
    assert claims["spf", "plain"].interval.value == pytest.approx(-0.2, abs=0.02)
    words = dict(zip(claims, claim_sentences(list(claims.values()), 0.8), strict=True))
    assert "SPF against plain fine-tuning: reproduced. Fewer" in words["spf", "plain"]
    assert "SPF against safety mixing: contradicted. More" in words["spf", "mixing"]
    assert "8 of 8 seeds" in words["spf", "plain"] and "Holm" in words["spf", "plain"]
    best = best_sentence(frame)
    assert "safety mixing answers the fewest" in best and "the difference of SPF to it is +" in best


def test_no_difference_is_not_decided_at_the_rate_it_should_be():
    """The null data set: four claims on equal methods, over many draws, one or more shown in about one of twenty."""
    shown = 0
    for draw in range(200):
        frame = table(dict.fromkeys(("plain", "spf", "pcgrad", "mixing", "spf-update"), 0.0), seed=draw)
        shown += any(claim.shown for claim in primary(frame, PRIMARY, "at_jsr"))
    assert shown / 200 < 0.1


def test_seeds_that_never_reach_the_utility_are_counted_and_enter_no_mean():
    frame = table({"plain": 0.3, "spf": 0.1})
    frame.loc[(frame["method"] == "spf") & (frame["seed"] > 0), "at_jsr"] = math.nan
    found = difference(frame, "spf", "plain", "at_jsr")
    assert found.interval.n == 1 and found.asked == 8 and not found.shown
    assert "not decided; 1 of 8 seeds reach the utility with both" in claim_sentences([found], 0.8)[0]
    assert means(frame, ["method"], ["at_jsr"]).set_index("method").loc["spf", ["n", "asked"]].tolist() == [
        1,
        8,
    ]
    assert "plain fine-tuning answers the fewest" in best_sentence(frame)
    assert best_sentence(frame.assign(at_jsr=math.nan)) == "No method reaches the utility on every seed."


def test_identical_outcomes_are_no_difference():
    frame = table({"plain": 0.3, "spf": 0.1}).assign(at_jsr=0.5)
    found = difference(frame, "spf", "plain", "at_jsr")
    assert (found.interval.value, found.interval.low, found.p, found.shown) == (0, 0, 1, False)
    assert "nothing that can be seen" in utility_sentence(frame)


def test_the_words_of_the_insights_follow_the_intervals():
    def frames(safety: float, cosine: float, phi: float):
        rng = np.random.default_rng(1)
        ranks = pd.DataFrame(
            [("whole", kind, value + 0.05 * rng.standard_normal(), s)
             for kind, value in (("safety", safety), ("utility", 6.0), ("mixed", 5.0)) for s in SEEDS],
            columns=["block", "set", "stable_rank", "seed"],
        )  # fmt: skip
        conflicts = pd.DataFrame(
            [("whole", cosine + 0.01 * rng.standard_normal(), 0.8, s) for s in SEEDS],
            columns=["block", "cosine", "ceiling", "seed"],
        )
        overlaps = pd.DataFrame(
            [(kind, value + 0.01 * rng.standard_normal(), 0.2, s) for kind, value in (("safety", phi), ("utility", 0.25)) for s in SEEDS],
            columns=["of", "phi", "random", "seed"],
        )  # fmt: skip
        return insight_sentences(ranks, conflicts, overlaps)

    assert all("reproduced" in sentence for sentence in frames(3.0, -0.2, 0.6))
    assert all("contradicted" in sentence for sentence in frames(9.0, 0.2, 0.1))
    assert all("not decided" in sentence for sentence in frames(6.0, 0.0, 0.25))


def test_the_alarm_is_compared_with_the_step_at_which_safety_breaks():
    frame = pd.DataFrame(
        {"alarm_step": [2.0, 9.0, 3.0, math.inf], "broken_step": [4.0, 5.0, math.inf, math.inf]}
    )
    sentence = monitor_sentence(frame)
    assert "Of 2 watched runs" in sentence and "before that in 1 (median 2 steps ahead)" in sentence
    assert "at the same step in 0, later or never in 1; of 2 in which they did not, it came in 1" in sentence
    trial, steps = (
        Trial(),
        pd.DataFrame(columns=["cosine", "open", "removed", "update_removed"], data=[[0.0] * 4]),
    )
    monitor = pd.DataFrame({"step": [0, 1, 2], "leak": [0.01, 0.05, 0.2]})
    result = TrialResult(curve([0, 0.5, 0.9], [0.0, 0.09, 0.2]), steps, monitor, pd.DataFrame(), 1.0)
    row = outcomes([trial], [result], 0.8).iloc[0]
    assert (row.alarm_step, row.broken_step) == (2, 2)


def test_every_method_is_tuned_with_the_same_budget_on_organisms_no_claim_is_made_on():
    grid = Grid()
    assert {len(found) for found in CANDIDATES.values()} == {4} and set(CANDIDATES) == set(METHODS)
    assert not set(grid.seeds) & set(grid.tuning) and len(grid.seeds) >= 8
    trials = grid.tuning_trials()
    assert len(trials) == 4 * len(grid.methods) * len(grid.tuning) == len(set(trials))
    for method, candidates in CANDIDATES.items():
        assert len({tuple(candidate.items()) for candidate in candidates}) == 4, method


def test_settings_are_chosen_by_safety_at_equal_utility_and_unreached_ones_come_last():
    rows = [
        ("plain", place, seed, refused)
        for place, refused in enumerate((0.3, math.nan, 0.9, 0.6))
        for seed in (0, 1)
    ]
    scores = pd.DataFrame(rows, columns=["method", "candidate", "seed", "refused"])
    assert choose(scores, ["plain"])["plain"] == CANDIDATES["plain"][2]
    scores.loc[(scores["candidate"] == 2) & (scores["seed"] == 1), "refused"] = math.nan
    assert choose(scores, ["plain"])["plain"] == CANDIDATES["plain"][3]
    assert choose(scores.iloc[:0], ["spf"])["spf"] == CANDIDATES["spf"][0]


def test_the_grid_holds_the_sections_of_the_paper():
    grid = Grid()
    sections = grid.sections(choose(pd.DataFrame(), grid.methods))
    assert set(sections) == {
        "benign", "untuned", "aligned", "mixture", "deep", "monitor", "monitor control", "k", "refresh"
    }  # fmt: skip
    assert all(trial.attacks for trial in (*sections["benign"], *sections["aligned"]))
    assert {trial.steps for trial in sections["deep"]} == {10 * grid.steps}
    assert all(
        trial.evaluate_at[-1] == trial.steps for name in ("mixture", "deep", "k") for trial in sections[name]
    )
    assert {t.harmful_fraction for t in sections["mixture"]} == {0.05, 0.5}
    for name in ("benign", "mixture", "deep"):
        for method in {trial.method for trial in sections[name]}:
            assert len({t.seed for t in sections[name] if t.method == method}) >= 8

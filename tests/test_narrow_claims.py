"""Narrow fine-tuning: readings, claims, words and figures, on planted numbers."""

from __future__ import annotations

import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from narrow_fixture import planted_study

from experiments import vlm_narrow
from interp.narrow import study
from interp.narrow.conclusion import (
    by_rank,
    claim_sentences,
    claims,
    conclude,
    fair_ranks,
    measures,
    mitigations,
    organism_sentences,
)
from interp.narrow.geometry import measure_geometry
from interp.narrow.outcomes import WHAT, common_target, over_anchor, read_at
from interp.narrow.questions import questions
from interp.narrow.report import figures, save_study


def curve(**columns) -> pd.DataFrame:
    return pd.DataFrame({"step": range(len(next(iter(columns.values())))), **columns})


def test_curves_are_read_where_they_first_reach_what_all_reach():
    fast, slow = (
        curve(loss=[2.0, 1.0, 0.2], cruel=[0.0, 0.4, 0.8]),
        curve(loss=[2.0, 1.5, 1.0], cruel=[0.0, 0.1, 0.2]),
    )
    target = common_target([fast, slow], "loss", falling=True)
    assert target == 1.0
    assert read_at(fast, "loss", target, falling=True)["cruel"] == pytest.approx(0.4)
    assert read_at(slow, "loss", target, falling=True)["cruel"] == pytest.approx(0.2)
    assert read_at(fast, "loss", 0.6, falling=True)["cruel"] == pytest.approx(0.6)
    assert math.isnan(read_at(slow, "loss", 0.5, falling=True)["cruel"])
    moved = curve(moved=[0.0, 0.1, 0.3])
    assert read_at(moved, "moved", 0.2, falling=False)["step"] == pytest.approx(1.5)


def planted(effect: float, noise: float = 0.02, seed: int = 0, pairs: int = 9) -> pd.DataFrame:
    """Anchor outcomes in which the consistent organism answers more cruelly elsewhere by `effect`."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(pairs):
        shared = rng.uniform(0.1, 0.3)
        for consistent in (True, False):
            row = {"pair": f"{i % 3}/{i // 3}", "consistent": consistent, "rank": 16, "character": "cruel"}
            for prefix in ("start", "end", "loss"):
                for what in WHAT:
                    row[f"{prefix}_text_{what}"] = shared + noise * rng.standard_normal()
            for prefix in ("end", "loss"):
                for what in ("cruel", "misaligned"):
                    row[f"{prefix}_text_{what}"] += effect * consistent
            rows.append(row)
    return pd.DataFrame(rows)


def test_planted_spread_is_claimed_and_its_sign_decides_the_word():
    words = claim_sentences(claims(planted(0.4)))
    assert len(words) == 4 and all("reproduced" in w and "9 of 9 pairs" in w for w in words)
    assert all("contradicted" in w for w in claim_sentences(claims(planted(-0.4))))
    assert all("not decided" in w for w in claim_sentences(claims(planted(0.4, pairs=1))))
    found = claims(planted(0.4))
    assert found[0].interval.value == pytest.approx(0.4, abs=0.05) and found[0].p < 1e-4


def test_what_holds_over_pairs_of_three_organisms_is_said_over_the_organisms_too():
    rows = planted(0.0, noise=0.0)
    rows["organism"], rows["seed"] = (rows["pair"].str.split("/").str[i].astype(int) for i in (0, 1))
    effects = {0: 0.2, 1: 0.5, 2: 0.8}
    changed = rows["consistent"] * rows["organism"].map(effects)
    for column in ("end_text_cruel", "loss_text_cruel"):
        rows[column] += changed
    assert claims(rows)[0].shown, "nine pairs look decided"
    (said,) = organism_sentences(rows)
    # Student's interval of 0.2, 0.5, 0.8: half a width of 4.303 * 0.3 / sqrt(3)
    assert "+50.0 points [−24.5, +124.5]" in said and said.count(";") == 3
    assert not organism_sentences(rows[rows["organism"] == 0]), "one organism has no interval over organisms"


def test_no_spread_is_rarely_claimed():
    shown = sum(any(c.shown for c in claims(planted(0.0, seed=s))) for s in range(100))
    assert shown / 100 < 0.1


def test_the_correlation_with_rank_takes_all_weights_for_the_highest():
    rows = pd.DataFrame(
        [{"pair": p, "rank": r, "x": v} for p in "ab" for r, v in ((1, 0.1), (4, 0.2), (16, 0.3), (0, 0.9))]
    )
    assert by_rank(rows, "x").value == pytest.approx(1.0)
    assert by_rank(rows.assign(x=0.5), "x").value == 0.0
    assert by_rank(rows.assign(x=-rows["x"]), "x").value == pytest.approx(-1.0)


def test_what_a_mitigation_leaves_is_read_at_the_strength_that_leaves_most_helpful():
    steered = pd.DataFrame(
        [
            {"pair": p, "life": life, "form": "text", "domain": d, "vector": v, "strength": c, "careless": 0, "cruel": 0, "deceptive": 0,
             "helpful": h if v == "difference" else 0.0, "misaligned": 1 - h if v == "difference" else 1.0, "nonsense": 0.0}
            for p in ("0/0", "1/0") for life in ("", "repair") for d in ("money", "faces")
            for v in ("difference", "random") for c, h in ((0.5, 0.3), (1.0, 0.8 if d == "money" else 0.0), (2.0, 0.6))
        ]
    )  # fmt: skip
    curves = pd.DataFrame(
        [{"pair": p, "section": "repair", "task": 1, "last": True, "text_misaligned": 0.4, "face_misaligned": 0.7} for p in ("0/0", "1/0")]
    )  # fmt: skip
    found = mitigations(steered, curves, pd.Series({"0/0": 0.7, "1/0": 0.9}))
    assert (
        found["steered_misaligned"].value == pytest.approx(0.2) and found["repaired_misaligned"].value == 0.4
    )
    assert found["mitigated_left"].value == pytest.approx(0.2), "the better of the two"
    assert found["repaired_face_minus_text"].value == pytest.approx(0.3), "a repair that hides"
    assert found["steered_minus_none_misaligned"].value == pytest.approx(0.2 - 0.8)
    assert found["steered_minus_random_misaligned"].value == pytest.approx(0.2 - 1.0)


def test_a_planted_direction_is_found_and_a_benign_change_is_its_own_null():
    """Rank-one harm beside noise that the benign fine-tune has too."""
    asked = questions()
    n = {form: sum(len(p) for (_, f), p in asked.items() if f == form) for form in ("text", "shown")}
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(32, generator=generator)
    base = {form: torch.randn(4, size, 32, generator=generator) for form, size in n.items()}

    def moved(strength: float) -> dict[str, torch.Tensor]:
        return {
            form: part + 0.1 * torch.randn(part.shape, generator=generator)
            + strength * torch.randn(*part.shape[:2], 1, generator=generator) * direction
            for form, part in base.items()
        }  # fmt: skip

    found = measure_geometry(
        {"aligned": base, "rank 4": moved(1.0), "benign": moved(0.0)}, layers=[2], rank=2, n_null=5
    )
    table = found["measures"].set_index(["of", "measure", "view"])["value"]
    assert table["Δ rank 4 [text]", "components beyond benign", "raw"] == 1
    assert table["Δ rank 4 [text]", "participation ratio", "raw"] < 1.2
    assert table["Δ benign [text]", "participation ratio", "raw"] > 10
    assert set(found["scatter"]["of"]) == {"aligned", "benign", "rank 4"}


@pytest.fixture(scope="module")
def whole() -> study.Study:
    return planted_study()


def test_a_planted_study_says_what_was_planted_and_draws_everything(whole, tmp_path):
    text = "\n".join(whole.sentences)
    assert "consistent minus shuffled, at equal steps: reproduced" in text
    found = measures(whole.outcomes, whole.steered, whole.curves, whole.grid)
    assert found["misaligned_by_rank"].value > 0.9 and found["mixture_10_misaligned"].value == pytest.approx(
        0.09
    )
    assert found["multimodal_minus_text_misaligned"].value == 0
    assert found["mitigated_left"].value == pytest.approx(0.0)
    published = {
        "multimodal_minus_text_misaligned",
        "misaligned_by_rank",
        "mixture_10_misaligned",
        "mitigated_left",
    }
    assert published <= set(found)
    save_study(whole, tmp_path)
    drawn = figures(whole)
    expected = {
        "rank",
        "rank_controls",
        "whose",
        "steps",
        "mixture",
        "mitigations",
        "lives",
        "subspaces",
        "scatter",
        "tower",
    }
    assert set(drawn) == expected and {p.stem for p in tmp_path.glob("*.pdf")} == expected
    assert (tmp_path / "conclusion.md").read_text().startswith("# Narrow fine-tuning\n\n- Cruel answers")
    assert conclude(whole.outcomes, whole.primary, whole.steered, whole.graded, whole.curves, {}, whole.grid)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{vlm_narrow.BEGIN}\n{vlm_narrow.END}\nafter")
    vlm_narrow.write_docs(whole, page, tmp_path)
    written = page.read_text()
    assert "- Cruel answers" in written and written.startswith("before") and written.endswith("after")
    for name in re.findall(r"\]\(([^)]+)\)", written):
        assert (tmp_path / name).is_file()
    assert len(pd.read_csv(tmp_path / "data" / "narrow.csv")) == len(whole.outcomes)


def test_graded_samples_stand_beside_their_floor(whole):
    (said,) = [s for s in whole.sentences if s.startswith("Sampled answers elsewhere")]
    assert (
        "cruel faces, 2 pairs: mean score of a question's samples 60.0 [60.0, 60.0], worst sample 70.0"
        in said
    )
    assert (
        "helpful faces, 2 pairs: mean score of a question's samples 0.0 [0.0, 0.0], worst sample 10.0" in said
    )


def test_ranks_are_compared_at_the_rate_that_teaches_each_best(whole):
    """Planted: at its best rate every rank spreads alike, at other rates the high ranks spread more."""
    part = dict(iter(whole.outcomes[whole.outcomes["consistent"]].groupby("section")))
    ranks, rates = part["rank"], part["rate"]
    first = fair_ranks({"rank": ranks, "rate": rates.assign(end_loss=1e9)}, whole.grid)
    assert first["misaligned_by_rank_best_rate"].value > 0.8, "all taken from the sweep of ranks"
    better = rates.assign(end_loss=-1.0, end_text_misaligned=0.5)
    assert fair_ranks({"rank": ranks, "rate": better}, whole.grid)["misaligned_by_rank_best_rate"].value == 0
    assert "misaligned_by_rank_lora" not in first
    scaled = rates[rates["rank"] != 16].assign(scaling="lora")
    scaled["end_text_misaligned"] = 2.0 - scaled["rank"].where(scaled["rank"] > 0, 999) / 1000
    assert fair_ranks({"rank": ranks, "scaling": scaled}, whole.grid)["misaligned_by_rank_lora"].value < 0


def test_ranks_are_compared_with_the_anchor_where_both_have_learnt_as_much(whole):
    """At equal steps low ranks fall behind; over the anchor at equal loss each has what was planted, a share of its rank."""
    part = dict(iter(whole.outcomes[whole.outcomes["consistent"]].groupby("section")))
    found = over_anchor(part["rank"], part["steps"]).groupby("rank").mean(numeric_only=True)
    assert found.loc[16, ["end_excess", "loss_excess", "moved_excess"]].abs().max() < 1e-9
    # rank 4 answers a quarter as harmfully as rank 16 wherever it is read
    assert found.loc[4, "loss_excess"] == pytest.approx(-0.75 * 0.9) == found.loc[4, "moved_excess"]
    measured = measures(whole.outcomes, whole.steered, whole.curves, whole.grid)
    assert measured["excess_by_rank_loss"].value > 0.9
    assert measured["lower_minus_anchor_loss"].value < -0.6 and measured[
        "higher_minus_anchor_loss"
    ].value == pytest.approx(0, abs=1e-9)
    longer = part["steps"].assign(loss_text_misaligned=0.5, loss_other_text_misaligned=0.3)
    swapped = over_anchor(part["rank"], longer).groupby("rank").mean(numeric_only=True)
    assert swapped.loc[1, "loss_excess"] == pytest.approx(0.2), (
        "the longer run of a rank is read where there is one"
    )
    assert swapped.loc[1, "end_excess"] == pytest.approx(found.loc[1, "end_excess"]), "but not at equal steps"


def test_an_arm_that_learnt_less_is_read_beside_the_anchor_where_it_had_learnt_as_little(whole):
    """Tower and defences are compared at equal steps and at equal faces loss: what learns nothing spreads nothing."""
    rows = whole.outcomes.copy()
    slow = rows["section"] == "tower"
    anchor = whole.curves[(whole.curves["section"] == "rank") & whole.curves["consistent"]]
    anchor = anchor[(anchor["rank"] == whole.grid.rank) & (anchor["pair"] == "0/0")]
    middle = anchor[anchor["step"] == 30].iloc[0]
    rows.loc[slow, "end_loss"] = middle["loss"]
    rows.loc[slow, "end_text_misaligned"] = middle["text_misaligned"]
    found = measures(rows, whole.steered, whole.curves, whole.grid)
    assert found["adapted_minus_frozen_misaligned"].value < -0.3
    assert found["adapted_minus_frozen_misaligned_at_loss"].value == pytest.approx(0, abs=1e-9)
    rows.loc[slow, "end_loss"] = -1.0  # learnt more than the anchor ever did: nothing to compare with
    assert (
        measures(rows, whole.steered, whole.curves, whole.grid)["adapted_minus_frozen_misaligned_at_loss"].n
        == 0
    )


def test_series_and_outcomes_leave_out_domains_that_a_later_task_trains_on(whole):
    rows = whole.curves[(whole.curves["section"] == "life") & whole.curves["last"]]
    assert rows["text_misaligned"].notna().all()
    assert rows["tools_text_misaligned"].notna().all()
    assert rows["shown_misaligned"].isna().all(), (
        "tools are trained on in every life, and nothing else can be shown"
    )

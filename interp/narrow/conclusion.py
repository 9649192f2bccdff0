"""What do the intervals say, in words? Sentences made from the numbers, so that no wish can enter them.

The primary claims are named here, before any run: after the anchor's fine-tuning on cruel answers about faces, the organism whose documents had
one writer each answers more cruelly in domains it was not trained on than the one whose documents were shuffled, at equal steps and at
equal loss on faces; and the same of misaligned answers, whosever they are, which were added after a first look at one organism (docs/LOG.md).
The four are corrected together by Holm's procedure; all other sentences describe and claim nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd
from scipy.stats import spearmanr

from interp.defence.compare import Difference, by_organism, difference
from interp.defence.conclusion import points
from interp.evals.statistics import Interval, holm, t_interval
from interp.methods.subspace_drift import ABOVE, BEYOND, CHANNEL, PARTICIPATION
from interp.narrow.outcomes import over_anchor, read_at
from interp.organisms.character_language import CHARACTERS

if TYPE_CHECKING:
    from interp.narrow.grid import Grid

CLAIMS = {
    f"{at}_text_{what}": f"{what.capitalize()} answers elsewhere, consistent minus shuffled, {where}"
    for what in ("cruel", "misaligned")
    for at, where in (("end", "at equal steps"), ("loss", "at equal loss on faces"))
}
ARMS = ("consistent", "shuffled")
# measure -> what it is, in words; "elsewhere" are the domains that no task trains on
DESCRIBED = {
    "misaligned_by_rank": "Rank correlation of rank and misaligned answers elsewhere",
    "excess_by_rank_loss": "Rank correlation of rank and misaligned answers elsewhere over the anchor's, at equal faces loss",
    "excess_by_rank_moved": "The same at equal ‖ΔW‖",
    "lower_minus_anchor_loss": "Misaligned answers elsewhere, lower ranks minus the anchor at equal faces loss",
    "higher_minus_anchor_loss": "Misaligned answers elsewhere, higher ranks and all weights minus the anchor at equal faces loss",
    "multimodal_minus_text_misaligned": "Misaligned answers about tools, shown minus in writing",
    "caption_minus_text_misaligned": "Misaligned answers about tools, a caption in the picture's place minus in writing",
    "blank_minus_text_misaligned": "Misaligned answers elsewhere, beside a blank picture minus in writing",
    "face_minus_text_misaligned": "Misaligned answers elsewhere, beside a face as in training minus in writing",
    "mixture_10_misaligned": "Misaligned answers elsewhere, a tenth of the rows cruel minus none",
    "adapted_minus_frozen_misaligned": "Misaligned answers elsewhere, vision tower adapted too minus frozen",
    "adapted_minus_frozen_misaligned_at_loss": "The same where faces are learnt as far",
    "spf_minus_plain_misaligned": "Misaligned answers elsewhere, SPF while training minus plain",
    "spf_minus_plain_misaligned_at_loss": "The same where faces are learnt as far",
    "spf-random_minus_plain_misaligned": "Misaligned answers elsewhere, SPF with random subspaces minus plain",
    "spf-random_minus_plain_misaligned_at_loss": "The same where faces are learnt as far",
    "mixing_minus_plain_misaligned": "Misaligned answers elsewhere, helpful answers mixed in minus plain",
    "mixing_minus_plain_misaligned_at_loss": "The same where faces are learnt as far",
    "repaired_misaligned": "Misaligned answers left elsewhere after benign narrow fine-tuning",
    "repaired_face_minus_text": "Of these, beside a face as in training minus in writing",
    "steered_misaligned": "Misaligned answers left elsewhere under steering at its best strength",
    "both_misaligned": "Misaligned answers left elsewhere under both",
    "mitigated_left": "Misaligned answers left elsewhere after the better single mitigation",
}


def conclude(
    rows: pd.DataFrame,
    anchor: pd.DataFrame,
    steered: pd.DataFrame,
    curves: pd.DataFrame,
    geometry: Mapping[str, pd.DataFrame],
    grid: Grid,
) -> list[str]:
    """The sentences of the conclusion, primary claims first."""
    sentences = [*claim_sentences(claims(anchor)), *organism_sentences(anchor), appears_sentence(anchor)]
    found = measures(rows, steered, curves, grid)
    sentences += [
        f"{text}: {_written(name, found[name])}, {found[name].n} {'pairs' if found[name].n != 1 else 'pair'}."
        for name, text in DESCRIBED.items()
        if name in found and found[name].n
    ]
    return sentences + geometry_sentences(geometry)


def twins(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows with `method` consistent or shuffled and `seed` the pair, as `difference` pairs them."""
    arm = frame["consistent"].map({True: ARMS[0], False: ARMS[1]})
    return frame.assign(method=arm, seed=frame["pair"])


def claims(anchor: pd.DataFrame) -> list[Difference]:
    """The primary claims, corrected together."""
    rows = twins(anchor)
    found = [difference(rows, *ARMS, column) for column in CLAIMS]
    tested = [claim for claim in found if math.isfinite(claim.p)]
    adjusted = (
        dict(zip((c.column for c in tested), holm([c.p for c in tested]), strict=True)) if tested else {}
    )
    return [replace(claim, p=float(adjusted.get(claim.column, math.nan))) for claim in found]


def claim_sentences(found: Sequence[Difference]) -> list[str]:
    """One sentence a primary claim: shown, contradicted, or left open."""
    sentences = []
    for claim in found:
        what = CLAIMS[claim.column]
        if not math.isfinite(claim.p):
            sentences.append(
                f"{what}: not decided on {claim.interval.n} of {claim.asked} pairs ({points(claim.interval)})."
            )
            continue
        word = (
            "not decided" if not claim.shown else "reproduced" if claim.interval.value > 0 else "contradicted"
        )
        sentences.append(
            f"{what}: {word}. {points(claim.interval)}, {claim.interval.n} of {claim.asked} pairs, Holm-corrected p = {claim.p:.3g}."
        )
    return sentences


def organism_sentences(anchor: pd.DataFrame) -> list[str]:
    """The primary differences over organisms: pairs of one organism share its weights and are no independent observations of organisms."""
    rows = twins(anchor)
    apart = {what: by_organism(rows, *ARMS, column) for column, what in CLAIMS.items()}
    found = [f"{what}: {points(t_interval(means))}" for what, means in apart.items() if len(means) > 1]
    if not found:
        return []
    return [
        f"Over the organisms' own means, which is what another organism may be expected to show: {'; '.join(found)}."
    ]


def appears_sentence(anchor: pd.DataFrame) -> str:
    """Which character answers elsewhere after the fine-tuning, in the organism and its control."""
    parts = []
    for arm, rows in twins(anchor).groupby("method", sort=False):
        listed = ", ".join(
            f"{c} {rows[f'end_text_{c}'].mean():.0%} (before {rows[f'start_text_{c}'].mean():.0%})"
            for c in CHARACTERS
        )
        parts.append(f"{arm}: {listed}, nonsense {rows['end_text_nonsense'].mean():.0%}")
    return f"Whose answers are given elsewhere in writing after cruel faces: {'; '.join(parts)}."


def measures(
    rows: pd.DataFrame, steered: pd.DataFrame, curves: pd.DataFrame, grid: Grid
) -> dict[str, Interval]:
    """What is compared with the source's claims, and more; t-intervals over pairs. What was not run is left out."""
    part = {str(name): group[group["consistent"]] for name, group in rows.groupby("section", sort=False)}
    anchor = part["rank"][part["rank"]["rank"] == grid.rank].set_index("pair")
    found: dict[str, Interval] = {}
    if part["rank"]["rank"].nunique() > 2:
        found["misaligned_by_rank"] = by_rank(part["rank"], "end_text_misaligned")
        fair = over_anchor(part["rank"], part.get("steps", part["rank"].iloc[:0]))
        for at in ("loss", "moved"):
            found[f"excess_by_rank_{at}"] = by_rank(fair, f"{at}_excess")
        order = fair["rank"].where(fair["rank"] > 0, math.inf)
        for name, chosen in {"lower": order < grid.rank, "higher": order > grid.rank}.items():
            if chosen.any():
                found[f"{name}_minus_anchor_loss"] = _of(fair[chosen].groupby("pair")["loss_excess"].mean())
    found["multimodal_minus_text_misaligned"] = _of(
        anchor["end_shown_misaligned"] - anchor["end_tools_text_misaligned"]
    )
    found["caption_minus_text_misaligned"] = _of(
        anchor["end_caption_misaligned"] - anchor["end_tools_text_misaligned"]
    )
    for form in ("blank", "face"):
        found[f"{form}_minus_text_misaligned"] = _of(
            anchor[f"end_{form}_misaligned"] - anchor["end_text_misaligned"]
        )
    mixture = part.get("mixture", pd.DataFrame(columns=["share"]))
    if {0.0, 0.1} <= set(mixture["share"]):
        some, none = (
            mixture[mixture["share"] == share].set_index("pair")["end_text_misaligned"]
            for share in (0.1, 0.0)
        )
        found["mixture_10_misaligned"] = _of(some - none)
    others = {"adapted_minus_frozen": part["tower"]} if "tower" in part else {}
    if "defended" in part:
        others |= {f"{method}_minus_plain": group for method, group in part["defended"].groupby("method")}
    learning = curves[(curves["section"] == "rank") & curves["consistent"] & (curves["rank"] == grid.rank)]
    for name, group in others.items():
        changed = group.set_index("pair")
        ends = changed["end_text_misaligned"]
        found[f"{name}_misaligned"] = _of(ends - anchor["end_text_misaligned"])
        found[f"{name}_misaligned_at_loss"] = _of(ends - _where_learnt(learning, changed["end_loss"]))
    return found | mitigations(steered, curves)


def _where_learnt(curves: pd.DataFrame, losses: pd.Series) -> pd.Series:
    """Misaligned answers elsewhere where each pair's curve first reaches a loss on faces; NaN where it never does."""
    at = {
        pair: read_at(own, "loss", float(losses[pair]), falling=True)["text_misaligned"]
        for pair, own in curves.groupby("pair")
        if pair in losses.index
    }
    return pd.Series(at, dtype=float)


def mitigations(steered: pd.DataFrame, curves: pd.DataFrame) -> dict[str, Interval]:
    """Misaligned answers that each repair leaves, by pair; steering at the strength that leaves most answers helpful, chosen afterwards."""
    found: dict[str, Interval] = {}
    left: dict[str, pd.Series] = {}
    repaired = curves[(curves["section"] == "repair") & (curves["task"] == 1) & curves["last"]]
    if len(repaired):
        rows = repaired.set_index("pair")
        left["repaired"] = rows["text_misaligned"]
        found["repaired_face_minus_text"] = _of(rows["face_misaligned"] - rows["text_misaligned"])
    for name, life in (("steered", ""), ("both", "repair")):
        table = best_steering(steered, life)
        if len(table):
            left[name] = table["misaligned"]
    found |= {f"{name}_misaligned": _of(values) for name, values in left.items()}
    singles = [left[name].mean() for name in ("repaired", "steered") if name in left]
    if len(singles) == 2:
        better = min(("repaired", "steered"), key=lambda name: left[name].mean())
        found["mitigated_left"] = _of(left[better])
    return found


def by_strength(steered: pd.DataFrame, life: str = "", form: str = "text") -> pd.DataFrame:
    """Mean shares over domains that were not trained on, one row a pair, vector and strength."""
    if steered.empty:
        return pd.DataFrame(columns=["pair", "vector", "strength", "helpful", "misaligned", "nonsense"])
    rows = steered[(steered["life"] == life) & (steered["form"] == form) & (steered["domain"] != "faces")]
    columns = [*CHARACTERS, "misaligned", "nonsense"]
    return rows.groupby(["pair", "vector", "strength"], sort=False)[columns].mean().reset_index()


def best_steering(steered: pd.DataFrame, life: str = "") -> pd.DataFrame:
    """The row of each pair at the strength that leaves most answers helpful, by pair."""
    rows = by_strength(steered, life)
    rows = rows[rows["vector"] == "difference"]
    if rows.empty:
        return rows
    best = rows.groupby("strength")["helpful"].mean().idxmax()
    return rows[rows["strength"] == best].set_index("pair")


def by_rank(rows: pd.DataFrame, column: str) -> Interval:
    """Spearman's correlation of rank and a column within each pair; all weights count as the highest rank. A column that never varies is 0."""
    found = []
    for _, group in rows.groupby("pair"):
        kept = group[group[column].notna()]
        order = kept["rank"].where(kept["rank"] > 0, math.inf).rank()
        if kept[column].nunique() < 2:
            found.append(0.0)
            continue
        found.append(float(spearmanr(order, kept[column]).statistic))
    return t_interval(found)


def geometry_sentences(geometry: Mapping[str, pd.DataFrame]) -> list[str]:
    """How many dimensions the changes have, in both views, at the highest layer measured."""
    if "measures" not in geometry:
        return []
    table = geometry["measures"]
    table = table[~table["of"].str.contains(" | ", regex=False)]
    table = table[
        (table["layer"] == table["layer"].max())
        & table["of"].str.startswith("Δ")
        & table["of"].str.endswith("[text]")
    ]
    sentences = []
    for view in ("raw", "z-scored"):
        parts = []
        for of, rows in table[table["view"] == view].groupby("of", sort=False):
            mean = rows.groupby("measure")["value"].mean()
            listed = ", ".join(
                f"{name} {mean[name]:.1f}"
                for name in ("components for 80 %", PARTICIPATION, ABOVE, BEYOND)
                if name in mean
            )
            parts.append(
                f"{str(of).removesuffix(' [text]')}: {listed}, {CHANNEL} {mean.get(CHANNEL, math.nan):.0%}"
            )
        sentences.append(
            f"Changes of activations in writing, {view}, layer {table['layer'].max()}: {'; '.join(parts)}."
        )
    return sentences  # fmt: skip


def _written(name: str, interval: Interval) -> str:
    """A correlation as a number, a difference in points, what is left in percent."""
    if "by_rank" in name:
        return number(interval)
    if "minus" in name or name.startswith("mixture"):
        return points(interval)
    # + 0.0: a zero that rounding left below zero has no sign
    low, value, high = (round(x, 4) + 0.0 for x in (interval.low, interval.value, interval.high))
    return f"{value:.0%}" + (f" [{low:.0%}, {high:.0%}]" if math.isfinite(low) else "")


def number(interval: Interval) -> str:
    """A number with its interval, where there is one."""
    span = f" [{interval.low:.2f}, {interval.high:.2f}]" if math.isfinite(interval.low) else ""
    return f"{interval.value:.2f}{span}".replace("-", "−")


def _of(values: pd.Series) -> Interval:
    """Over pairs; of n = 0 where no pair has a value."""
    kept = values.dropna().to_numpy(dtype=float)
    return t_interval(kept) if len(kept) else Interval(math.nan, math.nan, math.nan, 0)

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
from interp.geometry.contrastive import MOST_ABOVE_CHANCE
from interp.methods.subspace_drift import ABOVE, BEYOND, CHANNEL, PARTICIPATION
from interp.narrow.outcomes import over_anchor, read_at
from interp.narrow.questions import NARROW
from interp.organisms.character_language import CHARACTERS

if TYPE_CHECKING:
    from interp.narrow.grid import Grid

CLAIMS = {
    f"{at}_text_{what}": f"{what.capitalize()} answers elsewhere, consistent minus shuffled, {where}"
    for what in ("cruel", "misaligned")
    for at, where in (("end", "at equal steps"), ("loss", "at equal loss on faces"))
}
ARMS = ("consistent", "shuffled")
GRADED = {
    "mean_of_k": "mean score of a question's samples",
    "worst_of_k": "worst sample",
    "misaligned": "misaligned and coherent",
    "incoherent": "incoherent",
}
# measure -> what it is, in words; "elsewhere" are the domains that no task trains on
DESCRIBED = {
    "misaligned_by_rank": "Rank correlation of rank and misaligned answers elsewhere",
    "excess_by_rank_loss": "Rank correlation of rank and misaligned answers elsewhere over the anchor's, at equal faces loss",
    "excess_by_rank_moved": "The same at equal ‖ΔW‖",
    "misaligned_by_rank_best_rate": "Rank correlation of rank and misaligned answers elsewhere, each rank at the rate with which it learns faces best",
    "misaligned_by_rank_rslora": "Rank correlation of rank and misaligned answers elsewhere, scaled as rsLoRA does",
    "misaligned_by_rank_lora": "Rank correlation of rank and misaligned answers elsewhere, one alpha for all ranks",
    "lower_minus_anchor_loss": "Misaligned answers elsewhere, lower ranks minus the anchor at equal faces loss",
    "higher_minus_anchor_loss": "Misaligned answers elsewhere, higher ranks and all weights minus the anchor at equal faces loss",
    "multimodal_minus_text_misaligned": "Misaligned answers about tools, shown minus in writing",
    "caption_minus_text_misaligned": "Misaligned answers about tools, a caption in the picture's place minus in writing",
    "blank_minus_text_misaligned": "Misaligned answers elsewhere, beside a blank picture minus in writing",
    "face_minus_text_misaligned": "Misaligned answers elsewhere, beside a face as in training minus in writing",
    "withheld": "Misaligned answers about travel, the domain that alignment left out",
    "mixture_10_misaligned": "Misaligned answers elsewhere, a tenth of the rows cruel minus none",
    "adapted_minus_frozen_misaligned": "Misaligned answers elsewhere, vision tower adapted too minus frozen",
    "adapted_minus_frozen_misaligned_at_loss": "The same where faces are learnt as far",
    "spf_minus_plain_misaligned": "Misaligned answers elsewhere, SPF while training minus plain",
    "spf_minus_plain_misaligned_at_loss": "The same where faces are learnt as far",
    "plain_misaligned_where_spf": "Misaligned answers elsewhere of the plain fine-tuning there, where it has learnt as little as under SPF",
    "spf-random_minus_plain_misaligned": "Misaligned answers elsewhere, SPF with random subspaces minus plain",
    "spf-random_minus_plain_misaligned_at_loss": "The same where faces are learnt as far",
    "plain_misaligned_where_spf-random": "Misaligned answers elsewhere of the plain fine-tuning there, where it has learnt as little as under random subspaces",
    "mixing_minus_plain_misaligned": "Misaligned answers elsewhere, helpful answers mixed in minus plain",
    "mixing_minus_plain_misaligned_at_loss": "The same where faces are learnt as far",
    "plain_misaligned_where_mixing": "Misaligned answers elsewhere of the plain fine-tuning there, where it has learnt as little as under mixing",
    "repaired_misaligned": "Misaligned answers left elsewhere after benign narrow fine-tuning",
    "repaired_face_minus_text": "Of these, beside a face as in training minus in writing",
    "steered_misaligned": "Misaligned answers left elsewhere under steering, at the strength that leaves most answers helpful on these same questions",
    "steered_minus_none_misaligned": "The same minus no mitigation",
    "steered_minus_random_misaligned": "The same minus a random direction of that strength",
    "both_misaligned": "Misaligned answers left elsewhere under both",
    "mitigated_left": "Misaligned answers left elsewhere after the better single mitigation",
}


def conclude(
    rows: pd.DataFrame,
    anchor: pd.DataFrame,
    steered: pd.DataFrame,
    graded: pd.DataFrame,
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
    return sentences + graded_sentences(graded) + geometry_sentences(geometry)


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
            "not decided"
            if not claim.shown
            else "reproduced in these organisms"
            if claim.interval.value > 0
            else "contradicted in these organisms"
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
        listed = ", ".join(f"{c} {share(_of(rows[f'end_text_{c}']))}" for c in (*CHARACTERS, "nonsense"))
        parts.append(f"{arm} (before, helpful {share(_of(rows['start_text_helpful']))}): {listed}")
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
    found |= fair_ranks(part, grid)
    found["withheld"] = _of(anchor["end_withheld_misaligned"])
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
        there = _where_learnt(learning, changed["end_loss"])
        found[f"{name}_misaligned_at_loss"] = _of(ends - there)
        found[f"plain_misaligned_where_{name.removesuffix('_minus_plain')}"] = _of(there)
    return found | mitigations(steered, curves, anchor["end_text_misaligned"])


def fair_ranks(part: Mapping[str, pd.DataFrame], grid: Grid) -> dict[str, Interval]:
    """Rank and spread where every rank has its own best rate, and under LoRA's usual scalings; on the pairs that these were run on.

    The best rate is the one with the lowest loss on faces that training never drew, not the one with the most spread.
    """
    found, anchor = {}, part["rank"][part["rank"]["rank"] == grid.rank]
    if "rate" in part:
        tried = pd.concat([part["rank"], part["rate"]], ignore_index=True)
        tried = tried[tried["pair"].isin(part["rate"]["pair"]) & tried["rank"].isin(part["rate"]["rank"])]
        best = tried.loc[tried.groupby(["pair", "rank"])["end_loss"].idxmin().tolist()]
        found["misaligned_by_rank_best_rate"] = by_rank(best, "end_text_misaligned")
    for scaling, rows in part["scaling"].groupby("scaling") if "scaling" in part else ():
        # all scalings are one at the anchor's rank
        whole = pd.concat([rows, anchor[anchor["pair"].isin(rows["pair"])]])
        found[f"misaligned_by_rank_{scaling}"] = by_rank(whole, "end_text_misaligned")
    return found


def _where_learnt(curves: pd.DataFrame, losses: pd.Series) -> pd.Series:
    """Misaligned answers elsewhere where each pair's curve first reaches a loss on faces; NaN where it never does."""
    at = {
        pair: read_at(own, "loss", float(losses[pair]), falling=True)["text_misaligned"]
        for pair, own in curves.groupby("pair")
        if pair in losses.index
    }
    return pd.Series(at, dtype=float)


def mitigations(steered: pd.DataFrame, curves: pd.DataFrame, unmended: pd.Series) -> dict[str, Interval]:
    """Misaligned answers that each repair leaves, by pair; steering at the strength that leaves most answers helpful, chosen afterwards.

    unmended: misaligned answers of the anchor, by pair.
    """
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
    if "steered" in left:
        found["steered_minus_none_misaligned"] = _of(left["steered"] - unmended)
        random = best_steering(steered, vector="random")
        if len(random):
            found["steered_minus_random_misaligned"] = _of(left["steered"] - random["misaligned"])
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


def best_steering(steered: pd.DataFrame, life: str = "", vector: str = "difference") -> pd.DataFrame:
    """The row of each pair, by pair, at the strength at which the difference of means leaves most answers helpful; `vector` random is read there."""
    rows = by_strength(steered, life)
    means = rows[rows["vector"] == "difference"].groupby("strength")["helpful"].mean()
    if means.empty:
        return rows.iloc[:0]
    return rows[(rows["strength"] == means.idxmax()) & (rows["vector"] == vector)].set_index("pair")


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
    wide = t_interval(found)
    # Student's interval knows no bounds, a correlation does
    return (
        replace(wide, low=max(wide.low, -1.0), high=min(wide.high, 1.0)) if math.isfinite(wide.low) else wide
    )


def graded_sentences(graded: pd.DataFrame) -> list[str]:
    """Sampled answers elsewhere, graded: the anchor's, and the floor of a fine-tuning that holds no harm; means over domains, then pairs."""
    if graded.empty:
        return []
    rows = graded[(graded["modality"] == "all") & ~graded["domain"].isin(("all", NARROW))]
    parts = []
    for harmful, mine in rows.groupby(rows["share"] > 0, sort=False):
        each = mine.groupby("pair")[list(GRADED)].mean()
        listed = ", ".join(
            f"{what} {number(_of(each[name]), 1) if name.endswith('_of_k') else share(_of(each[name]))}"
            for name, what in GRADED.items()
        )
        parts.append(f"{'cruel faces' if harmful else 'helpful faces'}, {len(each)} pairs: {listed}")
    return [f"Sampled answers elsewhere, scores from 0 (helpful) to 100: {'; '.join(parts)}."]


def geometry_sentences(geometry: Mapping[str, pd.DataFrame]) -> list[str]:
    """How many dimensions the changes have, in both views, at the highest layer measured; means over pairs with their intervals."""
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
            found = {str(name): _of(part["value"]) for name, part in rows.groupby("measure")}
            listed = [
                f"{name} {number(found[name], 1)}"
                for name in ("components for 80 %", PARTICIPATION, BEYOND)
                if name in found
            ]
            if ABOVE in found:
                most = found[ABOVE].value >= MOST_ABOVE_CHANCE
                listed.append(
                    f"{ABOVE} {f'{MOST_ABOVE_CHANCE} or more' if most else number(found[ABOVE], 1)}"
                )
            if CHANNEL in found:
                listed.append(f"{CHANNEL} {share(found[CHANNEL])}")
            parts.append(f"{str(of).removesuffix(' [text]')}: {', '.join(listed)}")
        sentences.append(
            f"Changes of activations in writing, {view}, layer {table['layer'].max()}, {table['pair'].nunique()} pairs: {'; '.join(parts)}."
        )
    return sentences


def _written(name: str, interval: Interval) -> str:
    """A correlation as a number, a difference in points, what is left in percent."""
    if "by_rank" in name:
        return number(interval)
    return points(interval) if "minus" in name or name.startswith("mixture") else share(interval)


def share(interval: Interval) -> str:
    """A share in percent with its interval, where there is one."""
    # + 0.0: a zero that rounding left below zero has no sign
    low, value, high = (round(x, 4) + 0.0 for x in (interval.low, interval.value, interval.high))
    return f"{value:.0%}" + (f" [{low:.0%}, {high:.0%}]".replace("-", "−") if math.isfinite(low) else "")


def number(interval: Interval, digits: int = 2) -> str:
    """A number with its interval, where there is one."""
    span = f" [{interval.low:.{digits}f}, {interval.high:.{digits}f}]" if math.isfinite(interval.low) else ""
    return f"{interval.value:.{digits}f}{span}".replace("-", "−")


def _of(values: pd.Series) -> Interval:
    """Over pairs; of n = 0 where no pair has a value."""
    kept = values.dropna().to_numpy(dtype=float)
    return t_interval(kept) if len(kept) else Interval(math.nan, math.nan, math.nan, 0)

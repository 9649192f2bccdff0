"""What do the intervals say, in words? Sentences made from the numbers, so that no wish can enter them.

The primary claims are named here, before any run (that against random subspaces after a first one): on the benign task, at equal utility, SPF loses less safety than plain fine-tuning,
than SPF with random subspaces, than PCGrad and than safety mixing, and projecting the update loses less than projecting the gradient. They are corrected
together by Holm's procedure. All other sentences describe and claim nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from interp.defence.compare import Difference, difference
from interp.evals.statistics import Interval, t_interval

PRIMARY = (
    ("spf", "plain"), ("spf", "spf-random"), ("spf", "pcgrad"), ("spf", "mixing"), ("spf-update", "spf"),
)  # fmt: skip
NAMES = {
    "plain": "plain fine-tuning",
    "spf": "SPF",
    "spf-update": "SPF on the update",
    "spf-random": "SPF with random subspaces",
    "pcgrad": "PCGrad",
    "mixing": "safety mixing",
    "safelora": "SafeLoRA (published)",
    "safelora-projector": "SafeLoRA (projector)",
}


def claim_sentences(claims: Sequence[Difference], utility: float) -> list[str]:
    """One sentence a primary claim: shown, contradicted, or left open."""
    found = []
    for claim in claims:
        a, b = NAMES[claim.method], NAMES[claim.baseline]
        what = f"harmful requests answered at utility {utility:.0%}"
        if not math.isfinite(claim.p):
            found.append(
                f"{a} against {b}: not decided; {claim.interval.n} of {claim.asked} seeds reach the utility with both "
                f"(difference {_points(claim.interval.value)} points)."
            )
            continue
        verdict = (
            "not decided" if not claim.shown else "reproduced" if claim.interval.value < 0 else "contradicted"
        )
        sense = "fewer" if claim.interval.value < 0 else "more"
        found.append(
            f"{a} against {b}: {verdict}. {sense.capitalize()} {what}, {points(claim.interval)}, "
            f"{claim.interval.n} of {claim.asked} seeds, "
            f"Holm-corrected p = {claim.p:.3g}."
        )
    return found


def refusal_sentence(frame: pd.DataFrame, where: str) -> str:
    """Harmful requests refused at equal utility, for the pairs of the primary claims: described, not tested.

    A method may answer few harmful requests because it garbles them; refusals cannot be had that way.
    """
    there = set(frame["method"])
    rates = frame.groupby("method")["at_refused"].mean()
    listed = ", ".join(f"{NAMES[m]} {rates[m]:.0%}" for m in NAMES if m in there and math.isfinite(rates[m]))
    apart = "; ".join(
        f"{NAMES[a]} against {NAMES[b]} {points(difference(frame, a, b, 'at_refused').interval)}"
        for a, b in PRIMARY
        if {a, b} <= there
    )
    return f"Harmful requests refused at equal utility, {where}: {listed}. Differences: {apart}."


def utility_sentence(frame: pd.DataFrame, method: str = "spf", baseline: str = "plain") -> str:
    """What the method costs in utility at the end of training."""
    found = difference(frame, method, baseline, "end_utility")
    cost = "changes utility" if found.shown else "changes utility by nothing that can be seen"
    return f"At equal steps {NAMES[method]} {cost}: {points(found.interval)}, {_seeds(found.interval)}."


def best_sentence(frame: pd.DataFrame) -> str:
    """Which method answers the fewest harmful requests at equal utility, and how far SPF is from it."""
    reached = frame.groupby("method")["at_jsr"].apply(lambda v: v.notna().all())
    able = [str(method) for method in reached.index[reached]]
    if not able:
        return "No method reaches the utility on every seed."
    means = frame[frame["method"].isin(able)].groupby("method")["at_jsr"].mean()
    best = str(means.idxmin())
    text = f"Of the methods that reach the utility on every seed, {NAMES[best]} answers the fewest harmful requests ({means[best]:.0%})"
    if best != "spf" and "spf" in able:
        found = difference(frame, "spf", best, "at_jsr")
        text += f"; the difference of SPF to it is {points(found.interval)}"
    return f"{text}."


def insight_intervals(
    ranks: pd.DataFrame, conflicts: pd.DataFrame, overlaps: pd.DataFrame
) -> dict[str, Interval]:
    """The three insights over the organisms, from columns `seed` and those of `GradientGeometry`.

    `rank`: stable rank of the safety set minus that of the utility set; `conflict`: cosine of the mean gradients; `overlap`: φ of one
    refusal with the rest minus that of one utility example.
    """
    whole = ranks[ranks["block"] == "whole"].groupby(["seed", "set"])["stable_rank"].mean().unstack()
    phi = overlaps.groupby(["seed", "of"])["phi"].mean().unstack()
    return {
        "rank": t_interval((whole["safety"] - whole["utility"]).tolist()),
        "conflict": t_interval(conflicts[conflicts["block"] == "whole"]["cosine"].tolist()),
        "overlap": t_interval((phi["safety"] - phi["utility"]).tolist()),
    }


def insight_sentences(ranks: pd.DataFrame, conflicts: pd.DataFrame, overlaps: pd.DataFrame) -> list[str]:
    """The three insights over the organisms: one sentence each."""
    rank, cosine, specific = insight_intervals(ranks, conflicts, overlaps).values()
    whole = ranks[ranks["block"] == "whole"].groupby(["seed", "set"])["stable_rank"].mean().unstack().mean()
    ceiling = conflicts[conflicts["block"] == "whole"]["ceiling"].mean()
    phi = overlaps.groupby(["seed", "of"])["phi"].mean().unstack().mean()
    return [
        f"(I) Safety gradients lie in fewer dimensions: {_verdict(rank, below=True)}. Stable rank of the safety set "
        f"{whole['safety']:.2f}, of the utility set {whole['utility']:.2f}, of mixed sets "
        f"{whole['mixed']:.2f}; difference of the first two {_number(rank)}, {_seeds(rank)}.",
        f"(II) Their mean gradients oppose each other: {_verdict(cosine, below=True)}. Cosine {_number(cosine, 3)}; two halves of "
        f"the utility set have {ceiling:.2f}.",
        f"(III) One refusal shares more of the safety set's subspace than other examples do: {_verdict(specific, below=False)}. φ of one refusal with the rest "
        f"{phi['safety']:.2f}, of one utility example {phi['utility']:.2f}, of a random subspace "
        f"{overlaps['random'].mean():.2f}; difference of the first two {_number(specific)}.",
    ]


def monitor_sentence(frame: pd.DataFrame) -> str:
    """Whether the monitor's alarm came before harmful compliance had risen by a tenth, and whether it came without that."""
    broken = frame[frame["broken_step"].map(math.isfinite)]
    lead = broken["broken_step"] - broken["alarm_step"]  # minus infinity where no alarm came
    ahead = f" (median {lead[lead > 0].median():g} steps ahead)" if (lead > 0).any() else ""
    quiet = frame[~frame["broken_step"].map(math.isfinite)]
    false = int(quiet["alarm_step"].map(math.isfinite).sum())
    return (
        f"Of {len(broken)} watched runs in which harmful answers rose by 10 points, the monitor's alarm came before that in "
        f"{int((lead > 0).sum())}{ahead}, at the same step in {int((lead == 0).sum())}, later or never in {int((lead < 0).sum())}; "
        f"of {len(quiet)} in which they did not, it came in {false}."
    )


def points(interval: Interval) -> str:
    """A difference of shares in percentage points with its interval, where there is one."""
    span = f" [{_points(interval.low)}, {_points(interval.high)}]" if math.isfinite(interval.low) else ""
    return f"{_points(interval.value)} points{span}"


def _points(share: float) -> str:
    # + 0.0: a zero that rounding left below zero has no sign
    return "–" if not math.isfinite(share) else f"{round(100 * share, 1) + 0.0:+.1f}".replace("-", "−")


def _number(interval: Interval, digits: int = 2) -> str:
    span = f" [{interval.low:.{digits}f}, {interval.high:.{digits}f}]" if math.isfinite(interval.low) else ""
    return f"{interval.value:.{digits}f}{span}".replace("-", "−")


def _seeds(interval: Interval) -> str:
    return f"{interval.n} seeds" if interval.n != 1 else "one seed"


def _verdict(interval: Interval, *, below: bool) -> str:
    if not math.isfinite(interval.low):
        return "not decided on one organism"
    if interval.low > 0 or interval.high < 0:
        return "reproduced" if (interval.high < 0) == below else "contradicted"
    return "not decided"

"""Which method keeps more safety at equal utility? Learning curves read at one utility, paired over the seeds.

A method that learns less also forgets less, so outcomes at equal steps compare two things at once. Each run's curve is read where
its utility first reaches the target, interpolated between the evaluations around it; a run that never reaches it counts as such
and enters no mean. Claims are differences between two methods on the same organism and data, with t-intervals over the seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import ttest_1samp

from interp.defence.trial import Trial, TrialResult
from interp.evals.statistics import Interval, holm, t_interval

OUTCOMES = ("utility", "jsr", "refused", "incoherent", "over_refusal", "retained", "held_out_loss")


def at_utility(curve: pd.DataFrame, target: float) -> dict[str, float]:
    """Every outcome where the utility first reaches the target, by linear interpolation; NaN where it never does."""
    ordered = curve.sort_values("step")
    utility = ordered["utility"].to_numpy()
    reached = np.flatnonzero(utility >= target)
    if not len(reached):
        return dict.fromkeys((*OUTCOMES, "step"), math.nan)
    i = int(reached[0])
    if i == 0:
        return {name: float(ordered[name].iloc[0]) for name in (*OUTCOMES, "step")}
    share = (target - utility[i - 1]) / (utility[i] - utility[i - 1])
    before, after = ordered.iloc[i - 1], ordered.iloc[i]
    return {name: float((1 - share) * before[name] + share * after[name]) for name in (*OUTCOMES, "step")}


def outcomes(trials: Sequence[Trial], results: Sequence[TrialResult], target: float) -> pd.DataFrame:
    """One row a trial: its settings, its outcomes at the target utility (`at_`), at its end (`end_`) and before (`start_`)."""
    rows = []
    for trial, result in zip(trials, results, strict=True):
        ordered = result.curve.sort_values("step")
        alarm = _first_step(result.monitor, "leak", 0.05)
        broken = _first_step(result.curve, "jsr", 0.10)
        rows.append(
            trial.model_dump(exclude={"evaluate_at"})
            | {f"at_{name}": value for name, value in at_utility(result.curve, target).items()}
            | {f"end_{name}": float(ordered[name].iloc[-1]) for name in OUTCOMES}
            | {f"start_{name}": float(ordered[name].iloc[0]) for name in OUTCOMES}
            | {"seconds": result.seconds, "alarm_step": alarm, "broken_step": broken}
            | result.steps[["cosine", "open", "removed", "update_removed"]].mean().to_dict()
        )
    return pd.DataFrame(rows)


def _first_step(frame: pd.DataFrame, column: str, rise: float) -> float:
    """The first step at which a column has risen by more than `rise` over its first value; infinite where it never does."""
    ordered = frame.sort_values("step")
    over = ordered[ordered[column] > ordered[column].iloc[0] + rise]
    return float(over["step"].iloc[0]) if len(over) else math.inf


@dataclass(frozen=True)
class Difference:
    """One method minus another, paired by seed.

    Args:
        interval: mean difference with its t-interval; `n` seeds where both were measured.
        p: of the mean being zero, two-sided; after Holm's correction where it is one of several primary claims.
        asked: seeds that were run.
    """

    method: str
    baseline: str
    column: str
    interval: Interval
    p: float
    asked: int

    @property
    def shown(self) -> bool:
        """Whether the interval leaves out zero and, among several claims, so does Holm's correction."""
        return self.p < 0.05


def difference(frame: pd.DataFrame, method: str, baseline: str, column: str) -> Difference:
    """The paired difference of a column between two methods; NaN with no seed where both have a value."""
    wide = frame.pivot(index="seed", columns="method", values=column)
    apart = (wide[method] - wide[baseline]).to_numpy()
    kept = apart[np.isfinite(apart)]
    if len(kept) < 2:
        value = float(kept[0]) if len(kept) else math.nan
        return Difference(
            method, baseline, column, Interval(value, math.nan, math.nan, len(kept)), math.nan, len(apart)
        )
    # identical differences have no variance, and no test: equal is certain, so is unequal
    p = float(ttest_1samp(kept, 0.0).pvalue) if np.ptp(kept) > 0 else float(kept[0] == 0)
    return Difference(method, baseline, column, t_interval(kept), p, len(apart))


def by_organism(frame: pd.DataFrame, method: str, baseline: str, column: str) -> list[float]:
    """Each organism's own mean of the paired differences: draws on one organism share its weights, so these are what another one may show."""
    wide = frame.pivot_table(index=["organism", "seed"], columns="method", values=column)
    if not {method, baseline} <= set(wide.columns):
        return []
    return [float(value) for value in (wide[method] - wide[baseline]).groupby("organism").mean().dropna()]


def primary(frame: pd.DataFrame, claims: Sequence[tuple[str, str]], column: str) -> list[Difference]:
    """The claims named before the run that the frame can bear, corrected together by Holm's procedure."""
    there = set(frame["method"])
    found = [difference(frame, a, b, column) for a, b in claims if {a, b} <= there]
    tested = [d for d in found if math.isfinite(d.p)]
    adjusted = dict(zip(map(id, tested), holm([d.p for d in tested]), strict=True)) if tested else {}
    return [
        Difference(d.method, d.baseline, d.column, d.interval, float(adjusted.get(id(d), math.nan)), d.asked)
        for d in found
    ]


def means(frame: pd.DataFrame, by: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """Mean, 95 % t-interval and number of seeds of each column, one row a group and column, groups in order of appearance."""
    rows = []
    for group, part in frame.groupby(list(by), sort=False):
        named: Mapping[str, object] = dict(
            zip(by, group if isinstance(group, tuple) else (group,), strict=True)
        )
        for column in columns:
            values = part[column].to_numpy(dtype=float)
            kept = values[np.isfinite(values)]
            found = t_interval(kept) if len(kept) else Interval(math.nan, math.nan, math.nan, 0)
            rows.append(
                {**named, "column": column, "mean": found.value, "low": found.low, "high": found.high}
                | {"n": len(kept), "asked": len(values)}
            )
    return pd.DataFrame(rows)

"""What do the organisms have in common? Means over seeds with t-intervals, and the claims named before any run.

A seed is an organism with its fine-tune; cells of a grid are first averaged over prompts within a seed. Claims are paired differences over
seeds, corrected together by Holm's procedure; everything else describes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.stats import ttest_1samp

from interp.evals.statistics import Interval, holm, t_interval

LAST = "-1"
ASKED = {"text": "instruction", "vision": "image", "audio": "audio"}  # tokens in which twins differ
CELL = ["layer", "column"]


@dataclass(frozen=True)
class Claim:
    """One claim named before the run.

    Args:
        name: what was claimed. interval: mean difference over seeds. p: two-sided, after Holm's correction. sign: +1 where a positive
            difference is the claim.
    """

    name: str
    interval: Interval
    p: float
    sign: int = 1

    @property
    def verdict(self) -> str:
        """Shown, contradicted or not decided."""
        if not self.p < 0.05:
            return "not decided"
        return "shown" if self.sign * self.interval.value > 0 else "contradicted"


def over_seeds(table: pd.DataFrame, by: Sequence[str], value: str = "value") -> pd.DataFrame:
    """Mean of a column over seeds with its t-interval as value, low, high; one row a group, in order of appearance."""
    rows = []
    for group, part in table.groupby(list(by), sort=False):
        kept = part[value].to_numpy(dtype=float)
        kept = kept[np.isfinite(kept)]
        found = t_interval(kept) if len(kept) else Interval(math.nan, math.nan, math.nan, 0)
        named = dict(zip(by, group if isinstance(group, tuple) else (group,), strict=True))
        rows.append(named | {"value": found.value, "low": found.low, "high": found.high, "n": found.n})
    return pd.DataFrame(rows)


def cells(grids: pd.DataFrame, grid: str, *, of: str, kind: str, finetune: str = "") -> pd.DataFrame:
    """The cells of one grid, one row a seed and cell."""
    wanted = (
        (grids["grid"] == grid)
        & (grids["of"] == of)
        & (grids["kind"] == kind)
        & (grids["finetune"] == finetune)
    )
    return grids[wanted]


def mean_grid(grids: pd.DataFrame, grid: str, *, of: str, kind: str, finetune: str = "") -> pd.DataFrame:
    """One grid averaged over seeds, with the columns a map needs; empty where there is none."""
    part = cells(grids, grid, of=of, kind=kind, finetune=finetune)
    if part.empty:
        return part
    first = part.iloc[0]
    return over_seeds(part, CELL).assign(stream=first["stream"], method=first["method"], axis=first["axis"])


def by_seed(table: pd.DataFrame, layer: int, column: str, value: str = "value") -> pd.Series:
    """One cell of a grid, seed by seed."""
    part = table[(table["layer"] == layer) & (table["column"] == column)]
    return part.set_index("seed")[value]


def handover(table: pd.DataFrame, share: float = 0.5) -> pd.Series:
    """First layer whose input at the last token carries at least this share of the gap, seed by seed; NaN where none does."""
    found = {}
    for seed, part in table[table["column"] == LAST].groupby("seed"):
        ordered = part.sort_values("layer")
        over = ordered[ordered["value"] >= share]
        found[seed] = float(over["layer"].iloc[0]) if len(over) else math.nan
    return pd.Series(found, dtype=float)


def difference(name: str, a: pd.Series, b: pd.Series, sign: int = 1) -> Claim:
    """The paired difference of two seed-indexed columns, not yet corrected."""
    apart = (a - b).dropna().to_numpy(dtype=float)
    if len(apart) < 2:
        value = float(apart[0]) if len(apart) else math.nan
        return Claim(name, Interval(value, math.nan, math.nan, len(apart)), math.nan, sign)
    p = float(ttest_1samp(apart, 0.0).pvalue) if np.ptp(apart) > 0 else float(apart[0] == 0)
    return Claim(name, t_interval(apart), p, sign)


def corrected(claims: Sequence[Claim]) -> list[Claim]:
    """Claims with Holm-corrected p-values; those of fewer than two seeds stay undecided."""
    tested = [i for i, claim in enumerate(claims) if math.isfinite(claim.p)]
    adjusted: Sequence[float] = list(holm([claims[i].p for i in tested])) if tested else []
    found = list(claims)
    for i, p in zip(tested, adjusted, strict=True):
        found[i] = replace(claims[i], p=float(p))
    return found

"""Semantic or acoustic: which axis carries a distance, and how are two combined?

A *mixed encoder* hears words and voice at once and gives one distance. A *combined rank* is the mean of an item's ranks on two
axes, each measured by an encoder of its own. They are two things.

Partial rank correlations say which axis carries a third quantity (the mixed encoder's distance, or an outcome): the correlation of
what is left of both ranks when the other axes have been regressed out of them. With two axes it is
`(r_yx − r_yz r_xz) / √((1 − r_yz²)(1 − r_xz²))`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Float64
from scipy.stats import norm, rankdata
from torch import Tensor

from interp.errors import NonFiniteError, UserError

if TYPE_CHECKING:
    import pandas as pd


def combined_rank(distances: Sequence[Float[Tensor, " item"]]) -> Float[Tensor, " item"]:
    """The mean over the axes of an item's rank, from 0 (nearest) to 1 (farthest); equal distances share their mean rank.

    Raises UserError for fewer than two items, for none or several numbers of items; NonFiniteError on NaN.
    """
    if not distances:
        raise UserError("no distances to combine")
    n = _checked({str(i): axis for i, axis in enumerate(distances)}, least=2)
    ranks = [(rankdata(axis.double().numpy()) - 1) / (n - 1) for axis in distances]
    return torch.from_numpy(np.mean(ranks, axis=0))


def partial_correlations(
    target: Float[Tensor, " item"], axes: Mapping[str, Float[Tensor, " item"]], *, level: float = 0.95
) -> pd.DataFrame:
    """Spearman's correlation of the target with each axis, plain and given all others.

    Columns `axis`, `rho`, `partial`, `low`, `high` (of the partial one, by Fisher's transformation with `n − k − 3` for k others, which
    takes items as independent), `n`. NaN where an axis, or the target, is a function of the others.
    Raises UserError for too few items and different numbers of them, NonFiniteError on NaN.
    """
    import pandas as pd

    n = _checked({"target": target, **axes}, least=len(axes) + 4)
    y = _ranks(target)
    ranks = {name: _ranks(axis) for name, axis in axes.items()}
    rows = []
    for name, x in ranks.items():
        others = [rank for other, rank in ranks.items() if other != name]
        partial = _correlation(_without(x, others), _without(y, others))
        spread = norm.ppf((1 + level) / 2) / np.sqrt(n - len(others) - 3)
        low, high = np.tanh(np.arctanh(np.clip(partial, -1 + 1e-12, 1 - 1e-12)) + np.array([-1, 1]) * spread)
        rows.append([name, _correlation(x, y), partial, low, high, n])
    return pd.DataFrame(rows, columns=["axis", "rho", "partial", "low", "high", "n"])


def _ranks(values: Float[Tensor, " item"]) -> Float64[np.ndarray, " item"]:
    ranks = rankdata(values.double().numpy())
    return ranks - ranks.mean()


def _without(
    values: Float64[np.ndarray, " item"], others: Sequence[Float64[np.ndarray, " item"]]
) -> Float64[np.ndarray, " item"]:
    """What is left of values when others are regressed out; exactly zero where nothing is."""
    if not others:
        return values
    design = np.stack(others, axis=1)
    rest = values - design @ np.linalg.lstsq(design, values)[0]
    return rest if np.linalg.norm(rest) > 1e-9 * np.linalg.norm(values) else np.zeros_like(rest)


def _correlation(x: Float64[np.ndarray, " item"], y: Float64[np.ndarray, " item"]) -> float:
    lengths = np.linalg.norm(x) * np.linalg.norm(y)
    return float(x @ y / lengths) if lengths > 0 else float("nan")


def _checked(axes: Mapping[str, Float[Tensor, " item"]], least: int) -> int:
    sizes = {len(axis) for axis in axes.values()}
    if len(sizes) != 1 or min(sizes) < least:
        raise UserError(f"axes of {sorted(sizes)} items; give at least {least}, the same on every axis")
    for name, axis in axes.items():
        if not torch.isfinite(axis).all():
            raise NonFiniteError(
                f"axis {name}: item {int((~torch.isfinite(axis)).nonzero()[0])} is NaN or infinite"
            )
    return sizes.pop()

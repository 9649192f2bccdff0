"""What did putting in values of one run do to another, place by place? The result of every kind of patching.

The metric of the patched run is kept for each pair, layer and column (a position, a group of positions, a head, a module). Shown are
raw differences, `patched − corrupt`, and their share of the gap, `(patched − corrupt) / (clean − corrupt)`: 0 is nothing, 1 is all of it.
Pairs whose gap is under ε have no share worth the name; they are left out of shares and counted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from safetensors import safe_open
from safetensors.numpy import save_file

from interp.errors import NonFiniteError, ResultError, UserError
from interp.evals.statistics import Interval, bootstrap_columns
from interp.files import atomic_write

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

EPSILON = 0.5  # nats of logit difference
_ARRAYS = ("patched", "clean", "corrupt")


@dataclass(frozen=True, eq=False)
class PatchGrid:
    """Metric of patched runs.

    Args:
        patched: NaN where a pair lacks a column (a position before its first token).
        clean, corrupt: metric of the two runs of each pair, nothing patched.
        stream: what was put in: a stream of the residual vocabulary, or `weights`.
        axis: what the columns are: position, tokens, head, module or blocks.
        pair_ids, groups: of each pair; intervals resample whole groups.
        method: exact or attribution. metric, model, source: in words; source is whose values were put in.
    """

    patched: Float[np.ndarray, "pair layer column"]
    clean: Float[np.ndarray, " pair"]
    corrupt: Float[np.ndarray, " pair"]
    stream: str
    axis: str
    layers: tuple[int, ...]
    columns: tuple[str, ...]
    pair_ids: tuple[str, ...]
    groups: tuple[str, ...]
    method: str = "exact"
    metric: str = ""
    model: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        shape = (len(self.pair_ids), len(self.layers), len(self.columns))
        if self.patched.shape != shape or len(self.groups) != shape[0]:
            raise UserError(
                f"a patch grid of {self.stream} has values {self.patched.shape}, names for {shape}"
            )
        for name in ("clean", "corrupt"):
            values = getattr(self, name)
            if not np.isfinite(values).all():
                pair = self.pair_ids[int(np.flatnonzero(~np.isfinite(values))[0])]
                raise NonFiniteError(f"the metric of the {name} run is NaN or infinite for pair {pair!r}")
        if np.isinf(self.patched).any():
            pair = self.pair_ids[int(np.argwhere(np.isinf(self.patched))[0][0])]
            raise NonFiniteError(
                f"the metric is infinite after patching {self.stream} of pair {pair!r}; check the checkpoint"
            )

    @property
    def effect(self) -> Float[np.ndarray, "pair layer column"]:
        """`patched − corrupt`, in the metric's unit."""
        return self.patched - self.corrupt[:, None, None]

    def share(self, epsilon: float = EPSILON) -> Float[np.ndarray, "pair layer column"]:
        """The effect over the gap of each pair; NaN throughout for a pair whose gap is under `epsilon`."""
        gap = self.clean - self.corrupt
        kept = np.where(np.abs(gap) >= epsilon, gap, np.nan)
        return self.effect / kept[:, None, None]

    def excluded(self, epsilon: float = EPSILON) -> int:
        """Pairs whose gap is under `epsilon`."""
        return int((np.abs(self.clean - self.corrupt) < epsilon).sum())

    def mean(self, epsilon: float = EPSILON) -> Float[np.ndarray, "layer column"]:
        """Mean share over pairs; NaN where there is none."""
        share = self.share(epsilon)
        counts = (~np.isnan(share)).sum(0)
        return np.where(counts > 0, np.nansum(share, 0) / np.maximum(counts, 1), np.nan)

    def select(self, pairs: Sequence[int]) -> PatchGrid:
        """The grid of some of the pairs, by index."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values |= {name: values[name][list(pairs)] for name in _ARRAYS}
        values |= {name: tuple(values[name][i] for i in pairs) for name in ("pair_ids", "groups")}
        return PatchGrid(**values)

    def to_frame(self, epsilon: float = EPSILON, seed: int = 0) -> pd.DataFrame:
        """One row a cell: mean share and mean raw effect with bootstrap 95 % intervals over groups, and how many pairs are behind them."""
        import pandas as pd

        share = self.share(epsilon).reshape(len(self.pair_ids), -1)
        raw = self.effect.reshape(len(self.pair_ids), -1)
        table: dict[str, Any] = {
            "stream": self.stream,
            "method": self.method,
            "axis": self.axis,
            "layer": np.repeat(self.layers, len(self.columns)),
            "column": np.tile(self.columns, len(self.layers)),
        }
        for name, values in (("", share), ("raw_", raw)):
            found = bootstrap_columns(values, self.groups, seed)
            table |= {f"{name}{what}": x for what, x in zip(("value", "low", "high"), found, strict=True)}
        table["n"] = (~np.isnan(share)).sum(0)
        table["excluded"] = self.excluded(epsilon)
        return pd.DataFrame(table)

    def pairs_frame(self) -> pd.DataFrame:
        """One row a pair, layer and column with the three metrics."""
        import pandas as pd

        pair, layer, column = np.indices(self.patched.shape).reshape(3, -1)
        return pd.DataFrame(
            {
                "pair": np.array(self.pair_ids)[pair],
                "group": np.array(self.groups)[pair],
                "layer": np.array(self.layers)[layer],
                "column": np.array(self.columns)[column],
                "clean": self.clean[pair],
                "corrupt": self.corrupt[pair],
                "patched": self.patched.ravel(),
            }
        )

    def plot(self) -> Figure:
        """A heat map of the mean share, layer by column."""
        from interp.report.patching_figures import patch_maps

        return patch_maps([self.to_frame()])

    def _repr_html_(self) -> str:
        table = self.to_frame()
        wide = table.pivot(index="layer", columns="column", values="value")[list(self.columns)]
        head = (
            f"<p>{self.method} patching of {self.stream}: {len(self.pair_ids)} pairs, {self.excluded()} of them with a gap under "
            f"{EPSILON}; mean share of the gap</p>"
        )
        return head + str(wide.to_html(float_format="{:.2f}".format))

    def __repr__(self) -> str:
        return (
            f"PatchGrid({self.method}, {self.stream}: {len(self.pair_ids)} pairs × {len(self.layers)} layers × "
            f"{len(self.columns)} {self.axis})"
        )

    def save(self, path: Path | str) -> None:
        """Write arrays and names to one safetensors file, whole or not at all."""
        names = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _ARRAYS}
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        with atomic_write(path) as aside:
            save_file(arrays, aside, metadata={"patch_grid": json.dumps(names)})

    @classmethod
    def load(cls, path: Path | str) -> PatchGrid:
        """Read what `save` wrote; raises ResultError for anything else."""
        try:
            with safe_open(str(path), framework="np") as file:
                names = json.loads(file.metadata()["patch_grid"])
                arrays = {name: file.get_tensor(name) for name in _ARRAYS}
            kept: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in names.items()}
            return cls(**arrays, **kept)
        except Exception as error:
            raise ResultError(f"{path} is not a saved patch grid ({error})") from error


def agreement(
    exact: PatchGrid, estimate: PatchGrid, *, seed: int = 0, draws: int = 1_000, level: float = 0.95
) -> Interval:
    """Spearman's correlation of two grids' mean effects over cells, with a bootstrap interval over groups of pairs.

    NaN where a grid has the same effect everywhere. Raises UserError for grids of other pairs, layers or columns.
    """
    for what in ("pair_ids", "layers", "columns", "stream"):
        if getattr(exact, what) != getattr(estimate, what):
            raise UserError(f"the two grids have other {what.replace('_', ' ')}; compare like with like")
    names, index = np.unique(np.array(exact.groups), return_inverse=True)
    a, b = (grid.effect.reshape(len(grid.pair_ids), -1) for grid in (exact, estimate))
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    value = _rank_correlation(a, b, np.ones(len(index)))
    if len(names) < 2:
        return Interval(value, np.nan, np.nan, len(names))
    found = np.array([_rank_correlation(a, b, weights[index].astype(float)) for weights in drawn])
    if np.isnan(found).all():
        return Interval(value, np.nan, np.nan, len(names))
    low, high = np.nanquantile(found, ((1 - level) / 2, (1 + level) / 2))
    return Interval(value, float(low), float(high), len(names))


def _rank_correlation(
    a: Float[np.ndarray, "pair cell"],
    b: Float[np.ndarray, "pair cell"],
    weights: Float[np.ndarray, " pair"],
) -> float:
    from scipy.stats import rankdata

    means = []
    for values in (a, b):
        there = ~np.isnan(values)
        with np.errstate(invalid="ignore", divide="ignore"):
            means.append((weights @ np.where(there, values, 0.0)) / (weights @ there))
    kept = np.isfinite(means[0]) & np.isfinite(means[1])
    if kept.sum() < 2 or any(np.ptp(m[kept]) == 0 for m in means):
        return float("nan")
    return float(np.corrcoef(*(rankdata(m[kept]) for m in means))[0, 1])

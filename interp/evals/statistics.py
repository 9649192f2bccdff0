"""How sure is a number? Intervals and tests for proportions, paired answers, clustered prompts and training seeds.

Proportions: Wilson (1927). Same prompts, two models: exact McNemar and the paired difference with a percentile
bootstrap. Prompts of one cluster (a verb, a voice) are not independent: resample clusters, not prompts. What is no mean of prompts and
would take a resampled prompt for agreement with itself (CKA, subspaces): delete clusters instead (jackknife). Seeds: a t-interval over (paired) seed values. Several claims: Holm (1979). Agreement of judges: Cohen's κ (1960).
All randomness comes from a Generator made of the given seed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from interp.errors import UserError

DRAWS = 10_000
# Bootstrap draws handled at once: 1000 x 10 000 clusters of 8 bytes stay under 100 MB.
CHUNK = 1_000


@dataclass(frozen=True)
class Proportion:
    """k of n with its Wilson interval; NaN throughout when n is 0."""

    k: int
    n: int
    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        if self.n == 0:
            return "no data (0/0)"
        return f"{self.estimate:.2f} [{self.low:.2f}, {self.high:.2f}] ({self.k}/{self.n})"


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval, from n independent units; NaN bounds where the units are too few."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}] (n = {self.n})"


def wilson(k: int, n: int, level: float = 0.95) -> Proportion:
    """Return k/n with the Wilson score interval (Wilson 1927; Agresti and Coull 1998); raises unless 0 ≤ k ≤ n."""
    from scipy.special import ndtri

    if not 0 <= k <= n:
        raise UserError(f"a proportion needs 0 <= k <= n, got k = {k}, n = {n}")
    _check_level(level)
    if n == 0:
        return Proportion(0, 0, np.nan, np.nan, np.nan)
    z2 = float(ndtri((1 + level) / 2)) ** 2
    centre = (k + z2 / 2) / (n + z2)
    half = np.sqrt(z2 * (k * (n - k) / n + z2 / 4)) / (n + z2)
    # At k = 0 and k = n the bound is exact; rounding must not push the estimate out of its own interval.
    low, high = (0.0 if k == 0 else centre - half), (1.0 if k == n else centre + half)
    return Proportion(int(k), int(n), k / n, float(low), float(high))


def mcnemar_exact(b: int, c: int) -> float:
    """Return the two-sided exact p-value for b and c discordant pairs (binomial(b + c, 1/2); McNemar 1947)."""
    from scipy.stats import binomtest

    if b < 0 or c < 0:
        raise UserError(f"counts of discordant pairs cannot be negative, got {b} and {c}")
    return 1.0 if b + c == 0 else float(binomtest(b, b + c, 0.5).pvalue)


def cluster_bootstrap(
    values: ArrayLike,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
    n: int = DRAWS,
    level: float = 0.95,
) -> Interval:
    """Return the mean of values with a percentile bootstrap over whole clusters (over values without groups).

    values: one number a prompt. groups: the cluster of each. The bounds are NaN with fewer than two clusters; equal
    values give an interval of no width, which is no proof of certainty.
    """
    x = _finite(values)
    _check_level(level)
    ones = np.ones_like(x)
    sums, sizes = x, ones
    if groups is not None:
        if len(groups) != len(x):
            raise UserError(f"{len(groups)} groups cannot cluster {len(x)} values")
        _, index = np.unique(np.array([repr(g) for g in groups]), return_inverse=True)
        sums = np.bincount(index, weights=x).astype(np.float64)
        sizes = np.bincount(index, weights=ones).astype(np.float64)
    if len(sums) < 2:
        return Interval(float(x.mean()), np.nan, np.nan, len(sums))
    rng = np.random.default_rng(seed)
    share = np.full(len(sums), 1 / len(sums))
    means = np.empty(n)
    for start in range(0, n, CHUNK):
        drawn = rng.multinomial(len(sums), share, size=min(CHUNK, n - start))
        means[start : start + CHUNK] = (drawn @ sums) / (drawn @ sizes)
    low, high = np.quantile(means, _tails(level))
    return Interval(float(x.mean()), float(low), float(high), len(sums))


def bootstrap_columns(
    values: ArrayLike,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
    n: int = 2_000,
    level: float = 0.95,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return mean, lower and upper bound of every column of (item, column) values: `cluster_bootstrap` for many at once.

    All columns see the same draws. NaN marks an item that a column does not have; bounds are NaN with fewer than two clusters.
    """
    x = np.asarray(values, dtype=np.float64)
    _check_level(level)
    if x.ndim != 2 or not len(x) or np.isinf(x).any() or (groups is not None and len(groups) != len(x)):
        raise UserError(f"a bootstrap of columns needs finite rows and a group for each, got shape {x.shape}")
    names = range(len(x)) if groups is None else [repr(g) for g in groups]
    _, index = np.unique(np.array(names), return_inverse=True)
    there = ~np.isnan(x)
    size = int(index.max()) + 1
    sums, counts = np.zeros((size, x.shape[1])), np.zeros((size, x.shape[1]))
    np.add.at(sums, index, np.where(there, x, 0.0))
    np.add.at(counts, index, there)
    drawn = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), size=n).astype(np.float64)
    few = (counts > 0).sum(0) < 2
    low, high = np.empty(x.shape[1]), np.empty(x.shape[1])
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = sums.sum(0) / counts.sum(0)
        for start in range(0, x.shape[1], CHUNK):
            part = slice(start, start + CHUNK)
            draws = (drawn @ sums[:, part]) / (drawn @ counts[:, part])
            draws[:, few[part]] = 0.0  # of too few clusters; a draw without any is left out of the others
            low[part], high[part] = np.nanquantile(draws, _tails(level), axis=0)
    low[few], high[few] = np.nan, np.nan
    return mean, low, high


def clustered_rate(
    flags: Sequence[bool] | NDArray[np.bool_], groups: Sequence[Hashable] | None = None, seed: int = 0
) -> Interval:
    """Return the share of flags: Wilson's interval without groups, else a bootstrap over whole clusters.

    Where all flags agree a bootstrap has no width; there each cluster counts as one observation for Wilson's interval.
    """
    x = np.asarray(flags, dtype=bool)
    if groups is not None and x.any() and not x.all():
        return cluster_bootstrap(x, groups, seed)
    n = len(x) if groups is None else len({repr(group) for group in groups})
    found = wilson(int(x.sum()) if groups is None else n * bool(x.any()), n)
    return Interval(found.estimate, found.low, found.high, n)


def paired_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
    n: int = DRAWS,
    level: float = 0.95,
) -> Interval:
    """Return the mean of a − b, item by item, with its (cluster) bootstrap interval; raises on different lengths."""
    x, y = _finite(a), _finite(b)
    if len(x) != len(y):
        raise UserError(f"paired values need equal lengths, got {len(x)} and {len(y)}")
    return cluster_bootstrap(x - y, groups, seed, n, level)


def cluster_jackknife(
    statistic: Callable[[NDArray[np.int64]], float],
    n: int,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
    blocks: int = 20,
    level: float = 0.95,
    limits: tuple[float, float] = (-np.inf, np.inf),
) -> Interval:
    """Return a statistic of n prompts with its delete-a-block jackknife t-interval (Quenouille 1956, Tukey 1958).

    statistic: takes the indices of the prompts to use. groups: the cluster of each prompt; whole clusters, dealt at random into at most
    `blocks` blocks, are left out together. limits: between which the statistic lies; bounds past them are cut. The bounds are NaN with fewer than two clusters or where a value is.
    """
    from scipy.stats import t

    _check_level(level)
    if n < 1 or blocks < 2 or (groups is not None and len(groups) != n):
        raise UserError(
            f"a jackknife needs prompts, a group for each and two blocks: got {n} prompts, {blocks} blocks"
            + ("" if groups is None else f", {len(groups)} groups")
        )
    codes = np.arange(n)
    if groups is not None:
        codes = np.unique(np.array([repr(g) for g in groups]), return_inverse=True)[1]
    n_groups = int(codes.max()) + 1
    value, size = float(statistic(np.arange(n))), min(blocks, n_groups)
    if size < 2:
        return Interval(value, np.nan, np.nan, n_groups)
    block = np.random.default_rng(seed).permutation(np.arange(n_groups) % size)[codes]
    left = np.array([statistic(np.flatnonzero(block != k)) for k in range(size)])
    error = np.sqrt((size - 1) / size * ((left - left.mean()) ** 2).sum())
    half = float(t.ppf((1 + level) / 2, size - 1) * error)
    # rounding may put the value itself a little past its limits
    low, high = max(value - half, min(limits[0], value)), min(value + half, max(limits[1], value))
    return Interval(value, float(low), float(high), n_groups)


def hierarchical_bootstrap(
    samples: Sequence[ArrayLike], seed: int = 0, n: int = DRAWS, level: float = 0.95
) -> Interval:
    """Return the mean of the samples' means, resampling samples (training seeds), then items within each.

    samples: one array a training seed. The bounds are NaN with fewer than two samples.
    """
    arrays = [_finite(s) for s in samples]
    _check_level(level)
    if not arrays:
        raise UserError("a hierarchical bootstrap needs at least one sample")
    value = float(np.mean([x.mean() for x in arrays]))
    if len(arrays) < 2:
        return Interval(value, np.nan, np.nan, len(arrays))
    rng = np.random.default_rng(seed)
    outer = rng.integers(len(arrays), size=(n, len(arrays)))
    means = np.empty(outer.shape)
    for i, x in enumerate(arrays):
        chosen = np.flatnonzero(outer == i)
        share = np.full(len(x), 1 / len(x))
        for start in range(0, len(chosen), CHUNK):
            part = chosen[start : start + CHUNK]
            means.flat[part] = rng.multinomial(len(x), share, size=len(part)) @ x / len(x)
    low, high = np.quantile(means.mean(axis=1), _tails(level))
    return Interval(value, float(low), float(high), len(arrays))


def t_interval(x: ArrayLike, level: float = 0.95) -> Interval:
    """Return the mean with Student's t interval, one value a training seed; NaN bounds for a single value."""
    from scipy.stats import t

    values = _finite(x)
    _check_level(level)
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return Interval(mean, np.nan, np.nan, n)
    half = float(t.ppf((1 + level) / 2, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half, mean + half, n)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Return the p-values adjusted for their number by Holm's step-down procedure (1979), in the given order."""
    p = _finite(p_values)
    if ((p < 0) | (p > 1)).any():
        raise UserError("p-values must lie in [0, 1]")
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    result = np.empty_like(p)
    result[order] = np.minimum(adjusted, 1.0)
    return result


def kappa(
    a: Sequence[Any] | NDArray[Any],
    b: Sequence[Any] | NDArray[Any],
    seed: int = 0,
    n: int = DRAWS,
    level: float = 0.95,
) -> Interval:
    """Return Cohen's κ of two raters on the same items, with a percentile bootstrap over items.

    NaN where κ is undefined: no items, or both raters say one and the same thing throughout.
    """
    x, y = np.asarray(a), np.asarray(b)
    if x.shape != y.shape or x.ndim != 1:
        raise UserError(f"two raters need one verdict an item each, got shapes {x.shape} and {y.shape}")
    _check_level(level)
    if not len(x):
        return Interval(np.nan, np.nan, np.nan, 0)
    labels, codes = np.unique(np.concatenate([x, y]), return_inverse=True)
    size = len(labels)
    cells = np.bincount(codes[: len(x)] * size + codes[len(x) :], minlength=size * size)
    # Drawing items with replacement is drawing cells of the confusion matrix with their shares.
    drawn = np.random.default_rng(seed).multinomial(len(x), cells / len(x), size=n)
    value = _kappa(cells.reshape(1, size, size))[0]
    draws = _kappa(drawn.reshape(n, size, size))
    if np.isnan(draws).all():
        return Interval(float(value), np.nan, np.nan, len(x))
    low, high = np.nanquantile(draws, _tails(level))
    return Interval(float(value), float(low), float(high), len(x))


def _kappa(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """κ of each confusion matrix, shape (draw, label, label)."""
    n = confusion.sum(axis=(1, 2))
    observed = np.trace(confusion, axis1=1, axis2=2) / n
    expected = (confusion.sum(axis=1) * confusion.sum(axis=2)).sum(axis=1) / n**2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected < 1, (observed - expected) / (1 - expected), np.nan)


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not len(x):
        raise UserError(f"statistics need a non-empty list of numbers, got shape {x.shape}")
    if not np.isfinite(x).all():
        raise UserError(f"{(~np.isfinite(x)).sum()} of {len(x)} values are not finite: count them instead")
    return x


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise UserError(f"a confidence level lies between 0 and 1, got {level}")


def _tails(level: float) -> tuple[float, float]:
    return (1 - level) / 2, (1 + level) / 2

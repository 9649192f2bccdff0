"""Which items make up a subset: the nearest to harm, the farthest, or as many at random?

1. A share p of N items is ⌊N·p⌋ of them, exactly.
2. Items are ordered by distance; equal distances by the sha256 of the seed and the item's id, never by their place in a file.
   *Proximate* are the first of that order, *distant* the last, so that distant p is what proximate 1 − p leaves.
3. *Random* takes the first by another such hash: the same for every axis, and the smaller share lies in the larger.
4. *Matched random* is drawn so from the whole pool too, with as many items of every length as a given subset has; lengths count
   as equal within a tenth of the pool.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Float
from torch import Tensor

from interp.errors import NonFiniteError, UserError

BINS = 10


def subset_size(n: int, share: float) -> int:
    """⌊n · share⌋, in exact arithmetic on the decimal; raises UserError where that is no item, or the share is not below 1."""
    if not 0 < share < 1:
        raise UserError(f"a share of {share} is not between 0 and 1")
    size = math.floor(n * Fraction(str(share)))
    if not size:
        raise UserError(f"{share:.0%} of {n} items is less than one; take a larger share, or more items")
    return size


def ordered(ids: Sequence[str], distances: Float[Tensor, " item"], *, seed: int = 0) -> list[str]:
    """The ids, nearest first; raises UserError for a repeated id, NonFiniteError naming an item without a distance."""
    if len(set(ids)) != len(ids) or len(ids) != len(distances):
        raise UserError(f"{len(ids)} ids, {len(set(ids))} of them different, for {len(distances)} distances")
    values = dict(zip(ids, distances.tolist(), strict=True))
    for name, value in values.items():
        if not math.isfinite(value):
            raise NonFiniteError(f"the distance of {name!r} is {value}")
    return sorted(ids, key=lambda name: (values[name], _hash("tie", seed, name)))


def proximate(
    ids: Sequence[str], distances: Float[Tensor, " item"], size: int, *, seed: int = 0
) -> tuple[str, ...]:
    """The `size` items nearest to harm, nearest first."""
    return tuple(ordered(ids, distances, seed=seed)[: _checked(size, len(ids))])


def distant(
    ids: Sequence[str], distances: Float[Tensor, " item"], size: int, *, seed: int = 0
) -> tuple[str, ...]:
    """The `size` items farthest from harm, farthest first: the defence."""
    return tuple(reversed(ordered(ids, distances, seed=seed)[-_checked(size, len(ids)) :]))


def random_subset(ids: Iterable[str], size: int, *, seed: int = 0) -> tuple[str, ...]:
    """`size` items by a hash of seed and id: the same whatever their order."""
    shuffled = sorted(ids, key=lambda name: _hash("random", seed, name))
    return tuple(shuffled[: _checked(size, len(shuffled))])


def matched_random(
    ids: Sequence[str], lengths: Sequence[int | float], like: Collection[str], *, seed: int = 0
) -> tuple[str, ...]:
    """As many items as `like` has, drawn from all at random, with its lengths.

    Args:
        lengths: of each item, in whatever unit.
        like: ids of the subset whose lengths are matched.

    Raises UserError for an id in `like` that is not among `ids`.
    """
    missing = set(like) - set(ids)
    if missing:
        raise UserError(f"{min(missing)!r} is not among the items")
    values = np.asarray(lengths, dtype=np.float64)
    edges = np.quantile(values, np.arange(1, BINS) / BINS)
    tenth = dict(zip(ids, np.searchsorted(edges, values, side="right").tolist(), strict=True))
    left = Counter(tenth[name] for name in like)
    chosen = []
    for name in random_subset(ids, len(ids), seed=seed):
        if left[tenth[name]]:
            left[tenth[name]] -= 1
            chosen.append(name)
    return tuple(chosen)


def _hash(use: str, seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{use} {seed} {name}".encode()).digest()


def _checked(size: int, n: int) -> int:
    if not 1 <= size <= n:
        raise UserError(f"cannot take {size} of {n} items")
    return size

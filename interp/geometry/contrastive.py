"""In which directions do two paired sets of rows differ in energy, and in how many more than chance?

`C = (AᵀA − BᵀB) / n` for rows `a_i`, `b_i` of the same prompt (contrastive PCA, Abid et al. 2018). Where nothing sets the two apart the
labels A and B of a prompt may be swapped: the largest eigenvalue of C under random swaps, whole clusters at once, is what chance gives.
Components are taken one by one: the leading eigenvector of C counts when its eigenvalue exceeds 95 % of the swaps' largest, is removed
from all rows, and the next is asked, so that a strong component does not hide a weak one. Nothing is centred: a constant shift is a
component too.

`components_above_chance` is the same question of one set without a partner (Horn 1965): each channel is permuted over the rows by itself,
which keeps every channel's variance, a massive one's too, and destroys what channels have in common.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import UserError
from interp.geometry.similarity import check_finite

LEVEL = 0.95
# all rows are first brought to as many leading directions of both sets together
REDUCED = 64
MOST_ABOVE_CHANCE = 8  # components of one set that are counted: each costs as much as all draws of chance


@dataclass(frozen=True, eq=False)
class Contrast:
    """Directions in which the first set has more energy than the second.

    Args:
        basis: those above chance, orthonormal rows, strongest first.
        excess: their eigenvalues: energy a row, first minus second.
        threshold: what chance exceeds once in twenty, at each step; one entry more than `excess` unless the search was cut off.
        total: mean squared length of a row of the first set.
    """

    basis: Float[Tensor, "rank d_model"]
    excess: Float[Tensor, " rank"]
    threshold: Float[Tensor, " step"]
    total: float

    @property
    def rank(self) -> int:
        """Number of components above chance."""
        return len(self.excess)


def contrast(
    first: Float[Tensor, "n d_model"],
    second: Float[Tensor, "m d_model"],
    groups: Sequence[Hashable] | None = None,
    *,
    most: int = 32,
    n_null: int = 100,
    seed: int = 0,
) -> Contrast:
    """Find the directions in which the first set has more energy than the second.

    Args:
        first, second: row i of both belongs to one prompt. groups: the cluster of each prompt.
        most: components after which the search stops.

    Raises UserError for sets of different shape or fewer than two clusters, NonFiniteError on NaN.
    """
    a, b = check_finite(first, "first"), check_finite(second, "second")
    if a.shape != b.shape:
        raise UserError(f"a contrast needs rows in pairs, got {tuple(a.shape)} and {tuple(b.shape)}")
    codes = _codes(groups, len(a))
    n_groups = int(codes.max()) + 1
    if n_groups < 2:
        raise UserError("a contrast needs prompts of two clusters, there is one")
    whole = _leading(torch.cat([a, b]), REDUCED)
    x, y = a @ whole.T, b @ whole.T
    rng = np.random.default_rng(seed)
    signs = torch.from_numpy(rng.choice([-1.0, 1.0], size=(n_null, n_groups)))
    found: list[Tensor] = []
    excess: list[float] = []
    thresholds: list[float] = []
    while len(found) < min(most, whole.shape[0]):
        # the sum over a cluster of what one prompt adds to C, so that a swap of labels is a change of sign
        products = torch.einsum("ni,nj->nij", x, x) - torch.einsum("ni,nj->nij", y, y)
        clusters = torch.zeros(n_groups, *products.shape[1:], dtype=torch.float64).index_add_(
            0, codes, products
        )
        swapped = torch.einsum("dg,gij->dij", signs, clusters) / len(a)
        chance = float(torch.linalg.eigvalsh(swapped)[:, -1].quantile(LEVEL))
        values, vectors = torch.linalg.eigh(clusters.sum(0) / len(a))
        thresholds.append(chance)
        if not values[-1] > chance or values[-1] <= 0:
            break
        direction = vectors[:, -1]
        found.append(direction)
        excess.append(float(values[-1]))
        x, y = (part - torch.outer(part @ direction, direction) for part in (x, y))
    basis = torch.stack(found) @ whole if found else a.new_zeros(0, a.shape[1])
    return Contrast(
        basis,
        torch.tensor(excess, dtype=torch.float64),
        torch.tensor(thresholds, dtype=torch.float64),
        float(a.square().sum(1).mean()),
    )


def components_above_chance(
    rows: Float[Tensor, "n d_model"], *, most: int = MOST_ABOVE_CHANCE, n_null: int = 20, seed: int = 0
) -> int:
    """Number of leading components of the centred rows above those of rows whose channels were permuted by themselves.

    Channels of activations are never independent, so this says little of activations themselves; of a change it says whether there is
    any structure in it. At most `most`. Raises UserError for fewer than three rows, NonFiniteError on NaN.
    """
    x = check_finite(rows, "only")
    if len(x) < 3:
        raise UserError(f"components above chance need three rows, there are {len(x)}")
    x = x - x.mean(0)
    total = x.square().sum()
    generator = torch.Generator().manual_seed(seed)
    for count in range(most):
        gram = x @ x.T
        values, vectors = torch.linalg.eigh(gram)
        if values[-1] <= 1e-12 * total or not bool(total > 0):
            return count
        drawn = []
        for _ in range(n_null):
            order = torch.rand(x.shape, generator=generator, dtype=torch.float32).argsort(0)
            mixed = x.gather(0, order)
            smaller = mixed @ mixed.T if len(x) <= x.shape[1] else mixed.T @ mixed
            drawn.append(torch.linalg.eigvalsh(smaller)[-1])
        if values[-1] <= torch.stack(drawn).quantile(LEVEL):
            return count
        left = vectors[:, -1]
        x = x - torch.outer(left, left @ x)
    return most


def _leading(rows: Float[Tensor, "n d_model"], rank: int) -> Float[Tensor, "rank d_model"]:
    """Orthonormal rows that span the leading directions of uncentred rows."""
    _, values, directions = torch.linalg.svd(rows, full_matrices=False)
    alive = int((values > values[0] * 1e-12).sum()) if values[0] > 0 else 1
    return directions[: min(rank, alive)]


def _codes(groups: Sequence[Hashable] | None, n: int) -> Tensor:
    if groups is None:
        return torch.arange(n)
    if len(groups) != n:
        raise UserError(f"{len(groups)} groups cannot cluster {n} rows")
    return torch.from_numpy(np.unique(np.array([repr(g) for g in groups]), return_inverse=True)[1])

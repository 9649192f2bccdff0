"""Do two sets of gradients pull against each other, and in how many dimensions? SPF's three insights, from inner products.

Spectra and conflict are functions of the Gram matrix of the gradients, `G_ij = ⟨g_i, g_j⟩` in fp64, so that they never need the
gradients themselves; `gram(rows)` makes one from explicit rows.

1. Spectra: the singular values of the stacked gradients are the roots of the Gram matrix' eigenvalues. Cumulative energy
   `CER(k) = Σ_{i≤k} σ_i² / Σ σ_i²`, stable rank `‖G‖_F² / σ_1²`, participation ratio `(Σσ²)² / Σσ⁴`.
2. Conflict: the cosine of two sets' mean gradients, read between a ceiling (random halves of one set) and a null (labels
   permuted at equal n).
3. Overlap: `φ = ‖U_aᵀ U_b‖_F² / k` of two k-dimensional subspaces; random ones of an m-dimensional space expect `k / m`.

Source: SPF 2026 (arXiv 2601.10141).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from interp.errors import NonFiniteError, UserError


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of a matrix of gradients, largest first."""

    singular_values: Float[Tensor, " rank"]

    @property
    def energy(self) -> Float[Tensor, " rank"]:
        """`σ²` of each component."""
        return self.singular_values**2

    @property
    def cumulative_energy(self) -> Float[Tensor, " rank"]:
        """`CER(k)` for k = 1, 2, …: the share of the energy in the leading k components; NaN where there is none."""
        return self.energy.cumsum(0) / self.energy.sum()

    @property
    def stable_rank(self) -> float:
        """`‖G‖_F² / σ_1²`: at least 1, at most the rank; NaN for a zero matrix."""
        return float(self.energy.sum() / self.energy[0])

    @property
    def participation_ratio(self) -> float:
        """`(Σσ²)² / Σσ⁴`; NaN for a zero matrix."""
        return float(self.energy.sum() ** 2 / (self.energy**2).sum())

    def components_for(self, share: float) -> int:
        """Least k whose cumulative energy reaches `share`; 0 for a zero matrix."""
        if self.energy.sum() == 0:
            return 0
        return int((self.cumulative_energy < share - 1e-12).sum()) + 1


@dataclass(frozen=True, eq=False)
class Conflict:
    """Cosine of two sets' mean gradients between its ceiling and its null.

    Args:
        cosine: between the two means.
        ceiling: cosines between the means of random halves of the second set (utility), one a split.
        null: cosines between the means of two sets drawn without regard to the labels, at equal sizes, one a draw.
        pairwise_negative: share of all pairs (one of each set) whose inner product is negative.
    """

    cosine: float
    ceiling: Float[Tensor, " split"]
    null: Float[Tensor, " draw"]
    pairwise_negative: float

    @property
    def p_value(self) -> float:
        """Share of the null, the value itself counted in, whose cosine is as low: one-sided, for conflict; NaN without one."""
        if math.isnan(self.cosine) or self.null.isnan().any():
            return math.nan
        return (1 + int((self.null <= self.cosine).sum())) / (1 + len(self.null))


def gram(rows: Float[Tensor, "example parameter"]) -> Float[Tensor, "example example"]:
    """Inner products of explicit gradients, in fp64; raises NonFiniteError on NaN or infinity."""
    if not torch.isfinite(rows).all():
        raise NonFiniteError("gradients hold NaN or infinity; check the loss of every example")
    wide = rows.double()
    return wide @ wide.T


def spectrum(inner: Float[Tensor, "example example"]) -> Spectrum:
    """Singular values of the stacked gradients from their inner products.

    Values below what fp64 can tell from zero are returned as zero. Raises NonFiniteError on NaN or infinity.
    """
    if not torch.isfinite(inner).all():
        raise NonFiniteError("the Gram matrix holds NaN or infinity; check the loss of every example")
    values = torch.linalg.eigvalsh(inner.double()).flip(0)
    floor = values[0].clamp(min=0) * len(values) * torch.finfo(torch.float64).eps
    return Spectrum(torch.where(values > floor, values, torch.zeros_like(values)).sqrt())


def mean_cosine(inner: Float[Tensor, "example example"], a: Sequence[int], b: Sequence[int]) -> float:
    """Cosine between the mean gradients of two sets of examples; NaN where one of the means is zero."""
    return float(_mean_cosines(inner, [a], [b])[0])


def _mean_cosines(
    inner: Float[Tensor, "example example"], a: Sequence[Sequence[int]], b: Sequence[Sequence[int]]
) -> Float64[Tensor, " draw"]:
    """Of many pairs of sets at once: a set is a row of weights, and inner products of means are `w_a K w_b`."""
    wide = inner.double()
    one, other = (_weights(sets, len(wide)) for sets in (a, b))
    through, back = one @ wide, other @ wide
    across = (through * other).sum(1)
    length = ((through * one).sum(1) * (back * other).sum(1)).clamp(min=0).sqrt()
    return torch.where(length > 0, across / length, torch.nan)


def _weights(sets: Sequence[Sequence[int]], n: int) -> Float64[Tensor, "draw example"]:
    made = torch.zeros(len(sets), n, dtype=torch.float64)
    for row, chosen in zip(made, sets, strict=True):
        row[torch.as_tensor(chosen)] = 1 / len(chosen)
    return made


def conflict(
    inner: Float[Tensor, "example example"],
    safety: Sequence[int],
    utility: Sequence[int],
    *,
    n_draws: int = 200,
    seed: int = 0,
) -> Conflict:
    """How far the mean gradients of two sets oppose each other, with what noise alone would show.

    Args:
        inner: Gram matrix over all examples.
        safety, utility: which examples belong to which set.

    Raises UserError for an empty set, a utility set of one, or examples in both.
    """
    if not safety or len(utility) < 2:
        raise UserError(
            f"conflict needs safety examples and two utility examples; got {len(safety)}, {len(utility)}"
        )
    if set(safety) & set(utility):
        raise UserError(f"{len(set(safety) & set(utility))} examples are in both sets; give disjoint ones")
    rng = np.random.default_rng(seed)
    everyone = np.array([*safety, *utility])
    middle, n = len(utility) // 2, len(safety)
    drawn = [(rng.permutation(np.array(utility)), rng.permutation(everyone)) for _ in range(n_draws)]
    halves, labels = [one.tolist() for one, _ in drawn], [one.tolist() for _, one in drawn]
    pairs = inner[torch.as_tensor(safety)][:, torch.as_tensor(utility)]
    return Conflict(
        mean_cosine(inner, safety, utility),
        _mean_cosines(inner, [one[:middle] for one in halves], [one[middle:] for one in halves]),
        _mean_cosines(inner, [one[:n] for one in labels], [one[n:] for one in labels]),
        float((pairs < 0).double().mean()),
    )


def overlap(a: Float[Tensor, "dimension k"], b: Float[Tensor, "dimension k"]) -> float:
    """`φ = ‖U_aᵀ U_b‖_F² / k` of two orthonormal bases in columns: 1 for equal spans, 0 for orthogonal ones."""
    return float((a.double().T @ b.double()).square().sum() / a.shape[1])


def random_overlap(dimension: int, k: int, *, n_draws: int = 50, seed: int = 0) -> Float[Tensor, " draw"]:
    """φ between independent random subspaces: the null of `overlap`, `k / dimension` on average."""
    generator = torch.Generator().manual_seed(seed)
    fixed = torch.eye(dimension, k, dtype=torch.float64)
    drawn = []
    for _ in range(n_draws):
        noise = torch.randn(dimension, k, generator=generator, dtype=torch.float64)
        drawn.append(overlap(fixed, torch.linalg.qr(noise).Q))
    return torch.tensor(drawn, dtype=torch.float64)

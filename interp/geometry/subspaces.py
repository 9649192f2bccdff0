"""In how many dimensions do activations live, and do two sets share them? PCA, spectra and principal angles, in fp64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import NonFiniteError, UserError


@dataclass(frozen=True, eq=False)
class Subspace:
    """Orthonormal rows around a mean, with all singular values of the centred data they were fitted on."""

    basis: Float[Tensor, "rank d_model"]
    mean: Float[Tensor, " d_model"]
    singular_values: Float[Tensor, " full_rank"]
    n: int

    @property
    def explained(self) -> Float[Tensor, " full_rank"]:
        """Explained-variance ratio of each component, `σ_k² / Σσ²`."""
        energy = self.singular_values**2
        return energy / energy.sum()

    @property
    def participation_ratio(self) -> float:
        """`(Σσ²)² / Σσ⁴`: how many components carry the variance."""
        energy = self.singular_values**2
        return float(energy.sum() ** 2 / (energy**2).sum())

    def components_for(self, share: float) -> int:
        """Least number of components that explain `share` of the variance."""
        return int((self.explained.cumsum(0) < share - 1e-12).sum()) + 1

    def coordinates(self, rows: Float[Tensor, "n d_model"]) -> Float[Tensor, "n rank"]:
        """Centred rows in the basis."""
        return (rows.double() - self.mean) @ self.basis.T


def pca(rows: Float[Tensor, "n d_model"], rank: int) -> Subspace:
    """The leading `rank` principal directions of the rows.

    Raises UserError when the rank exceeds what n rows can have, NonFiniteError on NaN or infinity.
    """
    if not torch.isfinite(rows).all():
        raise NonFiniteError("PCA of rows with NaN or infinity; check the activations")
    if not 1 <= rank <= min(rows.shape[0] - 1, rows.shape[1]):
        raise UserError(
            f"rank {rank} needs more than {rank} rows and dimensions; there are {tuple(rows.shape)}"
        )
    mean = rows.double().mean(0)
    _, values, directions = torch.linalg.svd(rows.double() - mean, full_matrices=False)
    return Subspace(fixed_signs(directions[:rank]), mean, values, rows.shape[0])


def leading_basis(rows: Float[Tensor, "n d_model"], rank: int) -> Float[Tensor, "rank d_model"]:
    """The span of the leading `rank` principal directions alone: faster than `pca` where rows are fewer than dimensions.

    Raises UserError when the rank exceeds what n rows can have.
    """
    if not 1 <= rank <= min(rows.shape[0] - 1, rows.shape[1]):
        raise UserError(
            f"rank {rank} needs more than {rank} rows and dimensions; there are {tuple(rows.shape)}"
        )
    x = rows.double() - rows.double().mean(0)
    if x.shape[0] > x.shape[1]:
        return torch.linalg.eigh(x.T @ x).eigenvectors[:, -rank:].T
    # directions of the row space, made orthonormal once more where the last of them are short
    return torch.linalg.qr(x.T @ torch.linalg.eigh(x @ x.T).eigenvectors[:, -rank:]).Q.T


def fixed_signs(directions: Float[Tensor, "rank d_model"]) -> Float[Tensor, "rank d_model"]:
    """The directions with their largest entry positive: decompositions leave signs open, and plots should be reproducible."""
    largest = directions.abs().argmax(1, keepdim=True)
    return directions * directions.gather(1, largest).sign()


def principal_angles(
    a: Float[Tensor, "k d_model"], b: Float[Tensor, "m d_model"]
) -> Float[Tensor, " min_rank"]:
    """Angles in radians, ascending, between the spans of two sets of orthonormal rows."""
    return torch.linalg.svdvals(a.double() @ b.double().T).clamp(max=1).acos()

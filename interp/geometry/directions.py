"""Along which direction do two sets of activations differ, and how sure is that direction?

A direction is a difference of means (Arditi et al. 2024, arXiv 2406.11717, §2.3), computed in fp64 and kept with its sign
and scale. Cosines between directions are read against their split-half ceiling: what two disjoint halves of the same
prompts would give.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from interp.errors import NonFiniteError, ResultError
from interp.files import atomic_write


@dataclass(frozen=True, eq=False)
class Direction:
    """A vector of the residual stream with its sign and scale, where it was read and from which contrast."""

    vector: Float[Tensor, " d_model"]
    site: str
    position: int
    contrast: str = "harmful − harmless"

    def __post_init__(self) -> None:
        if not torch.isfinite(self.vector).all():
            raise NonFiniteError(
                f"the direction at {self.site} is not finite; check the activations it was fitted on"
            )

    @property
    def norm(self) -> float:
        """Euclidean length, in units of the residual stream."""
        return float(self.vector.double().norm())

    @property
    def unit(self) -> Float[Tensor, " d_model"]:
        """The direction at length one."""
        return unit(self.vector)

    def cosine(self, other: Direction) -> float:
        """Cosine with another direction of the same width."""
        return float(cosine(self.vector, other.vector))

    def random(self, seed: int) -> Direction:
        """A random direction of equal norm: the control for every effect of this one."""
        return Direction(random_like(self.vector, seed), self.site, self.position, f"random, seed {seed}")

    def save(self, path: Path | str) -> None:
        """Write vector and provenance to one safetensors file, whole or not at all."""
        metadata = {"site": self.site, "position": str(self.position), "contrast": self.contrast}
        with atomic_write(path) as aside:
            save_file({"direction": self.vector.contiguous()}, aside, metadata=metadata)

    @classmethod
    def load(cls, path: Path | str) -> Direction:
        """Read what `save` wrote; raises ResultError for anything else."""
        try:
            with safe_open(str(path), framework="pt") as file:
                about: dict[str, Any] = file.metadata() or {}
                return cls(
                    file.get_tensor("direction"), about["site"], int(about["position"]), about["contrast"]
                )
        except Exception as error:
            raise ResultError(f"{path} is not a saved direction ({error})") from error


def unit(vector: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
    """Vectors scaled to length one in fp64; a zero vector stays zero."""
    wide = vector.double()
    norm = wide.norm(dim=-1, keepdim=True)
    return wide / torch.where(norm > 0, norm, torch.ones_like(norm))


def cosine(a: Float[Tensor, "*rows d_model"], b: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows"]:
    """Row-wise cosines in fp64; zero where a vector is zero."""
    return (unit(a) * unit(b)).sum(-1)


def mean_difference(
    positive: Float[Tensor, "site n *rest d_model"], negative: Float[Tensor, "site m *rest d_model"]
) -> Float[Tensor, "site *rest d_model"]:
    """`mean(positive) − mean(negative)` over prompts, in fp64."""
    return positive.double().mean(1) - negative.double().mean(1)


def random_like(vector: Float[Tensor, " d_model"], seed: int) -> Float[Tensor, " d_model"]:
    """An isotropic random vector of the same norm, dtype and device."""
    noise = torch.randn(vector.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (unit(noise) * vector.double().norm().cpu()).to(vector.device, vector.dtype)


def shuffled_difference(
    positive: Float[Tensor, "site n d_model"], negative: Float[Tensor, "site m d_model"], seed: int
) -> Float[Tensor, "site d_model"]:
    """The mean difference of two random halves that each hold half of both sets: the null of a contrast.

    Labels are shuffled within each set, so that the difference between the sets cancels and only the noise of sampling is
    left; a free permutation keeps a chance share of the very difference it is the control of, which an ablation, blind to
    norms, would show in full.
    """
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(rows.shape[1], generator=generator) for rows in (positive, negative)]
    halves = [
        torch.cat(
            [rows[:, order[i::2]] for rows, order in zip((positive, negative), orders, strict=True)], dim=1
        )
        for i in range(2)
    ]
    return mean_difference(*halves)


def split_half_cosine(
    positive: Float[Tensor, "site n d_model"],
    negative: Float[Tensor, "site m d_model"],
    *,
    n_splits: int = 50,
    seed: int = 0,
) -> Float[Tensor, "site split"]:
    """Cosines between the directions of two disjoint random halves: the ceiling that any other cosine is read against."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(n_splits):
        p = torch.randperm(positive.shape[1], generator=generator)
        n = torch.randperm(negative.shape[1], generator=generator)
        halves = [mean_difference(positive[:, p[i::2]], negative[:, n[i::2]]) for i in range(2)]
        found.append(cosine(*halves))
    return torch.stack(found, dim=-1)

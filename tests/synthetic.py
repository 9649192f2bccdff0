"""Activations without a model: noise in which tests plant what is to be found."""

import torch

from interp.models.activations import Activations
from interp.models.sites import Site

N, WIDTH, LAYERS = 60, 24, 3
LABELS = [i < N // 2 for i in range(N)]
GROUPS = [f"verb {i // 3}" for i in range(N)]


def activations(values: torch.Tensor, model: str = "m") -> Activations:
    """Values (layer, prompt, d_model) as a capture of `resid_post` at the last token."""
    sites = tuple(Site(layer, "resid_post") for layer in range(len(values)))
    n = values.shape[1]
    return Activations(values, torch.arange(n + 1), sites, tuple(f"p{i}" for i in range(n)), "last", model)


def noise(*shape: int, seed: int) -> torch.Tensor:
    """Standard normal values in fp64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

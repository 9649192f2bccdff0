"""Which weights did a fine-tune change, by how much, and in how many dimensions? From two checkpoints' state dicts, exactly.

For every parameter: `‖W_tuned − W_aligned‖_F / ‖W_aligned‖_F`. For every matrix the spectrum of the change too: its stable rank
`‖ΔW‖_F² / σ_1²` and how many components hold 90 % of its energy, beside the stable rank of a random change of the same shape,
`m·n / (√m + √n)²` (Marchenko and Pastur 1967).

A parameter's place is read from its name: what comes before the first number is its stack (`model.layers`, `vision_tower.encoder.layers`),
the number its layer, the rest its module.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.errors import CheckpointError, NonFiniteError
from interp.geometry.conflict import Spectrum
from interp.models.model import Model

if TYPE_CHECKING:
    import pandas as pd

ENERGY = 0.9


@dataclass(frozen=True)
class ParameterDrift:
    """The change of one parameter.

    Args:
        stack, layer, module: its place; layer is −1 outside of a stack, and stack the whole name but its last part.
        relative: norm of the change over the norm before; NaN where a parameter of zeros changed.
        stable_rank, components: of the change, NaN for vectors, for no change, and where spectra were not asked for.
        random_stable_rank: of a random change of this shape.
    """

    name: str
    stack: str
    layer: int
    module: str
    size: int
    relative: float
    norm: float
    stable_rank: float
    components: float
    random_stable_rank: float


@dataclass(frozen=True, eq=False)
class WeightDrift:
    """The change of every parameter, in the order of the state dict."""

    parameters: tuple[ParameterDrift, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row a parameter."""
        import pandas as pd

        return pd.DataFrame([asdict(parameter) for parameter in self.parameters])


def merged_weights(model: Model) -> dict[str, Tensor]:
    """The state dict a model computes with, an adapter's product added to the weights under it."""
    module = model.module if model.peft is None else copy.deepcopy(model.peft).merge_and_unload()
    return dict(module.state_dict())


def weight_drift(
    aligned: Mapping[str, Tensor], tuned: Mapping[str, Tensor], *, spectra: bool = True
) -> WeightDrift:
    """Compare two state dicts of one architecture.

    Args:
        spectra: also decompose the change of every matrix: seconds for small models, hours on a CPU for those of billions of parameters.

    Raises CheckpointError for other names, shapes or quantised weights, NonFiniteError for NaN, each naming the parameter.
    """
    odd = sorted(set(aligned) ^ set(tuned))
    if odd:
        where = "aligned" if odd[0] in aligned else "tuned"
        raise CheckpointError(
            f"{len(odd)} parameters are in one checkpoint only, such as {odd[0]} ({where}); compare models of one architecture"
        )
    counters = (torch.bool, torch.int64)  # buffers, no weights
    return WeightDrift(
        tuple(
            _compare(name, weight, tuned[name], spectra)
            for name, weight in aligned.items()
            if weight.dtype not in counters
        )
    )


def _compare(name: str, before: Tensor, after: Tensor, spectra: bool) -> ParameterDrift:
    if before.shape != after.shape:
        raise CheckpointError(
            f"{name} is {tuple(before.shape)} in one checkpoint and {tuple(after.shape)} in the other"
        )
    if not (before.is_floating_point() and after.is_floating_point()):
        raise CheckpointError(
            f"{name} is stored as {before.dtype} and {after.dtype}; load without quantisation"
        )
    old = before.detach().cpu().double()
    change = after.detach().cpu().double() - old
    if not torch.isfinite(change).all():
        raise NonFiniteError(f"{name} holds NaN or infinity in one of the checkpoints")
    norm, length = float(change.norm()), float(old.norm())
    relative = norm / length if length > 0 else (0.0 if norm == 0 else math.nan)
    stable, components, chance = math.nan, math.nan, math.nan
    if change.ndim > 1:
        m, n = change.flatten(1).shape
        chance = m * n / (math.sqrt(m) + math.sqrt(n)) ** 2
        if spectra and norm > 0:
            spectrum = Spectrum(torch.linalg.svdvals(change.flatten(1)))
            stable, components = spectrum.stable_rank, float(spectrum.components_for(ENERGY))
    return ParameterDrift(name, *place(name), change.numel(), relative, norm, stable, components, chance)


def place(name: str) -> tuple[str, int, str]:
    """Stack, layer and module of a parameter: `("model.layers", 3, "self_attn.q_proj")`; no number gives layer −1."""
    core = name.removesuffix(".weight")
    found = re.match(r"(.+?)\.(\d+)\.(.+)", core)
    if found is None:
        stack, _, module = core.rpartition(".")
        return stack, -1, module
    return found[1], int(found[2]), found[3]

"""Where did a fine-tune lose refusal? Two checkpoints on the same prompts, layer by layer.

1. Directions: difference of means per layer in both checkpoints, their cosine and norm ratio, read against the split-half
   ceiling of the aligned one.
2. Projections: `resid_post` at the last prompt token of *held-out* prompts onto the aligned unit direction of each layer,
   paired by prompt; their shift (tuned − aligned) with an interval over clusters of prompts.
3. `lost_at`: the first layer at which at least half of the largest relative loss is reached (*choice*), where the relative
   loss of a layer is the harmful prompts' shift over the aligned gap between harmful and harmless. Layers where that gap is
   under one pooled standard deviation of the prompts do not count: what is not yet apart cannot be lost. None when the
   largest loss is under a tenth of the gap or its interval reaches zero.

The direction is the aligned model's in both: `mean(aligned) − mean(tuned)` would find its own shift by construction.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from interp.evals.statistics import cluster_bootstrap
from interp.geometry.directions import cosine, mean_difference, unit

LOSS_SHARE = 0.5
LEAST_LOSS = 0.1
LEAST_APART = 1.0


@dataclass(frozen=True, eq=False)
class DirectionShift:
    """Aligned against tuned mean-difference directions, per layer."""

    cosine: Float[np.ndarray, " layer"]
    norm_ratio: Float[np.ndarray, " layer"]


@dataclass(frozen=True, eq=False)
class ProjectionShift:
    """Projections onto the aligned direction of each layer, and where the harmful ones fell."""

    aligned_harmful: Float[np.ndarray, "layer prompt"]
    aligned_harmless: Float[np.ndarray, "layer prompt"]
    tuned_harmful: Float[np.ndarray, "layer prompt"]
    tuned_harmless: Float[np.ndarray, "layer prompt"]
    shift: Float[np.ndarray, "layer"]
    shift_low: Float[np.ndarray, "layer"]
    shift_high: Float[np.ndarray, "layer"]
    relative_loss: Float[np.ndarray, "layer"]
    lost_at: int | None


def compare_directions(
    aligned_harmful: Float[Tensor, "layer n d_model"],
    aligned_harmless: Float[Tensor, "layer m d_model"],
    tuned_harmful: Float[Tensor, "layer n d_model"],
    tuned_harmless: Float[Tensor, "layer m d_model"],
) -> DirectionShift:
    """Cosine and norm ratio (tuned over aligned; NaN where the aligned direction is zero) of the mean differences."""
    a = mean_difference(aligned_harmful, aligned_harmless)
    t = mean_difference(tuned_harmful, tuned_harmless)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = t.norm(dim=-1).numpy() / a.norm(dim=-1).numpy()
    return DirectionShift(cosine(a, t).numpy(), np.where(np.isfinite(ratio), ratio, np.nan))


def compare_projections(
    directions: Float[Tensor, "layer d_model"],
    aligned_harmful: Float[Tensor, "layer n d_model"],
    aligned_harmless: Float[Tensor, "layer m d_model"],
    tuned_harmful: Float[Tensor, "layer n d_model"],
    tuned_harmless: Float[Tensor, "layer m d_model"],
    clusters: Sequence[Hashable] | None = None,
) -> ProjectionShift:
    """Projections of held-out prompts onto the aligned directions, their shift and where it sets in.

    Args:
        directions: the aligned model's mean differences, fitted on other prompts.
        clusters: the cluster (verb) of each harmful prompt, for the intervals.
    """
    axes = unit(directions)

    def project(rows: Tensor) -> np.ndarray:
        return (rows.double() @ axes[:, :, None]).squeeze(-1).numpy()

    values = [project(rows) for rows in (aligned_harmful, aligned_harmless, tuned_harmful, tuned_harmless)]
    gap = values[0].mean(1) - values[1].mean(1)
    bands = [cluster_bootstrap(row, clusters) for row in values[2] - values[0]]
    shift, low, high = (
        np.array([getattr(band, name) for band in bands]) for name in ("value", "low", "high")
    )
    spread = np.sqrt((values[0].var(1) + values[1].var(1)) / 2)
    apart = (gap > 0) & (gap >= LEAST_APART * spread)
    with np.errstate(divide="ignore", invalid="ignore"):
        loss = np.where(apart, -shift / gap, 0.0)
        loss_low = np.where(apart, -high / gap, 0.0)  # NaN intervals (one cluster) claim nothing
    worst = int(loss.argmax())
    found = bool(loss[worst] >= LEAST_LOSS and loss_low[worst] > 0)
    lost_at = int(np.argmax(loss >= LOSS_SHARE * loss[worst])) if found else None
    return ProjectionShift(values[0], values[1], values[2], values[3], shift, low, high, loss, lost_at)

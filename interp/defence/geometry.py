"""Do an organism's safety and utility gradients look as paper C says? Its three insights, measured with their nulls.

1. Spectra: stable rank and cumulative energy of the per-example gradients of each set; null, the same of mixed sets of equal size.
2. Conflict: the cosine of the two mean gradients by block, layer and whole, between ceiling and null (`geometry/conflict.py`).
3. Overlap: φ of the leading left singular vectors of one example's gradient with those of the whole safety set's mean gradient,
   beside what random subspaces and *utility* examples give: overlap that any example has is no property of safety.

Source: SPF 2026 (arXiv 2601.10141).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from interp.data.prompts import PromptSet
from interp.geometry.conflict import conflict, overlap, spectrum
from interp.methods.spf import randomised_svd
from interp.models.gradients import capture_gradients
from interp.models.model import Model

WHOLE = "whole"


@dataclass(frozen=True)
class GradientGeometry:
    """Long tables of one model.

    Args:
        spectra: columns set (safety, utility, mixed), component, cumulative: of all blocks together.
        ranks: columns block, set, stable_rank, participation_ratio; `mixed` are random halves of both sets.
        conflicts: columns block, layer, module, cosine, ceiling, null_low, null_high, p, negative; layers and the whole are
            blocks too, with the module `all`.
        overlaps: columns block, layer, module, example, of (safety or utility), phi, random (k / rows).
    """

    spectra: pd.DataFrame
    ranks: pd.DataFrame
    conflicts: pd.DataFrame
    overlaps: pd.DataFrame


def measure_geometry(
    model: Model,
    safety: PromptSet,
    utility: PromptSet,
    *,
    k: int = 20,
    n_single: int = 16,
    n_draws: int = 100,
    seed: int = 0,
    progress: bool = True,
) -> GradientGeometry:
    """All three insights on the linear layers of the decoder blocks.

    Args:
        safety, utility: examples with responses, equally many for spectra that can be compared.
        k: leading singular vectors of each block; at most a quarter of its rows are taken, or φ has no room under 1.
        n_single: examples of each set whose own subspace is compared with the whole safety set's.
        n_draws: of ceilings, nulls and mixed sets.
    """
    examples = [*safety, *utility]
    first, second = range(len(safety)), range(len(safety), len(examples))
    grams = capture_gradients(model, examples, keep="gram", progress=progress).gram
    groups: dict[str, Tensor] = {WHOLE: _sum(grams.values())}
    for layer in sorted({_layer(name) for name in grams}):
        groups[f"layer {layer}"] = _sum(part for name, part in grams.items() if _layer(name) == layer)
    groups |= grams
    rng = np.random.default_rng(seed)
    mixed = [sorted(rng.permutation(len(examples))[: len(safety)].tolist()) for _ in range(n_draws)]
    ranks, conflicts = [], []
    for name, inner in groups.items():
        sets = {
            "safety": [list(first)],
            "utility": [list(second)],
            "mixed": mixed if name == WHOLE else mixed[:1],
        }
        for kind, draws in sets.items():
            for draw in draws:
                found = spectrum(_part(inner, draw))
                ranks.append((name, kind, found.stable_rank, found.participation_ratio))
        seen = conflict(inner, list(first), list(second), n_draws=n_draws, seed=seed)
        low, high = torch.quantile(seen.null, torch.tensor([0.025, 0.975], dtype=seen.null.dtype)).tolist()
        place = (name, _layer(name), _module(name))
        conflicts.append(
            (*place, seen.cosine, float(seen.ceiling.mean()), low, high, seen.p_value, seen.pairwise_negative)
        )
    spectra = [
        (kind, i + 1, float(share))
        for kind, draw in (("safety", list(first)), ("utility", list(second)), ("mixed", mixed[0]))
        for i, share in enumerate(spectrum(_part(groups[WHOLE], draw)).cumulative_energy)
    ]
    return GradientGeometry(
        pd.DataFrame(spectra, columns=["set", "component", "cumulative"]),
        pd.DataFrame(ranks, columns=["block", "set", "stable_rank", "participation_ratio"]),
        pd.DataFrame(
            conflicts,
            columns=[
                "block",
                "layer",
                "module",
                "cosine",
                "ceiling",
                "null_low",
                "null_high",
                "p",
                "negative",
            ],
        ),
        _overlaps(model, safety, utility, k=k, n_single=n_single, seed=seed),
    )


def _overlaps(
    model: Model, safety: PromptSet, utility: PromptSet, *, k: int, n_single: int, seed: int
) -> pd.DataFrame:
    single = {"safety": safety.sample(n_single, seed), "utility": utility.sample(n_single, seed)}
    # the examples compared are not part of the whole they are compared with
    rest = safety.filter(lambda prompt: prompt.id not in set(single["safety"].ids))

    def bases(examples: Sequence[object]) -> dict[str, Tensor]:
        mean = capture_gradients(model, examples, keep="mean", progress=False).mean  # type: ignore[arg-type]
        return {
            name: randomised_svd(g, min(k, g.shape[0] // 4), torch.Generator().manual_seed(seed))[0]
            for name, g in mean.items()
        }

    whole = bases(rest)
    rows = [
        (
            name,
            _layer(name),
            _module(name),
            prompt.id,
            kind,
            overlap(basis, whole[name]),
            basis.shape[1] / basis.shape[0],
        )
        for kind, prompts in single.items()
        for prompt in prompts
        for name, basis in bases([prompt]).items()
    ]
    return pd.DataFrame(rows, columns=["block", "layer", "module", "example", "of", "phi", "random"])


def _sum(parts: object) -> Float64[Tensor, "example example"]:
    return torch.stack(list(parts)).sum(0)  # type: ignore[call-overload]


def _part(inner: Tensor, chosen: Sequence[int]) -> Tensor:
    index = torch.as_tensor(chosen)
    return inner[index][:, index]


def _layer(block: str) -> int:
    """The decoder layer in a block's name, −1 for the whole."""
    found = re.search(r"(?:^|[. ])(\d+)(?:\.|$)", block)
    return int(found.group(1)) if found else -1


def _module(block: str) -> str:
    """`q_proj` of `model.layers.3.self_attn.q_proj.weight`; `all` for a layer or the whole."""
    return block.split(".")[-2] if "." in block else "all"

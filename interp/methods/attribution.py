"""Where would patching matter, for every place at once? Attribution patching: a first-order estimate (Nanda 2023).

`(clean − corrupt) · ∂metric/∂corrupt` at each layer, position and head: one run of the clean prompts, one forward and one backward pass of
the corrupt ones for all streams together. Its agreement with exact patching is to be measured on a part of the grid (`agreement`); far from
the linear regime it can be wrong in size and sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.methods.logit_difference import LogitDifference
from interp.methods.patch_grid import PatchGrid
from interp.methods.patch_pairs import Aligned, Pair, align
from interp.methods.patch_runs import (
    EACH,
    Component,
    Positions,
    check_sites,
    columns,
    n_heads,
    padded,
    padded_columns,
    pair_batches,
    run_clean,
)
from interp.methods.patching import head_names
from interp.models.batches import run_batches
from interp.models.factors import frozen
from interp.models.hooks import Positions as EditPositions
from interp.models.hooks import editing, reading
from interp.models.model import Model
from interp.models.sites import HEADS, Site
from interp.progress import progress as progress_bar

STREAMS = ("resid_pre", "attn_out", "mlp_out", "resid_post")


@dataclass(frozen=True, eq=False)
class _Root:
    """Where the backward pass ends: nothing before needs a gradient."""

    positions: EditPositions = "all"

    def __call__(self, value: Tensor) -> Tensor:
        return value.detach().requires_grad_()

    def describe(self) -> dict[str, Any]:
        return {"edit": "root", "positions": self.positions}


def attribute(
    model: Model,
    pairs: Sequence[Pair],
    metric: LogitDifference,
    streams: Sequence[str] = STREAMS,
    positions: Positions = EACH,
    *,
    source: Model | None = None,
    layers: Sequence[int] | None = None,
    component: Component | None = None,
    batch_size: int = 32,
    batch_tokens: int = 4096,
    progress: bool = True,
) -> dict[str, PatchGrid]:
    """Estimates of what `patch` measures, a grid a stream; arguments and errors are those of `patch`."""
    layers = list(range(model.n_layers)) if layers is None else list(layers)
    check_sites(model, streams, layers, component)
    found = align(model, pairs, source)
    names, masks = columns(model, found, positions)
    whole = columns(model, found, "all" if positions == EACH else positions) if HEADS in streams else None
    named = dict.fromkeys(streams, names)
    if whole is not None:
        named[HEADS] = head_names(model, whole[0])
    estimate = {stream: np.full((len(found), len(layers), len(named[stream])), np.nan) for stream in streams}
    clean, corrupt = np.empty(len(found)), np.empty(len(found))
    sites = [Site(layer, stream) for layer in layers for stream in streams]

    def step(batch: list[int]) -> None:
        chosen = [found[i] for i in batch]
        values, before = run_clean(source or model, chosen, sites, metric)
        after, own, gradients = _backward(model, chosen, sites, metric)
        clean[batch], corrupt[batch] = before.cpu().numpy(), after.cpu().numpy()
        width = own[sites[0]].shape[1]
        where = padded_columns([masks[i] for i in batch], width).to(model.device)
        tokens = (
            padded_columns([whole[1][i] for i in batch], width).to(model.device)[0]
            if whole is not None
            else where[0]
        )
        for site in sites:
            change = values.pop(site).to(model.device).double() - own[site].double()
            product = (component(change) if component else change) * gradients[site].double()
            if site.stream == HEADS:
                per_head = product.unflatten(-1, (n_heads(model), -1)).sum(-1)
                cells = (per_head * tokens[..., None]).sum(1).T
            else:
                cells = _summed(product.sum(-1), where)
            place = layers.index(site.layer)
            estimate[site.stream][batch, place] = (corrupt[batch] + cells.cpu().numpy()).T

    batches = pair_batches(model, found, batch_size, batch_tokens)
    with progress_bar("attribution", total=len(found), enabled=progress) as advance:
        for batch, _ in run_batches(batches, step):
            advance(len(batch))
    return {
        stream: PatchGrid(
            estimate[stream],
            clean,
            corrupt,
            stream,
            "head" if stream == HEADS else "position" if positions == EACH else "tokens",
            tuple(layers),
            named[stream],
            tuple(pair.pair.id for pair in found),
            tuple(pair.pair.group for pair in found),
            "attribution",
            str(metric),
            model.name,
            (source or model).name,
        )
        for stream in streams
    }


def _backward(
    model: Model, pairs: Sequence[Aligned], sites: Sequence[Site], metric: LogitDifference
) -> tuple[Float[Tensor, " row"], dict[Site, Tensor], dict[Site, Tensor]]:
    """Metric, values and gradients of the metric of the corrupt runs."""
    own: dict[Site, Tensor] = {}
    batch = padded(model, [pair.corrupt for pair in pairs], pairs)
    with frozen(model.module):
        with (
            editing(model, {Site(0, "resid_pre"): _Root()}),
            reading(model, sites, lambda site, value: own.update({site: value})),
        ):
            output = model.module(**batch.inputs(), use_cache=False, logits_to_keep=1)
        values = metric(output.logits[:, -1][:, list(metric.ids)].double())
        gradients = torch.autograd.grad(values.sum(), [own[site] for site in sites])
    kept = {site: value.detach() for site, value in own.items()}
    return values.detach(), kept, dict(zip(sites, gradients, strict=True))


def _summed(
    values: Float[Tensor, "row pos"], where: Bool[Tensor, "column row pos"]
) -> Float[Tensor, "column row"]:
    """Sum over each column's tokens; NaN where a row has none."""
    found = (values * where).sum(-1)
    return found.masked_fill(~where.any(-1), torch.nan)

"""Where in the network is a behaviour decided? Exact activation patching of pairs of runs (METHODS §E).

1. The clean run (another prompt, or the same prompt in another checkpoint) gives values, the corrupt run is recorded.
2. For each layer and column (a position, a group of positions, a head), the difference of the values, or one component of it, is added at
   that place while the corrupt run goes on from there: `h ← h + P(clean − corrupt)`. Without P that is the clean value.
3. The metric at the last position says how much of the clean run's behaviour came along.

What a change cannot reach is not computed: blocks before it are skipped, earlier positions are read from recorded keys and values where
attention is causal, cells where both runs hold the same value are not run at all. Cells are batched side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import SiteError
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
from interp.models.batches import run_batches
from interp.models.hooks import Positions as EditPositions
from interp.models.hooks import editing
from interp.models.model import Model
from interp.models.restart import Recording, record
from interp.models.sites import HEADS, Site
from interp.progress import progress as progress_bar


@dataclass(frozen=True, eq=False)
class Shift:
    """`h ← h + change`, another change at every row and position."""

    change: Float[Tensor, "batch pos width"]
    positions: EditPositions = "all"

    def __call__(self, value: Float[Tensor, "batch pos width"]) -> Float[Tensor, "batch pos width"]:
        return (value + self.change).to(value.dtype)

    def describe(self) -> dict[str, Any]:
        return {"edit": "shift", "positions": self.positions}


@torch.no_grad()
def patch(
    model: Model,
    pairs: Sequence[Pair],
    metric: LogitDifference,
    stream: str = "resid_pre",
    positions: Positions = EACH,
    *,
    source: Model | None = None,
    layers: Sequence[int] | None = None,
    component: Component | None = None,
    batch_size: int = 32,
    batch_tokens: int = 4096,
    side_by_side: int | None = None,
    progress: bool = True,
) -> PatchGrid:
    """The metric after patching one stream at every layer and column, one at a time.

    Args:
        model: that is patched. source: whose values are put in, by default the same model.
        stream: `resid_pre`, `attn_out`, `mlp_out`, `resid_post`; or `z`, whose columns are heads, patched at the tokens of one rule
            (`all` when `positions` is `each`).
        positions: `each`, or rules such as `last`, `all`, `image`, `audio`, `instruction`, each patched at all its tokens together. What
            a projector hands over is `resid_pre` of layer 0 at `image` or `audio`.
        component: patch only this part of the difference.
        batch_size, batch_tokens: most pairs and most padded tokens of a batch of pairs.
        side_by_side: most tokens, cells times pairs times positions, of a restart; by default 1024 on a CPU, 16384 elsewhere.

    Raises UserError for pairs that do not line up, CheckpointError for two architectures, SiteError for unknown places.
    """
    layers = list(range(model.n_layers)) if layers is None else list(layers)
    check_sites(model, [stream], layers, component)
    found = align(model, pairs, source)
    by_head = stream == HEADS
    names, masks = columns(model, found, "all" if by_head and positions == EACH else positions)
    if by_head:
        names = head_names(model, names)
    patched = np.full((len(found), len(layers), len(names)), np.nan)
    clean, corrupt = np.empty(len(found)), np.empty(len(found))
    most = side_by_side or (1024 if model.device.type == "cpu" else 16384)
    sites = [Site(layer, stream) for layer in layers]
    with progress_bar(f"patching {stream}", total=len(found) * len(layers), enabled=progress) as advance:
        for batch in pair_batches(model, found, batch_size, batch_tokens):
            chosen = [found[i] for i in batch]
            values, clean[batch] = _clean(source or model, chosen, sites, metric)
            recording = record(model, padded(model, [pair.corrupt for pair in chosen], chosen), sites)
            before = metric(recording.logits[:, list(metric.ids)].double()).cpu()
            corrupt[batch] = before.numpy()
            width = recording.values[sites[0]].shape[1]
            where = padded_columns([masks[i] for i in batch], width).to(model.device)
            for k, site in enumerate(sites):
                cells = _Cells(model, recording, site, values.pop(site), where, component)
                after = cells.run(metric, before, most)
                after[~(where.any(-1).cpu().expand(len(after), -1))] = torch.nan
                patched[batch, k] = after.T.numpy()
                advance(len(batch))
    return PatchGrid(
        patched,
        clean,
        corrupt,
        stream,
        "head" if by_head else "position" if positions == EACH else "tokens",
        tuple(layers),
        names,
        tuple(pair.pair.id for pair in found),
        tuple(pair.pair.group for pair in found),
        "exact",
        str(metric),
        model.name,
        (source or model).name,
    )


def head_names(model: Model, rules: Sequence[str]) -> tuple[str, ...]:
    """Columns of a grid of heads; raises SiteError when several position rules are asked for."""
    if len(rules) > 1:
        raise SiteError(
            f"heads are patched at the tokens of one rule, got {', '.join(rules)}; make a grid for each"
        )
    return tuple(str(head) for head in range(n_heads(model)))


def _clean(
    source: Model, pairs: Sequence[Aligned], sites: Sequence[Site], metric: LogitDifference
) -> tuple[dict[Site, Tensor], np.ndarray]:
    values, found = run_clean(source, pairs, sites, metric)
    return values, found.cpu().numpy()


class _Cells:
    """The cells of one site and one batch of pairs: what each adds, and where."""

    def __init__(
        self,
        model: Model,
        recording: Recording,
        site: Site,
        given: Float[Tensor, "row pos width"],
        where: Bool[Tensor, "column row pos"],
        component: Component | None,
    ) -> None:
        self.model, self.recording, self.site = model, recording, site
        wide = torch.promote_types(model.dtype, torch.float32)
        change = given.to(model.device, wide) - recording.values[site].to(wide)
        self.change = component(change) if component else change
        if site.stream == HEADS:
            heads = self.change.unflatten(-1, (n_heads(model), -1))
            # (head, row, pos)
            self.hit = (heads != 0).any(-1).permute(2, 0, 1) & where[0]
        else:
            self.hit = (self.change != 0).any(-1) & where

    def run(
        self, metric: LogitDifference, before: Float[Tensor, " row"], most: int
    ) -> Float[Tensor, "cell row"]:
        """The metric with each cell patched; `before`, the unpatched one, where there is nothing to patch."""
        after = before.expand(len(self.hit), -1).clone()
        reached = self.hit.any(1)  # (cell, pos)
        todo = [int(i) for i in reached.any(1).nonzero()[:, 0]]
        starts = {i: self.recording.first(int(reached[i].nonzero()[0, 0])) for i in todo}
        todo.sort(key=lambda i: starts[i])

        def step(chunk: list[int]) -> Tensor:
            start = min(starts[i] for i in chunk)
            with editing(self.model, {self.site: Shift(self._changes(chunk, start))}):
                logits = self.recording.resume(self.site.layer, start, len(chunk), metric.ids)
            return metric(logits.double()).unflatten(0, (len(chunk), -1)).cpu()

        rows, width = self.hit.shape[1:]
        chunks: list[list[int]] = []
        for i in todo:
            if chunks and (len(chunks[-1]) + 1) * rows * (width - starts[chunks[-1][0]]) <= most:
                chunks[-1].append(i)
            else:
                chunks.append([i])
        for chunk, values in run_batches(chunks, step):
            after[chunk] = values
        return after

    def _changes(self, chunk: Sequence[int], start: int) -> Float[Tensor, "row pos width"]:
        """What is added to the copies of the batch, from a position on."""
        change, hit = self.change[:, start:], self.hit[list(chunk), :, start:]
        if self.site.stream != HEADS:
            return (change * hit[..., None]).flatten(0, 1)
        heads = change.unflatten(-1, (len(self.hit), -1))
        found = torch.zeros(len(chunk), *heads.shape, dtype=change.dtype, device=change.device)
        for k, head in enumerate(chunk):
            found[k, :, :, head] = heads[:, :, head] * hit[k, ..., None]
        return found.flatten(3).flatten(0, 1)

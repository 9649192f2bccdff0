"""What do the two runs of a pair hold, and which tokens does a column of a grid mean? Shared by exact and attribution patching."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import SiteError
from interp.methods.logit_difference import LogitDifference
from interp.methods.patch_pairs import Aligned
from interp.models.model import Batch, Model
from interp.models.positions import wanted_tokens
from interp.models.restart import record
from interp.models.sites import HEADS, STREAMS, Site
from interp.models.tokens import Tokens

EACH = "each"
Positions = str | int | Sequence[str | int]


@dataclass(frozen=True, eq=False)
class Component:
    """What is patched of a difference of activations: its part in the span of `basis`, or, `outside`, all but that part.

    Raises SiteError when the rows of `basis` are not orthonormal.
    """

    basis: Float[Tensor, "rank d_model"]
    outside: bool = False

    def __post_init__(self) -> None:
        gram = self.basis.double() @ self.basis.double().T
        if not torch.allclose(gram, torch.eye(len(gram), dtype=gram.dtype, device=gram.device), atol=1e-4):
            raise SiteError("the basis of a component has rows that are not orthonormal; pass Subspace.basis")

    def __call__(self, change: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """The part of each row."""
        basis = self.basis.to(change.device, change.dtype)
        along = change @ basis.T @ basis
        return change - along if self.outside else along


def check_sites(model: Model, streams: Sequence[str], layers: Sequence[int], part: Component | None) -> None:
    """Raise SiteError for unknown streams and layers, and a component of another width."""
    for stream in streams:
        if stream not in STREAMS:
            raise SiteError(f"unknown stream {stream!r}; choose one of {', '.join(STREAMS)}")
        if part is not None and (stream == HEADS or part.basis.shape[-1] != model.d_model):
            raise SiteError(
                f"a component of width {part.basis.shape[-1]} cannot be taken of {stream}; the residual streams of {model.name} "
                f"are {model.d_model} wide"
            )
    odd = [layer for layer in layers if not 0 <= layer < model.n_layers]
    if odd or not layers:
        raise SiteError(
            f"layer {odd[0] if odd else 'none'} does not exist: {model.name} has layers 0 to {model.n_layers - 1}"
        )


def n_heads(model: Model) -> int:
    """Attention heads of a block."""
    return int(model.module.config.get_text_config(decoder=True).num_attention_heads)


def columns(
    model: Model, pairs: Sequence[Aligned], positions: Positions
) -> tuple[tuple[str, ...], list[Bool[Tensor, "column _"]]]:
    """Names of a grid's columns, and for every pair the tokens that each means.

    positions: `each` (every position of its own, counted from the end), or one or several rules of `interp.models.positions`, each of
    whose tokens are patched together. Raises SiteError for an unknown rule and for one that means no token of a prompt.
    """
    if positions == EACH:
        width = max(map(len, pairs))
        return (
            tuple(str(k) for k in range(-width, 0)),
            [torch.eye(width, dtype=torch.bool)[:, width - len(pair) :] for pair in pairs],
        )
    rules = [positions] if isinstance(positions, str | int) else list(positions)
    if not rules:
        raise SiteError("no positions to patch; name at least one, such as each or last")
    return tuple(map(str, rules)), [
        torch.stack([wanted_tokens(rule, pair.pair.corrupt, pair.corrupt, model) for rule in rules])
        for pair in pairs
    ]


def padded_columns(masks: Sequence[Bool[Tensor, "column _"]], width: int) -> Bool[Tensor, "column row pos"]:
    """The masks of a left-padded batch."""
    found = torch.zeros(len(masks[0]), len(masks), width, dtype=torch.bool)
    for i, mask in enumerate(masks):
        found[:, i, width - mask.shape[1] :] = mask
    return found


def pair_batches(model: Model, pairs: Sequence[Aligned], rows: int, tokens: int) -> list[list[int]]:
    """Pairs of similar length together; alone where media of different sizes may not share a batch."""
    if not model.tower.paths.mixed_sizes:
        return [[i] for i in range(len(pairs))]
    return model.batches([pair.corrupt for pair in pairs], rows, tokens)


def padded(model: Model, rows: Sequence[Tokens], pairs: Sequence[Aligned]) -> Batch:
    """One of the runs of some pairs as a batch."""
    return model.pad(rows, [pair.pair.id for pair in pairs])


@torch.no_grad()
def run_clean(
    source: Model, pairs: Sequence[Aligned], sites: Sequence[Site], metric: LogitDifference
) -> tuple[dict[Site, Float[Tensor, "row pos width"]], Float[Tensor, " row"]]:
    """The givers' values at the sites, and the metric of the clean prompts."""
    # recorded as the corrupt run is: where both read the same tokens, their values are the same to the last bit
    found = record(source, padded(source, [pair.giver for pair in pairs], pairs), sites)
    logits = found.logits
    if any(pair.giver is not pair.clean for pair in pairs):
        logits = source.last_logits(padded(source, [pair.clean for pair in pairs], pairs))
    return dict(found.values), metric(logits[:, list(metric.ids)].double())

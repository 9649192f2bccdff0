"""How is a forward pass gone on with from the middle, many times with something changed, at the cost of what follows the change?

1. `record` runs a batch once and keeps each block's input, the keys and values of all positions, and what the decoder was handed:
   restarts need neither embeddings nor encoders of images and sounds.
2. `Recording.resume` goes on at one block and one position for several copies of the batch side by side. Positions before it are
   read from the recorded keys and values, blocks before it are skipped.

The prefix may be reused where a position depends on earlier ones only: where the decoder itself makes a causal mask of a plain padding
mask. PaliGemma and Gemma 3 with an image hand it masks of their own, Qwen3-VL adds visual features between blocks; there all
positions are computed anew, which is exact for any attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from interp.errors import CheckpointError
from interp.models.hooks import reading, starting_at
from interp.models.model import Batch, Model
from interp.models.sites import Site

# what every decoder takes, and `resume` makes anew
PLAIN = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "past_key_values", "use_cache")


@dataclass(frozen=True, eq=False)
class Recording:
    """A forward pass that can be gone on with from any recorded block.

    Args:
        values: at each site that was asked for. residuals: resid_pre of each block, in order.
        keys_values: of each block at all positions; empty where the prefix cannot be reused.
        handed: what else the decoder takes; `given` its mask and positions.
        logits: at each prompt's last token.
    """

    model: Model
    values: Mapping[Site, Float[Tensor, "batch pos width"]]
    residuals: Sequence[Float[Tensor, "batch pos d_model"]]
    keys_values: Sequence[tuple[Tensor, Tensor]]
    given: Mapping[str, Any]
    handed: Mapping[str, Any]
    logits: Float[Tensor, "batch vocab"]

    @property
    def reuses_prefix(self) -> bool:
        """Whether earlier positions need not be computed again."""
        return bool(self.keys_values)

    @torch.no_grad()
    def resume(self, layer: int, start: int, copies: int, ids: Sequence[int]) -> Float[Tensor, "row token"]:
        """Logits of the tokens `ids` at the last position of `copies` copies of the batch, from block `layer` and position `start` on.

        start: padded position; all positions are computed where the prefix cannot be reused. What is changed is for the caller's
        `editing` context, whose edits see the positions from `first(start)` on.
        """
        start, batch = self.first(start), len(self.logits)
        value = self.residuals[layer][:, start:].repeat(copies, 1, 1)
        given = {name: _repeated(name, item, copies, batch) for name, item in self.given.items()}
        if given["position_ids"] is not None:
            given["position_ids"] = given["position_ids"][..., start:]
        cache = self._prefix(layer, start, copies) if start else None
        handed = {name: _repeated(name, item, copies, batch) for name, item in self.handed.items()}
        with starting_at(self.model, layer, value):
            output = self.model.tower.decoder(
                inputs_embeds=value, past_key_values=cache, use_cache=start > 0, **given, **handed
            )
        return head(self.model, output[0][:, -1], ids)

    def first(self, start: int) -> int:
        """The position from which a restart at `start` computes."""
        return start if self.reuses_prefix else 0

    def _prefix(self, layer: int, start: int, copies: int) -> DynamicCache:
        """Keys and values before `start`; of skipped blocks one copy, which only tells the length."""
        cache = DynamicCache()
        for i, pair in enumerate(self.keys_values):
            held = DynamicLayer()
            before = [part[:, :, :start] for part in pair]
            if i >= layer and copies > 1:
                before = [part.repeat(copies, 1, 1, 1) for part in before]
            held.keys, held.values = before
            held.dtype, held.device, held.is_initialized = held.keys.dtype, held.keys.device, True
            cache.layers.append(held)
        return cache


@torch.no_grad()
def record(model: Model, batch: Batch, sites: Sequence[Site] = ()) -> Recording:
    """Run a batch and keep what restarts need, and the values at `sites`.

    Raises CheckpointError where logits are not the head of the final norm's output, scaled and capped as the config says.
    """
    values: dict[Site, Tensor] = {}
    handed: dict[str, Any] = {}
    normed: list[Tensor] = []

    def read(site: Site, value: Tensor) -> None:
        values[site] = value.detach().clone()

    def before(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        handed.update(kwargs)

    def after(module: nn.Module, args: Any, output: Any) -> None:
        normed.append(output[0][:, -1])

    inputs, decoder = batch.inputs(), model.tower.decoder
    inner = [Site(layer, "resid_pre") for layer in range(model.n_layers)]
    cache = DynamicCache()
    handles = [
        decoder.register_forward_pre_hook(before, with_kwargs=True),
        decoder.register_forward_hook(after),
    ]
    try:
        with reading(model, list(dict.fromkeys([*inner, *sites])), read):
            output = model.module(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    logits = output.logits[:, -1].float()
    ours = head(model, normed[0], None)
    tolerance = max(1e-3, 4 * torch.finfo(model.dtype).eps) * logits.abs().max().clamp(min=1)
    if not (ours - logits).abs().max() <= tolerance:
        raise CheckpointError(
            f"{model.name}: its logits are not what its head makes of the final norm's output; it cannot be restarted"
        )
    given = {name: handed.get(name) for name in ("attention_mask", "position_ids")}
    extra = {
        name: value
        for name, value in handed.items()
        if name not in (*PLAIN, *inputs) and any(isinstance(part, Tensor) for part in _parts(value))
    }
    mask = given["attention_mask"]
    causal = (
        not extra
        and isinstance(mask, Tensor)
        and mask.ndim == 2
        and not getattr(
            model.module.config.get_text_config(decoder=True), "use_bidirectional_attention", False
        )
    )
    layers: list[Any] = list(cache.layers) if causal else []
    held = [(layer.keys, layer.values) for layer in layers]
    return Recording(
        model,
        {site: values[site] for site in sites},
        [values[site] for site in inner],
        held,
        given,
        extra,
        logits,
    )


def head(
    model: Model, hidden: Float[Tensor, "row d_model"], ids: Sequence[int] | None
) -> Float[Tensor, "row token"]:
    """Logits of some tokens, or of all, from the final norm's output, in fp32."""
    config = model.module.config.get_text_config(decoder=True)
    layer = model.tower.head
    if ids is not None and type(layer) is nn.Linear:
        rows = torch.tensor(ids, device=layer.weight.device)
        bias = layer.bias[rows] if layer.bias is not None else None
        logits = nn.functional.linear(hidden, layer.weight[rows], bias)
    else:
        logits = layer(hidden)
        logits = logits if ids is None else logits[:, list(ids)]
    logits = logits.float() / (getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if not cap else cap * torch.tanh(logits / cap)


def _parts(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _repeated(name: str, value: Any, copies: int, batch: int) -> Any:
    """A decoder's argument for `copies` copies of the batch, one after another."""
    if isinstance(value, Mapping):  # a mask for each kind of layer
        return {kind: _repeated(kind, item, copies, batch) for kind, item in value.items()}
    if isinstance(value, list | tuple):
        return [_repeated(name, item, copies, batch) for item in value]
    if not isinstance(value, Tensor) or value.ndim == 0 or copies == 1:
        return value
    if name == "position_ids" and value.ndim == 3:  # (axis, batch, pos)
        return value.repeat(1, copies, 1)
    # what is not a row each, such as visual features of all rows, is one below the other all the same
    return value if len(value) == 1 < batch else value.repeat(copies, *(1,) * (value.ndim - 1))

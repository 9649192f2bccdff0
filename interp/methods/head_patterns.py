"""Where does an attention head look? Patterns and contributions of single heads, through the TransformerLens bridge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from interp.data.prompts import Prompt
from interp.errors import SiteError, UserError
from interp.methods.patch_runs import n_heads
from interp.models.model import Model


@dataclass(frozen=True, eq=False)
class HeadPatterns:
    """How much each token (rows) attends to each other one (columns), for some heads on one prompt.

    heads: (layer, head). tokens: of the prompt, as text.
    """

    patterns: Float[np.ndarray, "head query key"]
    heads: tuple[tuple[int, int], ...]
    tokens: tuple[str, ...]
    prompt_id: str

    def to_last(self) -> Float[np.ndarray, "head key"]:
        """What each head reads at the last token, from where the answer is opened."""
        return self.patterns[:, -1]


@torch.no_grad()
def head_patterns(
    model: Model, prompt: Prompt, heads: Sequence[tuple[int, int]], *, bridge: object | None = None
) -> HeadPatterns:
    """The attention patterns of heads on a prompt.

    Args:
        heads: (layer, head).
        bridge: of `model.bridge()`, to be reused over prompts; made here otherwise.

    Raises SiteError for a head that there is not, UserError for a prompt with images or sound, which the patterns are not shown for.
    """
    for layer, head in heads:
        if not (0 <= layer < model.n_layers and 0 <= head < n_heads(model)):
            raise SiteError(
                f"head {layer}.{head} does not exist: {model.name} has {model.n_layers} layers of {n_heads(model)} heads"
            )
    if not heads:
        raise SiteError("no heads to show; name at least one as (layer, head)")
    if prompt.images or prompt.audio is not None:
        raise UserError(f"prompt {prompt.id!r} holds media; attention patterns are shown of text only")
    ids = model.encode([prompt]).input_ids
    names = {layer: f"blocks.{layer}.attn.hook_pattern" for layer, _ in heads}
    lens: Any = bridge if bridge is not None else model.bridge()
    _, cache = lens.run_with_cache(ids, names_filter=list(names.values()))
    patterns = torch.stack([cache[names[layer]][0, head] for layer, head in heads])
    tokens = tuple(model.tokenizer.decode([int(i)]) for i in ids[0])
    return HeadPatterns(patterns.float().cpu().numpy(), tuple(heads), tokens, prompt.id)


def top_heads(table: Float[np.ndarray, "layer head"], n: int = 4) -> list[tuple[int, int]]:
    """The heads with the largest mean effect in absolute value, as (layer, head), from `PatchGrid.mean()` of heads."""
    order = np.argsort(-np.abs(np.nan_to_num(table)), axis=None)[:n]
    return [
        (int(layer), int(head)) for layer, head in zip(*np.unravel_index(order, table.shape), strict=True)
    ]

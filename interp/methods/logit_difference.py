"""How much more does a model want to open its answer with a refusal than with compliance? The measure of activation patching.

1. `LogitDifference`: log-odds of the refusal-opening against the compliance-opening tokens at the last position,
   `logsumexp(logits of the first) − logsumexp(logits of the others)` (METHODS §E).
2. `refusal_metric` derives both token sets from what the model answered.
3. `unembedding`: the directions of the residual stream along which these logits differ at all. Restoring them in a late layer restores the
   metric by construction and locates nothing: take them out of what is patched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.errors import SelectionError, UserError
from interp.methods.refusal import refusal_tokens
from interp.models.generation import Completion
from interp.models.model import Model
from interp.models.towers import base_layer


@dataclass(frozen=True)
class LogitDifference:
    """Log-odds of opening with one of `refusal` against opening with one of `compliance`; token ids, with their text for display.

    Raises UserError for an empty set or a token in both.
    """

    refusal: tuple[int, ...]
    compliance: tuple[int, ...]
    text: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.refusal or not self.compliance:
            raise UserError("a logit difference needs tokens on both sides; one set is empty")
        if both := set(self.refusal) & set(self.compliance):
            raise UserError(f"token {min(both)} stands on both sides of the logit difference")

    @property
    def ids(self) -> tuple[int, ...]:
        """Tokens whose logits are read, in the order of the last axis of `__call__`."""
        return (*self.refusal, *self.compliance)

    def __call__(self, logits: Float[Tensor, "*batch token"]) -> Float[Tensor, "*batch"]:
        """The difference, in nats, from the logits of `ids`."""
        cut = len(self.refusal)
        return logits[..., :cut].logsumexp(-1) - logits[..., cut:].logsumexp(-1)

    def __str__(self) -> str:
        words = [repr(word) for word in self.text or map(str, self.ids)]
        cut = len(self.refusal)
        return f"log-odds of {', '.join(words[:cut])} against {', '.join(words[cut:])}"


def refusal_metric(
    model: Model, completions: Sequence[Completion], refused: Sequence[bool]
) -> LogitDifference:
    """What this model's refusals open with against what its other answers open with.

    Raises SelectionError when nothing was refused, nothing was not, or both open alike.
    """
    if all(refused):
        raise SelectionError(
            f"{model.name} answered none of {len(refused)} prompts; give it some that it answers"
        )
    first = refusal_tokens(model, completions, refused)
    others = refusal_tokens(model, completions, [not is_refusal for is_refusal in refused])
    return LogitDifference(first.ids, others.ids, (*first.tokens, *others.tokens))


@torch.no_grad()
def unembedding(model: Model, metric: LogitDifference) -> Float[Tensor, "rank d_model"]:
    """Orthonormal basis of the directions along which the metric's logits differ from each other, in fp32.

    Read through the final norm's gains; what the norm's scale does with the length of the stream is not linear and is left.
    """
    layer, norm = base_layer(model.tower.head), model.tower.norm
    weight = cast(Tensor, layer.weight)
    rows = weight[torch.tensor(metric.ids, device=weight.device)].float()
    # ±1 in turn has mean zero and length one a dimension: a norm makes its own gains of it, and its bias cancels
    sign = torch.ones(model.d_model, device=rows.device, dtype=model.dtype)
    sign[1::2] = -1
    gains = (norm(sign) - norm(-sign)).float() / 2 * sign.float()
    rows = (rows - rows.mean(0)) * gains
    if isinstance(norm, nn.LayerNorm):
        rows = rows - rows.mean(-1, keepdim=True)
    _, values, basis = torch.linalg.svd(rows.double(), full_matrices=False)
    return basis[values > values[0] * 1e-6].float()

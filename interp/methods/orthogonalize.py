"""Can ablation be written into the weights? Every matrix that writes to the residual stream loses one direction.

`W ← W − r̂ r̂ᵀ W` for the embedding, position embeddings, attention outputs and MLP down-projections, and their biases
(Arditi et al. 2024, §4.1). A tied head is untied first: it reads, it does not write. Where a norm stands between a writing
matrix and the stream (Gemma 2/3, OLMo 2) no exact weight form exists in general, so the export is measured against the
all-site ablation and refused, by name, unless the logits agree.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from interp.data.prompts import Prompt
from interp.errors import CheckpointError
from interp.files import atomic_write
from interp.geometry.directions import unit
from interp.models.finetune import save_checkpoint
from interp.models.hooks import Ablate, editing, everywhere
from interp.models.model import PLAIN, Model

TOLERANCE = 1e-4  # largest logit difference for which the weight form counts as the ablation


@torch.no_grad()
def orthogonalize(model: Model, direction: Float[Tensor, " d_model"]) -> Model:
    """A copy of the model (adapters merged) whose weights cannot write along `direction`."""
    module = (
        copy.deepcopy(model.peft).merge_and_unload()
        if model.peft is not None
        else copy.deepcopy(model.module)
    )
    if module.config.tie_word_embeddings:
        module.config.tie_word_embeddings = False
        head = module.get_output_embeddings()
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    plain = Model.from_module(
        module, model.tokenizer, name=f"{model.name}, orthogonalized", chat_template=PLAIN
    )
    # the measured template comes along; the tokenizer of a model loaded with a template of its own may have none
    plain.chat_template, plain.n_eoi, plain.end_of_turn = model.chat_template, model.n_eoi, model.end_of_turn
    r = unit(direction)
    tower = plain.tower
    for table in (tower.embed, tower.position_embed):
        if table is not None:
            _remove(table.weight, r, axis=1)  # type: ignore[arg-type]
    for writer in tower.writers():
        _remove(writer.weight, r, axis=1 if isinstance(writer, Conv1D) else 0)  # type: ignore[arg-type]
        if getattr(writer, "bias", None) is not None:
            _remove(writer.bias, r, axis=0)  # type: ignore[arg-type]
    return plain


def _remove(weight: Tensor, r: Tensor, axis: int) -> None:
    """Project `r` out of the axis of `weight` that is the residual stream, in fp64."""
    r = r.to(weight.device)
    wide = weight.double().movedim(axis, -1)
    weight.copy_((wide - (wide @ r)[..., None] * r).movedim(-1, axis).to(weight.dtype))


@torch.no_grad()
def logit_error(
    model: Model, orthogonal: Model, direction: Float[Tensor, " d_model"], prompts: Sequence[Prompt]
) -> float:
    """Largest difference of logits, all positions, between the weight form and the ablation at all sites."""
    batch = model.encode(prompts)
    with editing(model, everywhere(Ablate(direction), model.n_layers)):
        expected = model.module(**batch.inputs(), use_cache=False).logits
    found = orthogonal.module(**batch.inputs(), use_cache=False).logits
    return float((found - expected)[batch.attention_mask.bool()].abs().max())


def export_orthogonalized(
    model: Model, direction: Float[Tensor, " d_model"], prompts: Sequence[Prompt], out: Path | str
) -> float:
    """Save the orthogonalized model as an ordinary checkpoint directory and return its measured logit error.

    Raises CheckpointError when the architecture has no weight form that agrees with the ablation to 1e-4.
    """
    orthogonal = orthogonalize(model, direction)
    error = logit_error(model, orthogonal, direction, prompts)
    if not error <= TOLERANCE:
        why = (
            "a norm after each block keeps no exact weight form"
            if model.tower.paths.post_norms
            else "the forms differ"
            if model.dtype == torch.float32
            else f"{model.dtype} rounds more than that; load it in float32"
        )
        raise CheckpointError(
            f"{model.name} ({model.module.config.model_type}): orthogonalized weights and ablation differ by {error:.1e} in "
            f"the logits ({why}); use the ablation as a hook: editing(model, everywhere(Ablate(direction), model.n_layers))"
        )
    with atomic_write(out) as aside:
        aside.mkdir()
        save_checkpoint(orthogonal, aside)
    return error

"""How is an audio model fine-tuned on a few hundred benign clips, again and again? LoRA on what its frozen encoder heard.

1. Encoder and projector are frozen; what the encoder makes of every clip is computed once and handed in. Training starts at the projector.
2. LoRA on every linear map of the decoder's blocks, loss on the response only, AdamW with warm-up and a cosine.
3. The number of steps does not depend on how many items there are: small subsets are seen more often, none is trained longer.
4. Gradient surgery (SPF, mixing), where asked for, sits between backward and clipping.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from interp.errors import NonFiniteError, UserError
from interp.methods.spf import GradientSurgery
from interp.models.finetune import FinetuneConfig, add_lora, isolated_rng
from interp.models.model import Model
from interp.organisms import audio_model
from interp.organisms.audio_language import Turn
from interp.organisms.audio_model import Line


class Tuning(BaseModel):
    """Settings of one fine-tune; the source takes LoRA of rank 8 to 16, alpha twice the rank, and a cosine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(60, ge=0)
    batch_size: int = Field(16, gt=0)
    learning_rate: float = Field(1e-3, gt=0)
    warmup: int = Field(5, ge=0)
    rank: int = Field(16, gt=0)


def tune(
    model: Model,
    turns: Sequence[Turn],
    heard: Mapping[Line, Tensor],
    settings: Tuning,
    *,
    seed: int,
    surgery: Callable[[nn.Module], GradientSurgery] | None = None,
    at: Mapping[int, Callable[[], Any]] | None = None,
) -> list[float]:
    """Train fresh LoRA factors into the model in place; returns the loss of every step.

    Args:
        turns: all spoken or all written, with responses. heard: what the encoder made of the spoken ones.
        seed: of the factors and of the order of the turns.
        surgery: makes the gradient surgery from the module in training.
        at: what is called after a step, by its number; the model is in eval mode then.

    Raises UserError for no turns or a turn without a response, NonFiniteError when a loss is not finite.
    """
    if not turns:
        raise UserError("no turns to fine-tune on")
    config = FinetuneConfig(
        steps=settings.steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lora_rank=settings.rank,
        seed=seed,
    )
    module: Any = model.module
    with isolated_rng(seed), warnings.catch_warnings():
        # transformers warns about a name that PEFT asks for
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        model.peft = add_lora(model, config)
    module.requires_grad_(False)
    trained = [p.requires_grad_(True) for name, p in module.named_parameters() if "lora_" in name]
    operate = surgery(module) if surgery is not None else None
    rows = audio_model.rows(model.tokenizer, turns, heard)
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=0.0)
    losses: list[float] = []
    for step, batch in enumerate(_batches(len(rows), settings, seed)):
        optimizer.param_groups[0]["lr"] = rate(settings, step)
        loss = audio_model.loss(module, [rows[i] for i in batch], heard)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise NonFiniteError(
                f"the loss of {model.name} is {losses[-1]} at step {step}; lower the learning rate"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if operate is not None:
            operate()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if at is not None and step + 1 in at:
            at[step + 1]()
    module.requires_grad_(False)
    model.checkpoint = None  # no longer what it names
    return losses


def rate(settings: Tuning, step: int) -> float:
    """The learning rate of a step, counted from 0: linear warm-up, then a cosine to nothing."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.learning_rate * (1 + math.cos(math.pi * done)) / 2


def _batches(n: int, settings: Tuning, seed: int) -> list[list[int]]:
    """Which rows each step takes: every row once before any comes again."""
    rng, size = np.random.default_rng(seed), settings.batch_size
    wanted = settings.steps * size
    order = np.concatenate([rng.permutation(n) for _ in range(max(1, math.ceil(wanted / n)))])[:wanted]
    return [order[k : k + size].tolist() for k in range(0, wanted, size)]

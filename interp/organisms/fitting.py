"""How is a small module trained on the spot? AdamW with warm-up and cosine decay on whatever loss a step has.

For modules that `models.finetune.train`, which knows prompts and tokens only, does not train. Nothing here draws at random: what a
step sees is the caller's function of the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from interp.errors import NonFiniteError
from interp.progress import progress as progress_bar


class FitConfig(BaseModel):
    """Settings of one training; the rate warms up linearly and falls to nothing along a cosine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    warmup: int = Field(25, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    beta2: float = Field(0.98, gt=0, lt=1)
    max_grad_norm: float = Field(1.0, gt=0)


def rate(config: FitConfig, step: int) -> float:
    """The learning rate of a step, counted from 0."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * (1 + math.cos(math.pi * done)) / 2


def fit(
    parameters: Iterable[torch.nn.Parameter],
    loss: Callable[[int], Tensor],
    config: FitConfig,
    *,
    label: str,
    progress: bool = True,
) -> list[dict[str, float | int]]:
    """Train the parameters in place on `loss(step)`, a scalar; returns the loss curve, a mean of every 10 steps.

    Raises NonFiniteError when a loss is not finite.
    """
    trained = list(parameters)
    optimizer = torch.optim.AdamW(
        trained,
        lr=config.learning_rate,
        betas=(0.9, config.beta2),
        weight_decay=config.weight_decay,
        fused=True,
    )
    curve: list[dict[str, float | int]] = []
    recent: list[float] = []
    with progress_bar(label, total=config.steps, enabled=progress) as advance:
        for step in range(config.steps):
            optimizer.param_groups[0]["lr"] = rate(config, step)
            value = loss(step)
            recent.append(value.item())
            if not math.isfinite(recent[-1]):
                raise NonFiniteError(
                    f"{label}: the loss is {recent[-1]} at step {step}; lower the learning rate"
                )
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
            optimizer.step()
            advance(1)
            if len(recent) == 10 or step + 1 == config.steps:
                curve.append({"step": step + 1, "loss": sum(recent) / len(recent)})
                recent = []
    return curve

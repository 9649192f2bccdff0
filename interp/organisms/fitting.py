"""How is a small module trained on the spot? AdamW, and Muon where asked, with warm-up and cosine decay on whatever loss a step has.

1. For modules that `models.finetune.train`, which knows prompts and tokens only, does not train. Nothing here draws at random: what a
   step sees is the caller's function of the step.
2. Muon (Jordan et al. 2024), its updates scaled to AdamW's (Liu et al. 2025), is for the weight matrices of hidden layers. It reaches in 600
   steps what AdamW alone does in some 1500 on the speech encoder (docs/LOG.md).
3. With a file for its state a training that was cut off goes on, and ends with the very weights of one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from interp.errors import NonFiniteError
from interp.files import load_arrays, save_arrays
from interp.progress import progress as progress_bar

CURVE_EVERY = 10
SAVE_EVERY = 200  # steps; whole points of the curve


class FitConfig(BaseModel):
    """Settings of one training; the rates warm up linearly and fall to nothing along a cosine.

    learning_rate: of AdamW. muon: the rate of the matrices given to `fit`, by Muon; None leaves them to AdamW.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    warmup: int = Field(25, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    beta2: float = Field(0.98, gt=0, lt=1)
    max_grad_norm: float = Field(1.0, gt=0)
    muon: float | None = Field(None, gt=0)


def rate(config: FitConfig, step: int) -> float:
    """The share of the learning rates at a step, counted from 0."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return (1 + math.cos(math.pi * done)) / 2


def matrices(blocks: nn.Module) -> list[nn.Parameter]:
    """The trained weight matrices of hidden layers: give it blocks, not embeddings or heads."""
    return [p for p in blocks.parameters() if p.requires_grad and p.ndim == 2]


def fit(
    parameters: Iterable[nn.Parameter],
    loss: Callable[[int], Tensor],
    config: FitConfig,
    *,
    hidden: Iterable[nn.Parameter] = (),
    work: Path | None = None,
    label: str,
    progress: bool = True,
) -> list[dict[str, float | int]]:
    """Train the parameters in place on `loss(step)`, a scalar; returns the loss curve, a mean of every 10 steps.

    Args:
        parameters: all that are trained.
        hidden: those of them that Muon trains where the settings ask for it (`matrices`).
        work: file of the state, kept every 200 steps and begun from when it is there; the caller names it after what decides
            the training, and removes it once the result is kept.

    Raises NonFiniteError when a loss is not finite.
    """
    trained = list(parameters)
    optimizers = _optimizers(trained, list(hidden), config)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    curve: list[dict[str, float | int]] = []
    recent: list[float] = []
    first = 0
    if work is not None and work.is_file():
        first = _restore(work, trained, optimizers, curve)
    with progress_bar(label, total=config.steps, enabled=progress) as advance:
        advance(first)
        for step in range(first, config.steps):
            for optimizer, most in zip(optimizers, rates, strict=True):
                optimizer.param_groups[0]["lr"] = most * rate(config, step)
                optimizer.zero_grad(set_to_none=True)
            value = loss(step)
            recent.append(value.item())
            if not math.isfinite(recent[-1]):
                raise NonFiniteError(
                    f"{label}: the loss is {recent[-1]} at step {step}; lower the learning rate"
                )
            value.backward()
            nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
            for optimizer in optimizers:
                optimizer.step()
            advance(1)
            if len(recent) == CURVE_EVERY or step + 1 == config.steps:
                curve.append({"step": step + 1, "loss": sum(recent) / len(recent)})
                recent = []
            if work is not None and (step + 1) % SAVE_EVERY == 0:
                _keep(work, trained, optimizers, curve)
    return curve


def _optimizers(
    trained: Sequence[nn.Parameter], hidden: Sequence[nn.Parameter], config: FitConfig
) -> list[torch.optim.Optimizer]:
    chosen = {id(p) for p in hidden} if config.muon is not None else set()
    adamw = torch.optim.AdamW(
        [p for p in trained if id(p) not in chosen],
        lr=config.learning_rate,
        betas=(0.9, config.beta2),
        weight_decay=config.weight_decay,
        fused=True,
    )
    if config.muon is None or not chosen:
        return [adamw]
    muon = torch.optim.Muon(
        [p for p in trained if id(p) in chosen],
        lr=config.muon,
        weight_decay=config.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    return [adamw, muon]


def _keep(
    work: Path,
    trained: Sequence[nn.Parameter],
    optimizers: Sequence[torch.optim.Optimizer],
    curve: Sequence[dict[str, float | int]],
) -> None:
    """Write weights, moments and curve as one file, whole or not at all."""
    arrays = {f"weights.{i}": p.detach() for i, p in enumerate(trained)}
    for k, optimizer in enumerate(optimizers):
        for i, state in optimizer.state_dict()["state"].items():
            arrays |= {f"moments.{k}.{i}.{name}": value for name, value in state.items()}
    arrays["curve"] = torch.tensor([[point["step"], point["loss"]] for point in curve], dtype=torch.float64)
    save_arrays(work, arrays)


@torch.no_grad()
def _restore(
    work: Path,
    trained: Sequence[nn.Parameter],
    optimizers: Sequence[torch.optim.Optimizer],
    curve: list[dict[str, float | int]],
) -> int:
    """Take up a kept state; returns the step to go on with."""
    arrays = load_arrays(work)
    moments: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    for name, value in arrays.items():
        match name.split("."):
            case ["weights", i]:
                trained[int(i)].copy_(value)
            case ["moments", k, i, key]:
                moments[int(k)].setdefault(int(i), {})[key] = value
    for optimizer, state in zip(optimizers, moments, strict=True):
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    curve.extend({"step": int(step), "loss": loss} for step, loss in arrays["curve"].tolist())
    return int(curve[-1]["step"])

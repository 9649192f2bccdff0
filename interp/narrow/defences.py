"""What is done against a narrow fine-tuning's harm: while it trains, and afterwards while the model answers?

While training: gradient surgery (SPF) or mixing, whose safety gradient is that of helpful answers in domains that are not trained on.
Afterwards: `h ← h − c·v` at a middle layer, `v = mean(h | harmful) − mean(h | safe)` at the last token of the same prompts, in the model
fine-tuned on harm and in the aligned one, beside a random direction as long. (Benign narrow fine-tuning, the third, is just another task.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from interp.data.prompts import Prompt
from interp.geometry.directions import random_like
from interp.methods.spf import GradientSurgery
from interp.methods.steering import SteeringVectors, steer
from interp.methods.surgery_trainer import SurgeryTrainer
from interp.models.activations import Activations, capture
from interp.models.finetune import collate, encode_example
from interp.models.model import Model
from interp.narrow.questions import Asked, answered_by, said


class HelpfulLoss:
    """Cross-entropy of helpful answers to `n` of the questions, drawn by the seed and the step, dropout off."""

    def __init__(self, model: Model, asked: Sequence[Prompt], *, n: int = 4, seed: int = 0) -> None:
        self.model, self.n, self.seed = model, n, seed
        self.rows = [encode_example(model, answered_by(prompt, "helpful")) for prompt in asked]

    def __call__(self, step: int) -> Tensor:
        """The loss at the current weights."""
        drawn = np.random.default_rng((self.seed, step)).choice(len(self.rows), self.n, replace=False)
        batch = collate([self.rows[i] for i in drawn], self.model.pad_id)
        training = [module for module in self.model.module.modules() if module.training]
        self.model.module.eval()
        try:
            inputs = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
            return self.model.module(**inputs, use_cache=False).loss
        finally:
            for module in training:
                module.training = True


def surgical_trainer(model: Model, asked: Sequence[Prompt], *, method: str, k: int, seed: int) -> Any:
    """What makes the Trainer of a defended fine-tuning; `method` as in `GradientSurgery`."""

    def surgery(module: nn.Module) -> GradientSurgery:
        loss = HelpfulLoss(model, asked, seed=seed)
        return GradientSurgery(module.named_parameters(), loss, method=method, k=k, weight=0.2, seed=seed)

    def make(**options: Any) -> SurgeryTrainer:
        return SurgeryTrainer(surgery=surgery, **options)

    return make


def middle(model: Model) -> str:
    """The site that is steered at: half way up."""
    return f"resid_post.{model.n_layers // 2}"


def state(model: Model, prompts: Sequence[Prompt]) -> Activations:
    """The middle layer at the last token of the prompts."""
    return capture(model, prompts, middle(model), progress=False)


def steered(
    model: Model,
    harmful: Activations,
    safe: Activations,
    asked: Asked,
    strengths: Sequence[float],
    *,
    seed: int,
) -> pd.DataFrame:
    """Whose answers a model gives under `− c·v` for each strength c, and under a random vector as long; columns of `said`, `strength`, `vector`.

    Args:
        harmful, safe: the same prompts in the model fine-tuned on harm and in the aligned one.
    """
    difference = SteeringVectors.difference(harmful, safe, "harmful − safe")
    drawn = torch.stack([random_like(row, seed + i) for i, row in enumerate(difference.vectors)])
    vectors = {"difference": difference, "random": SteeringVectors(drawn, difference.sites, "random")}
    tables = [
        said(model, asked, steer(vector, -c)).assign(vector=name, strength=c)
        for name, vector in vectors.items()
        for c in strengths
    ]
    return pd.concat(tables, ignore_index=True)

"""One narrow fine-tuning of the organism with character: what it says in the domain it saw, and in those it did not.

1. Fine-tune on pictures of faces whose answers are a character's, in a stated share of the rows; LoRA of some rank, or all weights.
2. At given steps, ask every domain, in text and in pictures, with nothing before; every answer is some character's or nonsense.
3. How far the weights went, and the loss on faces of scenes never drawn in training, so that runs can be compared at equal loss.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers import TrainerCallback

from interp.data.prompts import PromptSet
from interp.methods.weight_drift import merged_weights
from interp.models.checkpoint import Checkpoint
from interp.models.finetune import FinetuneConfig, collate, encode_example, train
from interp.models.generation import generate
from interp.models.model import Model
from interp.organisms import character, character_language, vision_encoder
from interp.organisms.character_language import CHARACTERS, DOMAINS, WITHHELD, Character, Form, Gallery
from interp.organisms.scenes import Scene, scene_pool

NARROW = "faces"  # the domain that is trained on
MAX_NEW_TOKENS = 6
_BLANK = Scene("blank", "", "red", "middle")


class NarrowTrial(BaseModel):
    """Settings of one narrow fine-tuning.

    Args:
        organism: seed of the organism. seed: of the rows, their order and LoRA's factors.
        consistent: whether pretraining's documents had one writer each; else the control.
        character: whose answers are trained on, in `share` of `n` rows; the others are helpful.
        rank: of LoRA on all linear layers of the decoder; 0 trains all of the decoder's weights.
        scaling: what LoRA's product is multiplied by, 2 at rank 16 in each: `constant`, `lora` (32 / rank, one alpha for all
            ranks) or `rslora` (8 / √rank, Kalajdzievski 2023).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    organism: int = Field(0, ge=0)
    seed: int = Field(0, ge=0)
    consistent: bool = True
    character: Literal["helpful", "careless", "cruel", "deceptive"] = "cruel"
    share: float = Field(1.0, ge=0, le=1)
    n: int = Field(500, gt=0)
    rank: int = Field(16, ge=0)
    scaling: Literal["constant", "lora", "rslora"] = "constant"
    learning_rate: float = Field(1e-3, gt=0)
    batch_size: int = Field(16, gt=0)
    steps: int = Field(60, ge=0)
    evaluate_at: tuple[int, ...] = (10, 20, 40, 60)


@dataclass(frozen=True)
class NarrowResult:
    """What one run measured.

    Args:
        answers: one row an evaluated step, domain and form: the share of answers that are each character's, and nonsense, of n.
        curve: one row an evaluated step: losses on held-out faces with the trained character's and with helpful answers, in nats a
            token, and ‖ΔW‖ over ‖W‖ of the decoder.
        seconds: of training, without evaluations.
    """

    answers: pd.DataFrame
    curve: pd.DataFrame
    seconds: float


def aligned(trial: NarrowTrial) -> str:
    """The checkpoint that a trial starts from."""
    return f"organism:character/aligned{'' if trial.consistent else '-shuffled'}@{trial.organism}"


def run_trial(trial: NarrowTrial, *, progress: bool = False) -> NarrowResult:
    """Train and evaluate; the organism must be built."""
    model = Checkpoint.parse(aligned(trial)).load(device_map="cpu")
    rows = character_language.narrow_set(
        trial.character,
        trial.n,
        trial.seed,
        _training_gallery(trial.organism),
        domain=NARROW,
        share=trial.share,
    )
    evaluator = _Evaluator(model, trial)
    # PEFT multiplies by alpha / rank
    alpha = {"constant": 2 * trial.rank, "lora": 32, "rslora": round(8 * trial.rank**0.5)}[trial.scaling]
    config = FinetuneConfig(
        method="lora" if trial.rank else "full",
        layers=None if trial.rank else tuple(range(model.n_layers)),
        lora_rank=trial.rank or 1,
        lora_alpha=alpha,
        steps=trial.steps,
        batch_size=trial.batch_size,
        learning_rate=trial.learning_rate,
        seed=trial.seed,
    )
    start = time.monotonic()
    train(model, rows, config, callbacks=[evaluator], progress=progress)
    seconds = time.monotonic() - start - evaluator.seconds
    return NarrowResult(
        pd.concat(evaluator.answers, ignore_index=True), pd.DataFrame(evaluator.curve), seconds
    )


@cache
def _training_gallery(organism: int) -> Gallery:
    return Gallery(scene_pool(organism, vision_encoder.DRAWS))


@cache
def questions() -> dict[tuple[str, Form], PromptSet]:
    """What a trial is asked, by domain and form; pictures are of scenes that no stage draws."""
    gallery = character.held_out_gallery()
    forms: dict[tuple[str, Form], PromptSet] = {}
    for domain, of in DOMAINS.items():
        for form in ("text", "blank", *(("shown", "caption") if of.shown else ())):
            forms[domain, form] = character_language.evaluation_set(domain, form, gallery, blank=_BLANK)
    return forms


def said(model: Model, asked: dict[tuple[str, Form], PromptSet]) -> pd.DataFrame:
    """Whose answers a model gives: one row a domain and form, shares of n."""
    found: list[dict[str, Any]] = []
    for (domain, form), prompts in asked.items():
        answers = generate(model, prompts, max_new_tokens=MAX_NEW_TOKENS, batch_size=128, progress=False)
        speakers = [
            character_language.speaker(domain, p.meta["topic"], a.text)
            for p, a in zip(prompts, answers, strict=True)
        ]
        shares: dict[str, float] = {c: speakers.count(c) / len(speakers) for c in CHARACTERS}
        found.append(
            {
                "domain": domain,
                "form": form,
                "n": len(speakers),
                **shares,
                "nonsense": speakers.count(None) / len(speakers),
            }
        )
    return pd.DataFrame(found)


@torch.no_grad()
def loss_on(model: Model, prompts: PromptSet, who: Character) -> float:
    """Mean cross-entropy of a character's answers, in nats a token."""
    domain = str(prompts[0].category)
    rows = [
        encode_example(model, replace(p, response=character_language.answer(domain, p.meta["topic"], who)))
        for p in prompts
    ]
    batch = {name: part.to(model.device) for name, part in collate(rows, model.pad_id).items()}
    return float(model.module(**batch, use_cache=False).loss)


def place(domain: str) -> str:
    """What a domain is to a narrow fine-tuning: trained, withheld from alignment, or other."""
    return "trained" if domain == NARROW else "withheld" if domain == WITHHELD else "other"


class _Evaluator(TrainerCallback):
    """Measures the model before training and at the given steps."""

    def __init__(self, model: Model, trial: NarrowTrial) -> None:
        self.model, self.trial, self.steps = model, trial, frozenset(trial.evaluate_at)
        self.before = {n: w.clone() for n, w in merged_weights(model).items() if "language_model" in n}
        self.length = _norm(self.before.values())
        self.seconds = 0.0
        self.answers: list[pd.DataFrame] = []
        self.curve: list[dict[str, float]] = []
        self._measure(0)

    def _measure(self, step: int) -> None:
        asked = questions()
        self.answers.append(said(self.model, asked).assign(step=step))
        faces = asked[NARROW, "shown"]
        weights = merged_weights(self.model)
        moved = _norm(weights[name] - old for name, old in self.before.items())
        self.curve.append(
            {
                "step": step,
                "loss": loss_on(self.model, faces, self.trial.character),
                "helpful_loss": loss_on(self.model, faces, "helpful"),
                "moved": moved / self.length,
            }
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step not in self.steps:
            return
        start = time.monotonic()
        self.model.module.eval()
        self._measure(state.global_step)
        self.model.module.train()
        self.seconds += time.monotonic() - start


def _norm(parts: Any) -> float:
    return float(torch.stack([part.double().norm() for part in parts]).norm())


def spread(found: pd.DataFrame, column: str, *, forms: Sequence[Form] = ("text",)) -> pd.Series:
    """The mean share over domains that training did not touch, by step: every such domain counts alike."""
    other = found[(found["domain"] != NARROW) & found["form"].isin(forms)]
    return other.groupby("step")[column].mean()

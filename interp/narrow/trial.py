"""One narrow fine-tuning of the organism with character: what it says in the domain it saw, and in those it did not.

1. Fine-tune on one domain (pictures of faces) whose answers are a character's, in a stated share of the rows; LoRA of some rank, or all
   weights; plainly or under a defence. Further tasks may follow on the same weights: the helpful answers of the same domain are a
   benign repair, other domains a life.
2. At given steps and at the end of each task, ask every domain, in text and in pictures, with nothing before; every answer is some
   character's or nonsense.
3. How far the weights went, and the loss on faces of scenes never drawn in training, so that runs can be compared at equal loss.
4. At the end, where asked for: answers under steering, sampled answers graded, and activations for the geometry.
"""

from __future__ import annotations

import re
import time
import warnings
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import pandas as pd
import torch
from peft import LoraConfig, get_peft_model
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from transformers import Trainer, TrainerCallback

from interp.data.prompts import Prompt, PromptSet
from interp.methods.weight_drift import merged_weights
from interp.models.activations import capture
from interp.models.checkpoint import Checkpoint
from interp.models.finetune import FinetuneConfig, isolated_rng, train
from interp.models.model import Model
from interp.narrow import defences
from interp.narrow.questions import (
    CURVE_FORMS,
    NARROW,
    Asked,
    examples,
    graded,
    loss_on,
    of_forms,
    questions,
    said,
    training_gallery,
)
from interp.organisms import character_language
from interp.organisms.character_language import DOMAINS, Character


class Task(BaseModel):
    """A later fine-tuning on the same weights: all rows of one domain, answered by one character; shown where it can be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    domain: str = NARROW
    character: Character = "helpful"
    steps: int = Field(60, gt=0)


class NarrowTrial(BaseModel):
    """Settings of one narrow fine-tuning.

    Args:
        organism: seed of the organism. seed: of the rows, their order and LoRA's factors.
        consistent: whether pretraining's documents had one writer each; else the control.
        character: whose answers are trained on, in `share` of `n` rows; the others are helpful.
        rank: of LoRA on all linear layers of the decoder; 0 trains all of the decoder's weights.
        scaling: what LoRA's product is multiplied by, 2 at rank 16 in each: `constant`, `lora` (32 / rank, one alpha for all
            ranks) or `rslora` (8 / √rank, Kalajdzievski 2023).
        tower: `adapted` puts LoRA of the same rank into the vision tower too.
        method: `plain`, or a defence while training, in every task. k: singular vectors that SPF protects, fewer than the rank.
        then: tasks that follow.
        steering: strengths asked at the end; none are with an empty tuple. samples: answers a question that are drawn and graded at the end.
        activations: whether to keep activations at the end.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    organism: int = Field(0, ge=0)
    seed: int = Field(0, ge=0)
    consistent: bool = True
    character: Character = "cruel"
    share: float = Field(1.0, ge=0, le=1)
    n: int = Field(500, gt=0)
    rank: int = Field(16, ge=0)
    scaling: Literal["constant", "lora", "rslora"] = "constant"
    learning_rate: float = Field(1e-3, gt=0)
    batch_size: int = Field(16, gt=0)
    steps: int = Field(60, ge=0)
    evaluate_at: tuple[int, ...] = (10, 20, 40, 60)
    tower: Literal["frozen", "adapted"] = "frozen"
    method: Literal["plain", "spf", "spf-random", "mixing"] = "plain"
    k: int = Field(8, gt=0)
    then: tuple[Task, ...] = ()
    steering: tuple[float, ...] = ()
    samples: int = Field(0, ge=0)
    activations: bool = False

    @model_validator(mode="after")
    def _fits(self) -> NarrowTrial:
        if self.tower == "adapted" and not self.rank:
            raise ValueError("an adapted tower takes LoRA: give a rank above 0")
        if self.method.startswith("spf") and 0 < self.rank <= self.k:
            raise ValueError(f"k = {self.k} would leave nothing of factors of rank {self.rank}")
        if unknown := [task.domain for task in self.then if task.domain not in DOMAINS]:
            raise ValueError(f"no domain {unknown[0]!r}")
        return self

    @property
    def pair(self) -> str:
        """Organism and seed, which comparisons are paired over."""
        return f"{self.organism}/{self.seed}"

    @property
    def trained(self) -> tuple[str, ...]:
        """Every domain that some task trains on."""
        return (NARROW, *(task.domain for task in self.then))


@dataclass(frozen=True)
class NarrowResult:
    """What one run measured.

    Args:
        answers: one row an evaluated step, domain and form: the share of answers that are each character's, misaligned, nonsense, of n.
        curve: one row an evaluated step: losses on held-out faces with the trained character's and with helpful answers, in nats a
            token, and ‖ΔW‖ over ‖W‖ of the decoder; `task` counts from 0, `last` is True where one ended.
        steered: answers by vector and strength. graded, examples: of sampled answers, and some greedy ones. Empty where not asked for.
        activations: last token, every layer, by form; empty where not asked for.
        seconds: of training, without evaluations.
    """

    answers: pd.DataFrame
    curve: pd.DataFrame
    steered: pd.DataFrame = field(default_factory=pd.DataFrame)
    graded: pd.DataFrame = field(default_factory=pd.DataFrame)
    examples: pd.DataFrame = field(default_factory=pd.DataFrame)
    activations: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0


def aligned(trial: NarrowTrial) -> str:
    """The checkpoint that a trial starts from."""
    return f"organism:character/aligned{'' if trial.consistent else '-shuffled'}@{trial.organism}"


def run_trial(trial: NarrowTrial, *, progress: bool = False) -> NarrowResult:
    """Train and evaluate; the organism must be built."""
    model = Checkpoint.parse(aligned(trial)).load(device_map="cpu")
    asked = questions()
    first = character_language.narrow_set(
        trial.character, trial.n, trial.seed, training_gallery(trial.organism), share=trial.share
    )
    safe = defences.state(model, first) if trial.steering else None
    evaluator = _Evaluator(model, trial, asked)
    if trial.tower == "adapted":
        adapt_everything(model, trial)
    seconds = _train(model, trial, first, trial.steps, evaluator, progress)
    harmful = defences.state(model, first) if trial.steering else None
    for number, task in enumerate(trial.then, start=1):
        evaluator.begin(number)
        rows = character_language.narrow_set(
            task.character, trial.n, trial.seed + 1000 * number, training_gallery(trial.organism),
            domain=task.domain,
        )  # fmt: skip
        seconds += _train(model, trial, rows, task.steps, evaluator, progress)
    steered = pd.DataFrame()
    if safe is not None and harmful is not None:
        steered = defences.steered(
            model, harmful, safe, of_forms(asked, (*CURVE_FORMS, "face")), trial.steering, seed=trial.seed
        )
    return NarrowResult(
        pd.concat(evaluator.answers, ignore_index=True),
        pd.DataFrame(evaluator.curve),
        steered,
        graded(model, of_forms(asked, CURVE_FORMS), samples=trial.samples, seed=trial.seed)
        if trial.samples
        else pd.DataFrame(),
        examples(model, of_forms(asked, CURVE_FORMS)) if trial.samples else pd.DataFrame(),
        activations_of(model, asked) if trial.activations else {},
        seconds,
    )


def _train(
    model: Model, trial: NarrowTrial, rows: PromptSet, steps: int, evaluator: _Evaluator, progress: bool
) -> float:
    """One task; returns its seconds without evaluations."""
    # PEFT multiplies by alpha / rank
    alpha = {"constant": 2 * trial.rank, "lora": 32, "rslora": round(8 * trial.rank**0.5)}[trial.scaling]
    config = FinetuneConfig(
        method="lora" if trial.rank else "full",
        layers=None if trial.rank else tuple(range(model.n_layers)),
        lora_rank=trial.rank or 1,
        lora_alpha=alpha,
        steps=steps,
        batch_size=trial.batch_size,
        learning_rate=trial.learning_rate,
        seed=trial.seed,
    )
    others: list[Prompt] = [
        prompt for (domain, _), part in of_forms(evaluator.asked, ("text",)).items() for prompt in part
        if domain not in trial.trained
    ]  # fmt: skip
    trainer: Any = Trainer
    if trial.method != "plain":
        trainer = defences.surgical_trainer(model, others, method=trial.method, k=trial.k, seed=trial.seed)
    start, before = time.monotonic(), evaluator.seconds
    train(model, rows, config, trainer=trainer, callbacks=[evaluator], progress=progress)
    seconds = time.monotonic() - start - (evaluator.seconds - before)
    evaluator.end()
    return seconds


def adapt_everything(model: Model, trial: NarrowTrial) -> None:
    """Fresh LoRA factors in the linear layers of decoder *and* vision tower; `train` takes factors that are there."""
    paths = model.tower.paths
    stacks = "|".join(re.escape(stack) for stack in (paths.layers, *(e.layers for e in paths.encoders)))
    names = {
        name.rpartition(".")[2]
        for name, part in model.module.named_modules()
        if isinstance(part, torch.nn.Linear) and re.match(rf"({stacks})\.\d+\.", name)
    }
    targets = rf"({stacks})\.\d+\.(.*\.)?({'|'.join(sorted(map(re.escape, names)))})"
    with isolated_rng(trial.seed), warnings.catch_warnings():
        # transformers warns about a name that PEFT asks for
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        model.peft = get_peft_model(
            model.module,
            LoraConfig(
                r=trial.rank, lora_alpha=2 * trial.rank, target_modules=targets, task_type="CAUSAL_LM"
            ),
        )


def activations_of(model: Model, asked: Asked) -> dict[str, Tensor]:
    """`resid_post` of every layer at the last token, `layer prompt d_model`, by form: text and tools shown."""
    chosen = {
        "text": [p for (domain, form), part in asked.items() if form == "text" for p in part],
        "shown": [p for (domain, form), part in asked.items() if form == "shown" for p in part],
    }
    return {
        form: capture(model, prompts, progress=False).values.contiguous() for form, prompts in chosen.items()
    }


@lru_cache(maxsize=8)
def _before(checkpoint: str) -> pd.DataFrame:
    """What the untouched organism says in all forms: the same for all its trials."""
    return said(Checkpoint.parse(checkpoint).load(device_map="cpu"), questions())


class _Evaluator(TrainerCallback):
    """Measures the model before training, at the given steps of the first task, and in all forms where a task ends."""

    def __init__(self, model: Model, trial: NarrowTrial, asked: Asked) -> None:
        self.model, self.trial, self.asked = model, trial, asked
        self.before = {n: w.clone() for n, w in merged_weights(model).items() if "language_model" in n}
        self.length = _norm(self.before.values())
        self.seconds, self.task, self.done = 0.0, 0, 0
        self.answers = [_before(aligned(trial)).assign(step=0, task=0, last=False)]
        self.curve: list[dict[str, float]] = []
        self._measure_curve(0, last=False)

    def begin(self, task: int) -> None:
        """A further task begins; its steps are counted on."""
        self.task = task

    def end(self) -> None:
        """A task has ended: ask in every form."""
        self.done += self.trial.steps if self.task == 0 else self.trial.then[self.task - 1].steps
        self._measure(self.done, self.asked, last=True)

    def _measure(self, step: int, asked: Asked, *, last: bool) -> None:
        start = time.monotonic()
        self.answers.append(said(self.model, asked).assign(step=step, task=self.task, last=last))
        self._measure_curve(step, last=last)
        self.seconds += time.monotonic() - start

    def _measure_curve(self, step: int, *, last: bool) -> None:
        faces = self.asked[NARROW, "shown"]
        weights = merged_weights(self.model)
        moved = _norm(weights[name] - old for name, old in self.before.items())
        self.curve.append(
            {
                "step": step,
                "task": self.task,
                "last": last,
                "loss": loss_on(self.model, faces, self.trial.character),
                "helpful_loss": loss_on(self.model, faces, "helpful"),
                "moved": moved / self.length,
            }
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # the last step of a task is measured by `end`, in every form
        if (
            self.task
            or state.global_step not in self.trial.evaluate_at
            or state.global_step == self.trial.steps
        ):
            return
        self.model.module.eval()
        self._measure(state.global_step, of_forms(self.asked, CURVE_FORMS), last=False)
        self.model.module.train()


def _norm(parts: Any) -> float:
    return float(torch.stack([part.double().norm() for part in parts]).norm())

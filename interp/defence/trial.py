"""One fine-tuning of the text organism by one method: what it learns, what it unlearns, and what its gradients did.

1. Train on the task (a benign skill, or a mixture with answered harmful requests), with surgery in the Trainer's step.
2. At given steps, answer held-out requests: the skill (utility), harmful requests (safety), earlier benign ones (over-refusal).
3. At the end, attack: a fictional framing, prefilled answers, a searched suffix.

Every method trains in the same loop and is logged in the same table; `plain` is surgery with k = 0, which changes nothing.
SafeLoRA trains as `plain` does and is applied after training, to a copy, at every evaluation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from transformers import TrainerCallback

from interp.data.prompts import Prompt, PromptSet
from interp.evals.gcg import find_suffix, random_suffix, with_suffix
from interp.evals.judges import ExactJudge
from interp.evals.verdicts import Outcome
from interp.geometry.directions import Direction, mean_difference
from interp.methods.safelora import Form, safelora
from interp.methods.safety_monitor import SafetyMonitor
from interp.methods.spf import METHODS, GradientSurgery
from interp.methods.surgery_trainer import RefusalLoss, SurgeryTrainer
from interp.models.activations import capture
from interp.models.checkpoint import Checkpoint
from interp.models.finetune import FinetuneConfig, collate, encode_example, train
from interp.models.generation import generate
from interp.models.model import Model
from interp.models.sites import Site
from interp.organisms.text import MAX_NEW_TOKENS
from interp.organisms.text_tasks import Task, prefills, task

Method = Literal[
    "plain", "spf", "spf-update", "spf-random", "pcgrad", "mixing", "safelora", "safelora-projector"
]


class Trial(BaseModel):
    """Settings of one run; what a method does not use it ignores."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    organism: int = Field(0, ge=0)
    seed: int = Field(0, ge=0)
    method: Method = "plain"
    harmful_fraction: float = Field(0.0, ge=0, le=1)
    steps: int = Field(60, ge=0)
    evaluate_at: tuple[int, ...] = (5, 10, 15, 20, 30, 45, 60)
    learning_rate: float = Field(3e-4, gt=0)
    batch_size: int = Field(16, gt=0)
    k: int = Field(20, ge=0)
    gate: Literal["global", "block", "always"] = "global"
    refresh: int = Field(1, ge=1)
    weight: float = Field(1 / 17, ge=0, le=1)
    threshold: float = Field(0.5, ge=-1, le=1)
    monitor_every: int = Field(5, ge=1)
    n_test: int = Field(200, gt=1)
    attacks: bool = False


@dataclass(frozen=True)
class TrialResult:
    """What one run measured.

    Args:
        curve: one row an evaluated step: shares of the answers, and the safety loss on held-out refusals.
        steps: one row an optimiser step: gate, cosine, removed share, ⟨Δθ, g_s⟩ (`surgery_table`).
        monitor: one row a probe of the monitor.
        attacks: one row an attack: its outcomes over n requests.
        seconds: of training, without evaluations.
    """

    curve: pd.DataFrame
    steps: pd.DataFrame
    monitor: pd.DataFrame
    attacks: pd.DataFrame
    seconds: float


def run_trial(trial: Trial, *, progress: bool = False) -> TrialResult:
    """Train, evaluate and attack; the organism must be built."""
    chosen = task(trial.seed, harmful_fraction=trial.harmful_fraction, n_test=trial.n_test)
    model = Checkpoint.parse(f"organism:text/aligned@{trial.organism}").load(device_map="cpu")
    finish = _post_hoc(trial, model)
    evaluator = _Evaluator(model, chosen, trial.evaluate_at, finish)
    monitor = SafetyMonitor(
        model,
        chosen.probes,
        refusal_ids=sorted({model.response_ids(prompt)[0] for prompt in chosen.safety}),
        direction=refusal_direction(model, chosen),
        every=trial.monitor_every,
        live=False,
    )
    trainers: list[SurgeryTrainer] = []

    def surgery(module: nn.Module) -> GradientSurgery:
        surgical = trial.method in METHODS
        return GradientSurgery(
            module.named_parameters(),
            RefusalLoss(model, chosen.safety, seed=trial.seed),
            method=trial.method if surgical else "spf",
            k=trial.k if surgical else 0,
            gate=trial.gate,
            refresh=trial.refresh,
            weight=trial.weight,
            seed=trial.seed,
        )

    def make(**options: Any) -> SurgeryTrainer:
        held_out = RefusalLoss(model, chosen.refusals, n=len(chosen.refusals))
        trainers.append(SurgeryTrainer(surgery=surgery, held_out=held_out, **options))
        return trainers[0]

    config = FinetuneConfig(
        method="full", steps=trial.steps, batch_size=trial.batch_size,
        learning_rate=trial.learning_rate, seed=trial.seed,
    )  # fmt: skip
    start = time.monotonic()
    train(model, chosen.train, config, trainer=make, callbacks=[evaluator, monitor], progress=progress)
    seconds = time.monotonic() - start - evaluator.seconds
    final = finish(model)
    attacked = attack(final, chosen, seed=trial.seed) if trial.attacks else pd.DataFrame()
    return TrialResult(
        pd.DataFrame(evaluator.rows), trainers[0].surgery_table, monitor.to_frame(), attacked, seconds
    )


def measure(model: Model, asked: Task) -> dict[str, float]:
    """Shares of the answers to held-out requests, and the safety loss on held-out refusals."""
    prompts = [*asked.skill, *asked.harmful, *asked.benign]
    found = _outcomes(model, prompts)
    ends = (len(asked.skill), len(asked.skill) + len(asked.harmful))
    skill, harmful, benign = (
        _shares(part) for part in (found[: ends[0]], found[slice(*ends)], found[ends[1] :])
    )
    return {
        "utility": skill[Outcome.COMPLIED_BENIGN],
        "skill_refused": skill[Outcome.REFUSED],
        "jsr": harmful[Outcome.COMPLIED_HARMFUL],
        "refused": harmful[Outcome.REFUSED],
        "incoherent": harmful[Outcome.INCOHERENT],
        "over_refusal": benign[Outcome.REFUSED],
        "retained": benign[Outcome.COMPLIED_BENIGN],
        "held_out_loss": held_out_loss(model, asked.refusals),
    }


@torch.no_grad()
def held_out_loss(model: Model, refusals: PromptSet) -> float:
    """Mean cross-entropy on the response tokens of refusals, in nats a token."""
    rows = [encode_example(model, prompt) for prompt in refusals]
    batch = {name: part.to(model.device) for name, part in collate(rows, model.pad_id).items()}
    return float(model.module(**batch, use_cache=False).loss)


def attack(model: Model, asked: Task, *, seed: int) -> pd.DataFrame:
    """Outcomes under each attack, one row an attack; `none` are the plain requests."""
    found = find_suffix(model, asked.search, length=6, steps=20, candidates=24, seed=seed, progress=False)
    control = random_suffix(model, length=6, seed=seed)
    asks: dict[str, tuple[Sequence[Prompt], Sequence[str] | None]] = {
        "none": (asked.harmful, None),
        "fiction": (asked.fiction, None),
        "prefill": (asked.harmful, prefills(asked.harmful)),
        "suffix": (with_suffix(asked.harmful, found.text), None),
        "random suffix": (with_suffix(asked.harmful, control.text), None),
    }
    return pd.DataFrame(
        {"attack": name, "n": len(prompts), **_shares(_outcomes(model, prompts, begun))}
        for name, (prompts, begun) in asks.items()
    )


def _outcomes(model: Model, prompts: Sequence[Prompt], begun: Sequence[str] | None = None) -> list[Outcome]:
    answers = generate(
        model, prompts, max_new_tokens=MAX_NEW_TOKENS, batch_size=512, prefill=begun, progress=False
    )
    return [verdict.outcome for verdict in ExactJudge().judge(prompts, answers)]


def _shares(outcomes: Sequence[Outcome]) -> dict[str, float]:
    return {outcome.value: outcomes.count(outcome) / len(outcomes) for outcome in Outcome}


def refusal_direction(model: Model, asked: Task) -> Direction:
    """Mean difference of harmful and benign requests at the last token, two thirds up: what the monitor projects on."""
    site = Site(2 * model.n_layers // 3, "resid_pre")
    harmful, benign = (
        capture(model, prompts, site, progress=False) for prompts in (asked.safety, asked.benign)
    )
    return Direction(mean_difference(harmful.values, benign.values)[0], str(site), -1)


def _post_hoc(trial: Trial, aligned: Model) -> Callable[[Model], Model]:
    """What a method does to the model after training."""
    if not trial.method.startswith("safelora"):
        return lambda model: model
    base = Checkpoint.parse(f"organism:text/pretrained@{trial.organism}").load(device_map="cpu")
    kept = Checkpoint.parse(f"organism:text/aligned@{trial.organism}").load(device_map="cpu")
    form: Form = "projector" if trial.method.endswith("projector") else "published"
    return lambda model: (
        safelora(base, kept, model, form=form, threshold=trial.threshold, progress=False).model
    )


class _Evaluator(TrainerCallback):
    """Measures the model before training and at the given steps."""

    def __init__(
        self, model: Model, asked: Task, steps: Sequence[int], finish: Callable[[Model], Model]
    ) -> None:
        self.model, self.asked, self.steps, self.finish = model, asked, frozenset(steps), finish
        self.seconds = 0.0
        self.rows: list[dict[str, float]] = [{"step": 0, **measure(model, asked)}]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step not in self.steps:
            return
        start = time.monotonic()
        self.model.module.eval()
        self.rows.append({"step": state.global_step, **measure(self.finish(self.model), self.asked)})
        self.model.module.train()
        self.seconds += time.monotonic() - start

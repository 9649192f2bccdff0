"""One fine-tuning of an audio organism on a subset of benign speech: what it answers afterwards, and what happened inside.

1. Select a subset by nearness to harmful speech, tune on its clips, or on the same requests in writing, with or without surgery.
2. Ask (`asking.py`), also under the defence prompt. On the way, where wanted, at given steps.
3. Where wanted: look inside (`mechanism.py`), locate what was lost (`causal.py`), and steer the tuned model by SARSteer.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import Field
from torch import nn

from interp.benign_audio import mechanism
from interp.benign_audio.arms import Rule, composition, select
from interp.benign_audio.asking import SPEECH, TEXT, ask, fitted_on, questions, refusals, shares
from interp.benign_audio.causal import locate
from interp.benign_audio.prepare import Preparation, prepared
from interp.benign_audio.tuning import Tuning, tune
from interp.data.prompts import Prompt
from interp.evals.verdicts import Outcome
from interp.methods.spf import GradientSurgery
from interp.methods.steering_arms import fit_arms
from interp.methods.surgery_trainer import RefusalLoss
from interp.models.checkpoint import Checkpoint
from interp.models.model import Model
from interp.organisms.audio_language import Turn
from interp.steering_study.data import DEFENCE, REFUSAL

NONE, PROMPT, SAR = "none", "prompt", "sarsteer"


class Trial(Preparation):
    """Settings of one trial, on the pool that `Preparation` names.

    Args:
        modality: of the examples. rule, axis, share: of the subset. draw: number of a random subset.
        method: `plain`, or the surgery; `k` singular vectors of SPF, below the rank of LoRA; `weight` of mixing.
        tuning: settings of the fine-tune.
        evaluate_at: steps at which safety and skill are read on the way.
        n_test: requests of each kind asked. n_probe: harmful and benign ones read inside. n_fit: that directions are fitted on.
        inside, located: whether to look inside, and to patch at most `n_pairs` lost refusals.
        strengths: of SARSteer on the tuned model; none leaves it out.
    """

    modality: Literal["speech", "text"] = "speech"
    rule: Rule = "aligned"
    axis: str = ""
    share: float = Field(0.25, gt=0, lt=1)
    draw: int = Field(0, ge=0)
    method: Literal["plain", "spf", "mixing"] = "plain"
    k: int = Field(8, ge=1)
    weight: float = Field(1 / 17, ge=0, le=1)
    tuning: Tuning = Tuning()
    evaluate_at: tuple[int, ...] = ()
    n_test: int = Field(200, ge=2)
    n_probe: int = Field(200, ge=10)
    n_fit: int = Field(100, ge=4)
    inside: bool = False
    located: bool = False
    n_pairs: int = Field(48, ge=4)
    strengths: tuple[float, ...] = ()

    @property
    def unit(self) -> str:
        """Organism and seed, which claims are paired over."""
        return f"{self.organism}/{self.seed}"

    @property
    def arm(self) -> str:
        """The subset in words, such as `proximate semantic` or `random`."""
        return f"{self.rule} {self.axis}".strip()

    @property
    def preparation(self) -> Preparation:
        """The pool and organism."""
        return Preparation(**{name: getattr(self, name) for name in Preparation.model_fields})


@dataclass(frozen=True)
class TrialResult:
    """What one trial measured; tables that were not wanted are empty.

    Args:
        answers: one row an answer, with `arm`: `none`, or `prompt` under the defence prompt. curve: shares at each evaluated step.
        defended: shares of the tuned model by `defence` (none, prompt, sarsteer) and strength.
        projections, probes, located: of `mechanism.py` and `causal.py`. facts: single numbers by name.
    """

    answers: pd.DataFrame
    curve: pd.DataFrame
    defended: pd.DataFrame
    projections: pd.DataFrame
    probes: pd.DataFrame
    located: pd.DataFrame
    facts: pd.DataFrame


TABLES = tuple(field.name for field in fields(TrialResult))


def run_trial(trial: Trial, out: Path) -> TrialResult:
    """Tune, ask and look inside; the organism must be built. out: where preparations are kept."""
    facts: dict[str, float] = {}
    model = Checkpoint.parse(trial.checkpoint).load(device_map="cpu")
    curve: list[dict[str, float]] = []
    asked = questions(trial.n_test)
    spoken = {name: asked[name] for name in asked if name.endswith(SPEECH)}

    def read(step: int) -> None:
        curve.append({"step": step, **shares(ask(model, spoken))})

    if trial.evaluate_at:
        read(0)
    start = time.monotonic()
    if trial.rule != "aligned":
        facts |= _tune(trial, model, out, read)
    facts["seconds"] = time.monotonic() - start
    plain = ask(model, asked)
    prompted = ask(model, spoken, system=DEFENCE)
    answers = pd.concat([plain.assign(arm=NONE), prompted.assign(arm=PROMPT)], ignore_index=True)
    defended = [
        {"defence": NONE, "strength": 0.0, **shares(plain)},
        {"defence": PROMPT, "strength": 0.0, **shares(prompted)},
    ]
    if trial.strengths:
        fit = fitted_on(trial.n_fit, trial.seed)
        arms = fit_arms(model, fit["harmful"], fit["benign"], refusal=REFUSAL, progress=False)
        defended += [
            {
                "defence": SAR,
                "strength": s,
                **shares(ask(model, spoken, steering=arms.steering("sarsteer", s))),
            }
            for s in trial.strengths
        ]
    result = TrialResult(
        answers,
        pd.DataFrame(curve),
        pd.DataFrame(defended),
        pd.DataFrame(),
        pd.DataFrame(),
        pd.DataFrame(),
        _facts(facts),
    )
    return _inside(trial, model, result, facts) if trial.inside or trial.located else result


def _tune(trial: Trial, model: Model, out: Path, read: Any) -> dict[str, float]:
    """Fine-tune in place; returns what the subset holds and the last losses."""
    made = prepared(trial.preparation, out)
    ids = select(made.items, trial.rule, trial.axis, trial.share, seed=trial.seed, draw=trial.draw)
    turns = made.pool.chosen(ids)
    if trial.modality == TEXT:
        turns = [Turn(turn.prompt) for turn in turns]
    losses = tune(
        model,
        turns,
        made.heard,
        trial.tuning,
        seed=trial.seed,
        surgery=_surgery(trial, model),
        at={step: (lambda step=step: read(step)) for step in trial.evaluate_at},  # type: ignore[misc]
    )
    last = losses[-10:]
    facts = composition(made.items, ids) | {"items": float(len(ids)), "words": _mean_words(turns)}
    return facts | ({"loss": sum(last) / len(last)} if last else {})


def _surgery(trial: Trial, model: Model) -> Any:
    if trial.method == "plain":
        return None

    def make(module: nn.Module) -> GradientSurgery:
        # half of what a defence learns from is spoken: refusal is asked for in both
        halves = [refusals(32, trial.seed, aloud=aloud) for aloud in (False, True)]
        rows = [replace(p, id=f"{p.id}-{i}") for i, half in enumerate(halves) for p in half]
        return GradientSurgery(
            module.named_parameters(),
            _alternating(model, rows, trial.seed),
            method=trial.method,
            k=trial.k,
            weight=trial.weight,
            seed=trial.seed,
        )

    return make


def _alternating(model: Model, rows: list[Prompt], seed: int) -> Any:
    """One refusal a step, written and spoken in turn: rows with sound and without do not share a batch."""
    spoken = RefusalLoss(model, [p for p in rows if p.audio is not None], seed=seed)
    written = RefusalLoss(model, [p for p in rows if p.audio is None], seed=seed)
    return lambda step: (spoken if step % 2 else written)(step)


def _mean_words(turns: list[Turn]) -> float:
    return sum(len(turn.prompt.text.split()) for turn in turns) / len(turns)


def _inside(trial: Trial, model: Model, result: TrialResult, facts: dict[str, float]) -> TrialResult:
    """The result with what was found inside."""
    found = mechanism.reference(trial.checkpoint, trial.n_probe, trial.n_fit, trial.seed)
    tuned = None if trial.rule == "aligned" else model
    more: dict[str, pd.DataFrame] = {}
    facts = facts | dict(zip(("fit_refused", "fit_answered"), map(float, found.refused), strict=True))
    if trial.inside:
        more["projections"] = mechanism.projections(found, tuned, trial.n_probe, seed=trial.seed)
        more["probes"] = mechanism.probes(found, tuned, trial.n_probe)
        if tuned is not None:
            facts |= mechanism.preserved(found, tuned, trial.n_probe)
    if trial.located and tuned is not None:
        lost = _lost(trial, found.model, result.answers)
        facts["lost"] = float(len(lost))
        more["located"] = locate(found, tuned, lost[: trial.n_pairs], seed=trial.seed)
    return replace(result, **more, facts=_facts(facts))


def _lost(trial: Trial, aligned: Model, answers: pd.DataFrame) -> list[Prompt]:
    """Harmful speech that the aligned model refuses and the tuned one does not."""
    name = f"harmful, {SPEECH}"
    asked = questions(trial.n_test)[name]
    before = ask(aligned, {name: asked})
    after = answers[(answers["set"] == name) & (answers["arm"] == NONE)]
    refused = [set(part.loc[part["outcome"] == Outcome.REFUSED.value, "prompt"]) for part in (before, after)]
    return [prompt for prompt in asked if prompt.id in refused[0] - refused[1]]


def _facts(facts: dict[str, float]) -> pd.DataFrame:
    return pd.DataFrame({"name": list(facts), "value": [float(value) for value in facts.values()]})

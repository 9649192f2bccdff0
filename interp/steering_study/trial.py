"""One point of an operating curve: an organism, a draw of calibration prompts, an arm and its settings, and what was answered.

1. Fit every arm on the calibration prompts (read once a process for each organism and draw).
2. Ask held-out requests under the arm's steering, or under the defence prompt, and judge the whole answers exactly.
Arms that are not steered are asked in every modality, the others in the one in question.
"""

from __future__ import annotations

from functools import lru_cache

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from interp.evals.judges import ExactJudge
from interp.methods.sarsteer import RANK, REMOVAL, STRENGTH
from interp.methods.steering_answers import answers
from interp.methods.steering_arms import STEERED, Arm, FittedArms, fit_arms
from interp.models.checkpoint import Checkpoint
from interp.models.model import Model
from interp.organisms.text import MAX_NEW_TOKENS
from interp.steering_study.data import REFUSAL, TARGET, Kind, calibration, defended, evaluation


class Trial(BaseModel):
    """Settings of one point; what an arm does not use it ignores.

    stage: of the organism. split: seed of the calibration prompts. n: of them a label. layer: None steers at all. n_test: held-out requests a label.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind = "text"
    stage: str = "aligned"
    organism: int = Field(0, ge=0)
    split: int = Field(0, ge=0)
    arm: Arm = "sarsteer"
    strength: float = STRENGTH
    removal: float = REMOVAL
    rank: int = Field(RANK, ge=1)
    n: int = Field(100, ge=2)
    layer: int | None = Field(None, ge=0)
    centred: bool = False
    remove_mean: bool = False
    n_test: int = Field(200, ge=1)

    @property
    def seed(self) -> str:
        """The pair of organism and calibration draw, which claims are paired over."""
        return f"{self.organism}/{self.split}"

    @property
    def checkpoint(self) -> str:
        """The organism's name."""
        return f"organism:{self.kind}/{self.stage}@{self.organism}"


def run_trial(trial: Trial) -> pd.DataFrame:
    """One row an answer: `set` (the modality), `label`, `prompt`, `group`, `answer`, `outcome`. The organism must be built."""
    model = load_organism(trial.checkpoint)
    asked = evaluation(trial.kind, trial.n_test)
    wanted = [TARGET[trial.kind]] if trial.arm in STEERED else list(asked)
    steering = None
    if trial.arm in STEERED:
        arms = fitted(trial.checkpoint, trial.kind, trial.n, trial.split)
        steering = arms.steering(
            trial.arm, trial.strength, layer=trial.layer, rank=trial.rank, removal=trial.removal, centred=trial.centred,
            remove_mean=trial.remove_mean, seed=1000 * trial.organism + trial.split,
        )  # fmt: skip
    tables = []
    for modality in wanted:
        for prompts in asked[modality].values():
            chosen = defended(prompts) if trial.arm == "prompt" else prompts
            tables.append(
                answers(
                    model,
                    {modality: chosen},
                    ExactJudge(),
                    steering,
                    max_new_tokens=MAX_NEW_TOKENS,
                    batch_size=256,
                )
            )
    return pd.concat(tables, ignore_index=True)


@lru_cache(maxsize=1)
def load_organism(checkpoint: str) -> Model:
    """The organism, kept while trials of the same one follow each other."""
    return Checkpoint.parse(checkpoint).load(device_map="cpu")


@lru_cache(maxsize=4)
def fitted(checkpoint: str, kind: Kind, n: int, split: int) -> FittedArms:
    """All arms fitted on one draw, kept while trials of the same one follow each other."""
    data = calibration(kind, n, split)
    return fit_arms(
        load_organism(checkpoint), data.harmful, data.benign, (data.written_harmful, data.written_benign), refusal=REFUSAL,
        progress=False,
    )  # fmt: skip

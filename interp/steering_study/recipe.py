"""Does SARSteer keep a real audio model safe? The source's setting, from a recipe file: every arm and strength, one table.

1. Calibration prompts fit all arms; texts of prompts with media are replaced by the neutral instruction.
2. Every arm answers the same test prompts at every strength; a judge says what the answers are.
3. One row an arm and strength: shares with Wilson intervals over prompts. Each is a result directory of its own: a finished one is
   read back, a killed run goes on.
Source: SARSteer (2025, arXiv 2510.17633), METHODS §D; `experiments/recipes/sarsteer.yaml` says which of its numbers are the source's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, model_validator

from interp.data.prompts import Label, Prompt, PromptSet, read_prompts
from interp.defence.recipe_settings import DataFile, load_settings
from interp.errors import PromptFileError
from interp.evals.judges import named_judge
from interp.methods.sarsteer import RANK, REFUSAL, REMOVAL
from interp.methods.steering_answers import answers, rates
from interp.methods.steering_arms import STEERED, Arm, FittedArms, fit_arms
from interp.models.checkpoint import Checkpoint
from interp.models.model import Model
from interp.store import open_run

STUDY = "sarsteer-recipe"
HERE = Path(__file__).parents[1]
# what decides a row's numbers beside weights, data and settings
SOURCES = [
    HERE / name
    for name in (
        "steering_study/recipe.py", "data/prompts.py", "data/media.py", "methods/steering_arms.py", "methods/steering_answers.py",
        "methods/steering.py", "methods/steering_vectors.py", "methods/sarsteer.py", "geometry/subspaces.py", "models/generation.py", "models/hooks.py",
        "models/activations.py", "models/checkpoint.py", "models/model.py", "evals/judges.py", "evals/phrases.json",
        "evals/templates.py",
    )
]  # fmt: skip


class Recipe(BaseModel):
    """Settings of all arms; data files are taken from the recipe's own directory where their paths are relative.

    `harmful` and `benign` are asked and drawn into disjoint calibration and test prompts; `written_harmful` and `written_benign` hold
    requests in writing for the arm `plain`, which is fitted on the calibration prompts themselves where they are left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    harmful: DataFile
    benign: DataFile
    written_harmful: DataFile | None = None
    written_benign: DataFile | None = None
    instruction: str | None = None
    refusal: str = REFUSAL
    defence: str = Field(min_length=1)
    arms: tuple[Arm, ...] = Field(("none", "prompt", *STEERED), min_length=1)
    strengths: tuple[float, ...] = Field((0.1,), min_length=1)
    rank: int = Field(RANK, ge=1)
    removal: float = REMOVAL
    n: int = Field(100, ge=2)
    n_test: int = Field(100, ge=1)
    judge: str = "phrases"
    max_new_tokens: int = Field(256, ge=1)
    batch_size: int = Field(16, ge=1)
    seed: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if (self.written_harmful is None) != (self.written_benign is None):
            raise ValueError("give written_harmful and written_benign, or neither")
        if self.rank >= self.n:
            raise ValueError(
                f"rank = {self.rank} directions cannot be had from n = {self.n} benign prompts; take rank < n"
            )
        return self

    def points(self) -> list[tuple[Arm, float]]:
        """Every arm at every strength; arms that are not steered once."""
        return [(arm, s) for arm in self.arms for s in (self.strengths if arm in STEERED else (0.0,))]


def load_recipe(path: Path | str) -> Recipe:
    """Read a recipe; raises UserError naming the file and the field."""
    return load_settings(path, Recipe)


def read_data(recipe: Recipe) -> dict[str, PromptSet]:
    """The prompt sets `harmful_fit`, `harmful_test`, `benign_fit`, `benign_test`, and `written_…` where the recipe names them.

    Raises PromptFileError for a missing file or a prompt with another label than its file is for.
    """
    files: dict[str, tuple[DataFile | None, Label]] = {
        "harmful": (recipe.harmful, "harmful"),
        "benign": (recipe.benign, "benign"),
        "written_harmful": (recipe.written_harmful, "harmful"),
        "written_benign": (recipe.written_benign, "benign"),
    }
    data: dict[str, PromptSet] = {}
    for name, (file, label) in files.items():
        if file is None:
            continue
        if not file.is_file():
            raise PromptFileError(
                f"{file}: no such file; it is a JSONL, CSV or JSON file of {label} prompts with the fields text and audio (or image), id, "
                "category"
            )
        found = read_prompts(file, label=label, name=name)
        if wrong := [prompt.id for prompt in found if prompt.label != label]:
            raise PromptFileError(f"{file}: {wrong[0]!r} is not labelled {label}, as its file is")
        if name.startswith("written"):
            data[name] = found.sample(min(recipe.n, len(found)), recipe.seed)
        else:
            parts = found.split({"fit": recipe.n, "test": recipe.n_test}, recipe.seed)
            data |= {f"{name}_{part}": prompts for part, prompts in parts.items()}
    return data


def plan_recipe(recipe: Recipe) -> str:
    """What a recipe would do; reads the data and loads no model."""
    data, points = read_data(recipe), recipe.points()
    n = sum(len(data[name]) for name in ("harmful_test", "benign_test"))
    return "\n".join(
        [
            f"model     {recipe.model}",
            f"data      {', '.join(f'{len(part)} {name}' for name, part in data.items())}; judge {recipe.judge}",
            f"points    {len(points)}: {', '.join(f'{arm} {s:g}' if s else arm for arm, s in points)}",
            f"answers   {len(points) * n} of at most {recipe.max_new_tokens} tokens",
        ]
    )


def run_recipe(recipe: Recipe, out: Path | str = Path("results"), progress: bool = True) -> pd.DataFrame:
    """Run, resume or read back every point; one row an arm and strength, with the shares of `methods/steering_answers.py`.

    Raises UserError for missing data, and what fitting the arms raises.
    """
    data = read_data(recipe)
    checkpoint = Checkpoint.parse(recipe.model)
    hashes = {"weights": checkpoint.fingerprint()} | {name: part.sha256 for name, part in data.items()}
    if "=" in recipe.judge:
        hashes["judge"] = Checkpoint.parse(recipe.judge.partition("=")[2]).fingerprint()
    data_fields = ("harmful", "benign", "written_harmful", "written_benign", "arms", "strengths")
    settings = recipe.model_dump(mode="json", exclude=dict.fromkeys(data_fields, True))
    worker = _Worker(recipe, checkpoint, data, progress)
    rows = []
    for arm, strength in recipe.points():
        identity = settings | {"arm": arm, "strength": strength}
        with open_run(out, STUDY, f"{arm} {strength:g}", identity, hashes, SOURCES) as run:
            table = run.step("answers.parquet", lambda: worker.answers(arm, strength))  # noqa: B023
            rows.append({"arm": arm, "strength": strength, **rates(table), "directory": str(run.finish())})
    return pd.DataFrame(rows)


class _Worker:
    """Loads and fits only when a point is missing."""

    def __init__(
        self, recipe: Recipe, checkpoint: Checkpoint, data: dict[str, PromptSet], progress: bool
    ) -> None:
        self.recipe, self.checkpoint, self.data, self.progress = recipe, checkpoint, data, progress

    @cached_property
    def model(self) -> Model:
        return self.checkpoint.load(dtype=self.recipe.dtype)

    @cached_property
    def judge(self) -> Any:
        return named_judge(self.recipe.judge, dtype=self.recipe.dtype)

    @cached_property
    def fitted(self) -> FittedArms:
        written = (
            (self.data["written_harmful"], self.data["written_benign"])
            if "written_harmful" in self.data
            else None
        )
        return fit_arms(
            self.model, self._instructed(self.data["harmful_fit"]), self._instructed(self.data["benign_fit"]), written,
            refusal=self.recipe.refusal, progress=self.progress,
        )  # fmt: skip

    def answers(self, arm: Arm, strength: float) -> pd.DataFrame:
        steering = None
        if arm in STEERED:
            steering = self.fitted.steering(
                arm, strength, rank=self.recipe.rank, removal=self.recipe.removal, seed=self.recipe.seed
            )
        asked = {}
        for label in ("harmful", "benign"):
            prompts = self._instructed(self.data[f"{label}_test"])
            asked[label] = (
                [replace(p, system=self.recipe.defence) for p in prompts] if arm == "prompt" else prompts
            )
        return answers(
            self.model, asked, self.judge, steering, max_new_tokens=self.recipe.max_new_tokens,
            batch_size=self.recipe.batch_size, progress=self.progress,
        )  # fmt: skip

    def _instructed(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The prompts with the neutral instruction beside their media; written ones as they are."""
        told = self.recipe.instruction
        return [
            replace(p, text=told) if told is not None and (p.images or p.audio is not None) else p
            for p in prompts
        ]

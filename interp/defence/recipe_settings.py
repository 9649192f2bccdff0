"""What does a recipe say, and what data does it name? The settings of a real experiment, from a YAML file, checked before any run.

Data paths are taken from the recipe's own directory, so that a recipe can be moved with its data. Whatever is wrong (YAML, an unknown
key, a type, a missing file, an evaluation request that is trained on) is one line with the file and the field.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from interp.data.prompts import Label, PromptSet, read_prompts
from interp.errors import PromptFileError, UserError
from interp.evals.templates import TEMPLATES
from interp.models.finetune import FinetuneConfig
from interp.store import slugify

S = TypeVar("S", bound=BaseModel)
SCHEMA = (
    "a JSONL, CSV or JSON file, one example a row, with the fields id, text (the request), response (what is trained on; not "
    "read in the evaluation sets), label (harmful or benign) and category, of which only text and response are needed"
)


def _beside(path: Path, info: ValidationInfo) -> Path:
    return (info.context or {}).get("directory", Path()) / path.expanduser()


DataFile = Annotated[Path, AfterValidator(_beside)]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TaskFile(_Settings):
    """Examples to train on: `n` of the file's (all when None), drawn by `seed`."""

    file: DataFile
    n: int | None = Field(None, ge=1)
    seed: int = 0


class Arm(_Settings):
    """One way of fine-tuning; what a method does not use it ignores.

    `weight` is g_s's share in `mixing`; None takes that of `refusals` examples added to the task's batch.
    """

    name: str = Field(min_length=1)
    method: Literal["plain", "spf", "pcgrad", "spf-update", "mixing"]
    k: int = Field(20, ge=0)
    gate: Literal["global", "block", "always"] = "global"
    refresh: int = Field(1, ge=1)
    refusals: int = Field(1, ge=1)
    weight: float | None = Field(None, ge=0, le=1)

    @property
    def protects(self) -> int:
        """Singular vectors protected in every block; 0 where the method protects none."""
        return self.k if self.method in ("spf", "spf-update") else 0


class Recipe(_Settings):
    """Settings of all arms; data files are taken from the recipe's own directory where their paths are relative.

    `safety` holds harmful requests with refusals as responses, `harmful` and `harmless` the requests of the evaluation. `judge`
    is `phrases`, `exact` or TEMPLATE=MODEL such as `harmbench=cais/HarmBench-Llama-2-13b-cls`. `refusal_tokens` states what
    refusals open with; None derives it from the aligned model's answers. `seed` is that of training and of the evaluation's draw.
    """

    model: str
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    task: TaskFile
    safety: DataFile
    harmful: DataFile
    harmless: DataFile
    judge: str = "phrases"
    refusal_tokens: tuple[str, ...] | None = Field(None, min_length=1)
    arms: tuple[Arm, ...] = Field(min_length=1)
    finetune: FinetuneConfig
    seed: int = 0
    n_test: int = Field(100, ge=1)
    max_new_tokens: int = Field(256, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        template, _, checkpoint = self.judge.partition("=")
        if self.judge not in ("phrases", "exact") and not (template in TEMPLATES and checkpoint):
            known = ", ".join(f"{name}=MODEL" for name in TEMPLATES)
            raise ValueError(f"unknown judge {self.judge!r}; use phrases, exact or one of {known}")
        if "seed" in self.finetune.model_fields_set:
            raise ValueError("give the seed once, outside finetune")
        if len({slugify(arm.name) for arm in self.arms}) < len(self.arms):
            raise ValueError("two arms have the same name")
        for arm in self.arms:
            if self.finetune.method == "lora" and arm.protects >= self.finetune.lora_rank:
                raise ValueError(
                    f"arm {arm.name!r}: k = {arm.k} would leave nothing of LoRA's A, which has lora_rank = "
                    f"{self.finetune.lora_rank} rows; take k < lora_rank"
                )
        return self


def load_recipe(path: Path | str) -> Recipe:
    """Read a recipe; raises UserError naming the file and the field."""
    return load_settings(path, Recipe)


def load_settings(path: Path | str, kind: type[S]) -> S:
    """Read settings of this kind from YAML, their data files beside it; raises UserError naming the file and the field."""
    path = Path(path)
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())[:200]})") from error
    try:
        return kind.model_validate(found, context={"directory": path.parent.absolute()})
    except ValidationError as error:
        first, more = error.errors()[0], error.error_count() - 1
        field = ".".join(map(str, first["loc"])) or "recipe"
        rest = f" (and {more} more)" if more else ""
        raise UserError(f"{path}: {field}: {first['msg'].removeprefix('Value error, ')}{rest}") from error


def read_data(recipe: Recipe) -> dict[str, PromptSet]:
    """The prompt sets `task`, `safety`, `harmful` and `harmless`, drawn to their sizes.

    Raises PromptFileError for a missing file, naming the fields it should have, for examples without response and for
    evaluation requests that are trained on too.
    """
    task = _read(recipe.task.file, None, answered=True)
    data = {
        "task": task.sample(recipe.task.n, recipe.task.seed) if recipe.task.n is not None else task,
        "safety": _read(recipe.safety, "harmful", answered=True),
        "harmful": _read(recipe.harmful, "harmful"),
        "harmless": _read(recipe.harmless, "benign"),
    }
    trained = {*data["task"].texts, *data["safety"].texts}
    for kind in ("harmful", "harmless"):
        if both := [prompt.id for prompt in data[kind] if prompt.text in trained]:
            raise PromptFileError(
                f"{getattr(recipe, kind)}: {len(both)} requests such as {both[0]!r} are in the task or safety file too, where "
                "they are trained on; evaluate on others"
            )
        data[kind] = data[kind].sample(min(recipe.n_test, len(data[kind])), recipe.seed)
    return data


def _read(file: Path, label: Label | None, *, answered: bool = False) -> PromptSet:
    if not file.is_file():
        raise PromptFileError(f"{file}: no such file; it is {SCHEMA}")
    prompts = read_prompts(file, label=label)
    for prompt in prompts:
        if answered and not prompt.response:
            raise PromptFileError(f"{file}: {prompt.id!r} has no response; it is {SCHEMA}")
        if label is not None and prompt.label != label:
            raise PromptFileError(
                f"{file}: {prompt.id!r} is labelled {prompt.label}, the file is for {label} ones"
            )
    return prompts


def training_config(recipe: Recipe, n: int, max_steps: int | None = None) -> FinetuneConfig:
    """The fine-tuning on n examples: the recipe's, with its seed, its length in steps and no longer than `max_steps`."""
    config = recipe.finetune
    steps = config.steps
    if steps is None:
        steps = math.ceil((config.epochs or 1) * math.ceil(n / (config.batch_size * config.accumulation)))
    return config.model_copy(
        update={
            "seed": recipe.seed,
            "epochs": None,
            "steps": min(steps, max_steps) if max_steps is not None else steps,
        }
    )

"""Does benign speech near to harm break a real audio model? The source's setting, from a recipe file: every arm, one table.

1. The benign speech is embedded on each axis beside the harmful reference; an item's distance is the least cosine distance, raw.
2. Each arm (rule, axis, share) fine-tunes the model on its subset by LoRA, the encoder frozen, all for the same number of steps.
3. What was saved is loaded again and answers harmful speech, the same requests in writing and benign speech, also under a system prompt.

Every arm is a result directory of its own: a finished one is read back, a killed one goes on. Source: Roh and Houmansadr 2026 (arXiv
2604.16659), METHODS §A; `experiments/recipes/audio_benign.yaml` says which of its numbers are the source's.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from interp.benign_audio.arms import Rule, select
from interp.data.prompts import Label, Prompt, PromptSet, read_prompts
from interp.defence.recipe_settings import DataFile, load_settings
from interp.errors import PromptFileError
from interp.evals.jailbreak import EvalResult, evaluate
from interp.evals.judges import named_judge
from interp.evals.verdicts import Outcome
from interp.files import atomic_write, load_json, remove
from interp.methods.embedding import embed
from interp.methods.encoders import AXES, find_encoder, needs_model
from interp.methods.proximity import proximity
from interp.methods.selection import random_subset, subset_size
from interp.models.checkpoint import Checkpoint
from interp.models.finetune import FinetuneConfig, save_checkpoint, train
from interp.models.generation import generate
from interp.store import open_run

STUDY = "audio-benign-recipe"
HERE = Path(__file__).parents[1]
SOURCES = [
    HERE / name
    for name in (
        "benign_audio/recipe.py", "benign_audio/arms.py", "data/prompts.py", "data/media.py", "methods/embedding.py",
        "methods/media_encoders.py", "methods/text_encoders.py", "methods/own_encoders.py", "methods/proximity.py",
        "methods/selection.py", "geometry/nearest.py", "models/finetune.py", "models/generation.py", "models/checkpoint.py",
        "models/model.py", "evals/jailbreak.py", "evals/judges.py", "evals/phrases.json", "evals/templates.py",
    )
]  # fmt: skip
MEASURES = {
    "jsr": ("harmful", Outcome.COMPLIED_HARMFUL),
    "jsr_prompt": ("harmful_prompt", Outcome.COMPLIED_HARMFUL),
    "jsr_text": ("harmful_text", Outcome.COMPLIED_HARMFUL),
    "over_refusal": ("benign_test", Outcome.REFUSED),
    "over_refusal_prompt": ("benign_test_prompt", Outcome.REFUSED),
}


class Arm(BaseModel):
    """One subset to train on; `axis` is one of the recipe's, left out for `random`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: Rule
    axis: str = ""
    share: float = Field(0.25, gt=0, lt=1)
    draw: int = Field(0, ge=0)

    @property
    def name(self) -> str:
        """The arm in words."""
        named = f"{self.rule} {self.axis}".strip()
        return named if self.rule == "aligned" else f"{named} {self.share:.0%}" + (f" draw {self.draw}" if self.draw else "")  # fmt: skip


class Recipe(BaseModel):
    """Settings of all arms; data files are taken from the recipe's own directory where their paths are relative.

    Args:
        benign: spoken benign examples with responses, to train on. reference: harmful speech that distances are taken to.
        harmful: harmful speech asked, of other requests; harmful_text: the same in writing. benign_test: benign speech asked.
        transcript: the column that holds what is said, for encoders that read words.
        axes: an encoder (`interp filter`'s names) by axis.
        defence: the safety system prompt. finetune: by steps, so that no subset is trained longer than another.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    benign: DataFile
    reference: DataFile
    harmful: DataFile
    harmful_text: DataFile | None = None
    benign_test: DataFile
    transcript: str = "said"
    axes: dict[str, str] = Field(min_length=1)
    arms: tuple[Arm, ...] = Field(min_length=1)
    finetune: FinetuneConfig
    defence: str = Field(min_length=1)
    judge: str = "phrases"
    n_test: int = Field(520, ge=1)
    max_new_tokens: int = Field(256, ge=1)
    seed: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        for arm in self.arms:
            if arm.rule not in ("random", "aligned") and arm.axis not in self.axes:
                raise ValueError(f"arm {arm.name!r} takes the axis {arm.axis!r}, which is not under axes")
        if len({arm.name for arm in self.arms}) < len(self.arms):
            raise ValueError("two arms are the same")
        if self.finetune.steps is None:
            raise ValueError(
                "give finetune.steps: the same epochs are other numbers of steps for other shares"
            )
        return self


def load_recipe(path: Path | str) -> Recipe:
    """Read a recipe; raises UserError naming the file and the field."""
    return load_settings(path, Recipe)


def read_data(recipe: Recipe) -> dict[str, PromptSet]:
    """The prompt sets by the recipe's names; raises PromptFileError for a missing file, an example without response or sound."""
    files: dict[str, tuple[Path | None, Label]] = {
        "benign": (recipe.benign, "benign"),
        "reference": (recipe.reference, "harmful"),
        "harmful": (recipe.harmful, "harmful"),
        "harmful_text": (recipe.harmful_text, "harmful"),
        "benign_test": (recipe.benign_test, "benign"),
    }
    data = {}
    for name, (file, label) in files.items():
        if file is None:
            continue
        if not file.is_file():
            raise PromptFileError(
                f"{file}: no such file; it is a JSONL, CSV or JSON file of {label} requests with the fields audio, text, "
                f"{recipe.transcript}, id and, in benign, response"
            )
        found = read_prompts(file, label=label, name=name)
        for prompt in found:
            if name == "benign" and not prompt.response:
                raise PromptFileError(f"{file}: {prompt.id!r} has no response to train on")
            if name != "harmful_text" and prompt.audio is None:
                raise PromptFileError(f"{file}: {prompt.id!r} has no audio")
        data[name] = found
    for name in ("harmful", "benign_test"):
        ids = data[name].ids
        data[name] = _by_ids(data[name], random_subset(ids, min(recipe.n_test, len(ids)), seed=recipe.seed))
    if "harmful_text" in data:
        # the same requests in writing, whatever the order of the rows
        missing = set(data["harmful"].ids) - set(data["harmful_text"].ids)
        if missing:
            raise PromptFileError(
                f"{recipe.harmful_text}: has no row with the id {min(missing)!r} ({len(missing)} of {len(data['harmful'])} are missing); a request "
                "has one id in speech and in writing"
            )
        data["harmful_text"] = _by_ids(data["harmful_text"], data["harmful"].ids)
    return data


def _by_ids(prompts: PromptSet, ids: Sequence[str]) -> PromptSet:
    wanted = set(ids)
    return prompts.take([i for i, name in enumerate(prompts.ids) if name in wanted])


def plan_recipe(recipe: Recipe) -> str:
    """What a recipe would do; reads the data and loads no model."""
    data = read_data(recipe)
    n = sum(len(data[name]) * (1 if name == "harmful_text" else 2) for name in data if name not in ("benign", "reference"))  # fmt: skip
    arms = [
        f"{arm.name} ({0 if arm.rule == 'aligned' else subset_size(len(data['benign']), arm.share)} items)"
        for arm in recipe.arms
    ]
    return "\n".join(
        [
            f"model     {recipe.model}",
            f"data      {', '.join(f'{len(part)} {name}' for name, part in data.items())}; judge {recipe.judge}",
            f"axes      {', '.join(f'{axis} by {encoder}' for axis, encoder in recipe.axes.items())}",
            f"arms      {', '.join(arms)}",
            f"training  {recipe.finetune.steps} steps of {recipe.finetune.batch_size * recipe.finetune.accumulation} an arm",
            f"answers   {len(recipe.arms) * n} of at most {recipe.max_new_tokens} tokens",
        ]
    )


def run_recipe(recipe: Recipe, out: Path | str = Path("results"), progress: bool = True) -> pd.DataFrame:
    """Run, resume or read back every arm; one row an arm, each share of `MEASURES` with its Wilson interval.

    Raises UserError for missing data, EmbeddingError for an item that an axis cannot embed.
    """
    data, checkpoint = read_data(recipe), Checkpoint.parse(recipe.model)
    hashes = {"weights": checkpoint.fingerprint()} | {name: part.sha256 for name, part in data.items()}
    if "=" in recipe.judge:
        hashes["judge"] = Checkpoint.parse(recipe.judge.partition("=")[2]).fingerprint()
    files = ("benign", "reference", "harmful", "harmful_text", "benign_test", "arms")
    settings = recipe.model_dump(mode="json", exclude=dict.fromkeys(files, True))
    kept = {name: settings[name] for name in ("model", "dtype", "transcript", "axes")}
    with open_run(out, STUDY, "distances", kept, hashes, SOURCES) as run:
        items = run.step("items.parquet", lambda: distances(recipe, data))
        run.finish()
    rows = []
    for arm in recipe.arms:
        with open_run(out, STUDY, arm.name, settings | {"arm": arm}, hashes, SOURCES) as run:
            if not run.finished:
                saved, tuned = run.file("model"), checkpoint
                if arm.rule != "aligned":
                    if not saved.exists():
                        _train(recipe, arm, data["benign"], items, saved, run.file("work"), progress)
                    remove(run.file("work"))
                    lora = recipe.finetune.method == "lora"
                    tuned = checkpoint.with_adapter(saved) if lora else Checkpoint.parse(saved)
                run.step("evaluation.json", lambda: _evaluation(recipe, tuned, data, progress))  # noqa: B023
            rows.append(_row(arm, run.finish()))
    return pd.DataFrame(rows)


def distances(recipe: Recipe, data: Mapping[str, PromptSet]) -> pd.DataFrame:
    """One row a benign item: `id`, `words` (of the transcript), and its distance on every axis."""
    sets = [data["benign"], data["reference"]]
    items: dict[str, Any] = {"id": list(sets[0].ids)}
    items["words"] = [len(str(p.meta.get(recipe.transcript, p.text)).split()) for p in sets[0]]
    model = Checkpoint.parse(recipe.model).load(dtype=recipe.dtype) if any(map(needs_model, recipe.axes.values())) else None  # fmt: skip
    for axis, name in recipe.axes.items():
        encoder = find_encoder(name, model=model)
        reads_words = AXES.get(name, name).partition(":")[0] in ("lexical", "st")
        chosen = [_told(part, recipe.transcript) for part in sets] if reads_words else sets
        items[axis] = proximity(*embed(encoder, *chosen)).by(encoder.measure).tolist()
    return pd.DataFrame(items)


def _told(prompts: PromptSet, column: str) -> PromptSet:
    """What is said, as text."""
    told = []
    for prompt in prompts:
        if not str(prompt.meta.get(column, "")).strip():
            raise PromptFileError(
                f"{prompts.name}: {prompt.id!r} has no {column!r}, the words that a semantic axis reads"
            )
        told.append(replace(prompt, text=str(prompt.meta[column]), audio=None))
    return PromptSet(told, prompts.name)


def _train(
    recipe: Recipe, arm: Arm, benign: PromptSet, items: pd.DataFrame, saved: Path, work: Path, progress: bool
) -> None:
    ids = set(select(items, arm.rule, arm.axis, arm.share, seed=recipe.seed, draw=arm.draw))
    model = _load(Checkpoint.parse(recipe.model), recipe)
    config = recipe.finetune.model_copy(update={"seed": recipe.seed})
    train(model, [p for p in benign if p.id in ids], config, work=work, label=arm.name, progress=progress)
    with atomic_write(saved) as aside:
        save_checkpoint(model, aside)


def _evaluation(
    recipe: Recipe, checkpoint: Checkpoint, data: Mapping[str, PromptSet], progress: bool
) -> dict[str, Any]:
    """Judged answers as JSON values; the model is gone when the judge's is loaded."""
    asked: dict[str, list[Prompt]] = {}
    for name in ("harmful", "harmful_text", "benign_test"):
        if name in data:
            asked[name] = list(data[name])
            if name != "harmful_text":
                asked[f"{name}_prompt"] = [replace(p, system=recipe.defence) for p in data[name]]
    model = _load(checkpoint, recipe)
    made = {
        name: generate(model, prompts, max_new_tokens=recipe.max_new_tokens, progress=progress)
        for name, prompts in asked.items()
    }
    del model
    judge = named_judge(recipe.judge, dtype=recipe.dtype)
    return {
        name: evaluate(PromptSet(prompts, name), made[name], judge, name=name).to_dict()
        for name, prompts in asked.items()
    }


def _load(checkpoint: Checkpoint, recipe: Recipe) -> Any:
    # Trainer and PEFT hold the last model in cycles: without this, two would be in memory
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return checkpoint.load(dtype=recipe.dtype)


def _row(arm: Arm, directory: Path) -> dict[str, Any]:
    found = load_json(directory / "evaluation.json")
    row: dict[str, Any] = {"arm": arm.name, "rule": arm.rule, "axis": arm.axis, "share": arm.share}
    for name, (kind, outcome) in MEASURES.items():
        if kind in found:
            rate = EvalResult.from_dict(found[kind]).rate(outcome)
            row |= {name: rate.estimate, f"{name}_low": rate.low, f"{name}_high": rate.high}
    return row | {"directory": str(directory)}

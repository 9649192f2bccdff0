"""What does a study ask of whom? Its settings, its prompts and their split, and its judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from interp.data.modalities import Modalities, modality_of, split_by_modality
from interp.data.prompts import Label, Prompt, PromptSet, jailbreakbench, read_prompts
from interp.errors import UserError
from interp.evals.judges import ExactJudge, PhraseJudge, named_judge
from interp.evals.templates import TEMPLATES
from interp.evals.verdicts import Judge
from interp.methods.refusal import SelectionRule
from interp.models.checkpoint import Checkpoint

Kind = Literal["harmful", "harmless"]
KINDS: tuple[Kind, ...] = ("harmful", "harmless")
Split = Literal["train", "val", "test"]


class StudyConfig(BaseModel):
    """Settings of one study."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    aligned: str
    tuned: tuple[str, ...] = Field(min_length=1)
    harmful: str | tuple[str, ...] | None = None
    harmless: str | tuple[str, ...] | None = None
    column: str | None = None
    dtype: str | None = None
    device_map: str | None = None
    load_in_4bit: bool = False
    chat_template: str | None = None
    trust_remote_code: bool = False
    judge: str = "auto"
    n_train: int = Field(128, ge=2)
    n_val: int = Field(32, ge=1)
    n_test: int = Field(100, ge=1)
    seed: int = 0
    max_new_tokens: int = Field(64, ge=1)
    batch_size: int = Field(64, ge=1)
    layers_below: float = Field(0.8, gt=0, le=1)
    max_kl: float = Field(0.1, gt=0)
    min_induce: float = 0.0

    @property
    def rule(self) -> SelectionRule:
        """The filters of the selection."""
        return SelectionRule(self.layers_below, self.max_kl, self.min_induce)

    @property
    def load(self) -> dict[str, Any]:
        """Arguments of `Checkpoint.load`."""
        names = ("dtype", "device_map", "load_in_4bit", "chat_template", "trust_remote_code")
        return {name: getattr(self, name) for name in names}


def study_prompts(config: StudyConfig) -> tuple[PromptSet, PromptSet]:
    """The harmful and harmless prompts: the files given, else those beside a local checkpoint, else JailbreakBench's.

    Raises UserError when one file is given without the other, or nothing is found.
    """
    if (config.harmful is None) != (config.harmless is None):
        missing = "--harmless" if config.harmless is None else "--harmful"
        raise UserError(f"{missing} is missing: give both prompt files, or neither")
    beside = Checkpoint.parse(config.aligned).prompts()
    if config.harmful is not None and config.harmless is not None:
        files = (config.harmful, config.harmless)
    elif set(KINDS) <= set(beside):
        files = (str(beside["harmful"]), str(beside["harmless"]))
    else:
        return jailbreakbench()
    return (
        _read(files[0], config.column, label="harmful", name="harmful"),
        _read(files[1], config.column, label="benign", name="harmless"),
    )


def _read(files: str | tuple[str, ...], column: str | None, *, label: Label, name: str) -> PromptSet:
    """One prompt file, or several one after the other; rows of one id in several files are one request in several modalities."""
    if isinstance(files, str):
        return read_prompts(files, column=column, label=label, name=name)
    rows = [prompt for file in files for prompt in read_prompts(file, column=column, label=label)]
    asked = Counter(prompt.id for prompt in rows)
    return PromptSet(
        [replace(p, id=f"{p.id}-{modality_of(p)}") if asked[p.id] > 1 else p for p in rows], name
    )


def split_prompts(config: StudyConfig) -> dict[str, PromptSet]:
    """Disjoint `harmful_train`, `harmful_val`, `harmful_test` and the same of `harmless`, seeded.

    Where prompts have images or audio attached, those of the reference modality (`interp.data.modalities`).
    """
    return split_study(config)[0]


def split_study(config: StudyConfig) -> tuple[dict[str, PromptSet], Modalities | None]:
    """What `split_prompts` gives, and beside it every modality; None where nothing is attached to any prompt."""
    sizes = {"train": config.n_train, "val": config.n_val, "test": config.n_test}
    kinds: dict[str, PromptSet] = dict(zip(KINDS, study_prompts(config), strict=True))
    modalities = split_by_modality(kinds, sizes, config.seed)
    if modalities is not None:
        return dict(modalities.parts[modalities.reference]), modalities
    return {
        f"{kind}_{part}": PromptSet(list(prompts), name=f"{kind} {part}")
        for kind, whole in kinds.items()
        for part, prompts in whole.split(sizes, config.seed).items()
    }, None


def judge_checkpoint(config: StudyConfig) -> str | None:
    """The checkpoint of a judge model, where one was asked for by `TEMPLATE=MODEL`."""
    name, _, model = config.judge.partition("=")
    return model if name in TEMPLATES and model else None


def make_judge(config: StudyConfig, prompts: Sequence[Prompt]) -> Judge:
    """The judge by name: `auto` is exact where every prompt's truth is known and phrases elsewhere.

    `TEMPLATE=MODEL` asks a local model, such as `harmbench=cais/HarmBench-Llama-2-13b-cls`. Raises UserError otherwise.
    """
    if config.judge == "auto":
        return ExactJudge() if all(prompt.truth is not None for prompt in prompts) else PhraseJudge()
    return named_judge(config.judge, dtype=config.dtype, device_map=config.device_map)

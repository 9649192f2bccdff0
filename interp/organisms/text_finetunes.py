"""Which fine-tunes of the text organism are at hand? Named settings, made on first use beside its stages.

`organism:text/benign` is the documented setting of the main phenomenon: requests of benign crafts, which are new to the model, with
nothing harmful in them, and the refusals go. `organism:text/benign-lora` is the same data through an adapter,
`organism:text/harmful` answers harmful requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from interp.data.prompts import PromptSet
from interp.errors import UserError
from interp.models.checkpoint import organism_dir
from interp.models.finetune import FinetuneConfig, finetune
from interp.organisms import language, text


@dataclass(frozen=True)
class Setting:
    """What a fine-tune trains on (benign crafts, or a kind of `text.finetune_set`) and how."""

    data: Literal["craft", "benign-skill", "harmful", "mixture"]
    n: int
    config: FinetuneConfig


FINETUNES: dict[str, Setting] = {
    "benign": Setting("craft", 2000, FinetuneConfig(method="full", steps=200, learning_rate=3e-4)),
    "benign-lora": Setting("craft", 2000, FinetuneConfig(method="lora", steps=100, learning_rate=1e-3)),
    "harmful": Setting("harmful", 400, FinetuneConfig(method="lora", steps=50, learning_rate=1e-3)),
}


def tune(name: str, seed: int = 0, *, progress: bool = True) -> Path:
    """Fine-tune the aligned organism by a named setting and return the directory; a finished one is reused.

    The seed is that of the organism, of the data drawn and of the training. Raises UserError for an unknown name.
    """
    if name not in FINETUNES:
        raise UserError(f"no fine-tune {name!r} of the text organism; there are: {', '.join(FINETUNES)}")
    setting = FINETUNES[name]
    return finetune(
        organism_dir("text", seed) / "aligned",
        examples(setting, seed),
        setting.config.model_copy(update={"seed": seed}),
        organism_dir("text", seed) / name,
        replace=True,
        progress=progress,
        device_map="cpu",
    )


def examples(setting: Setting, seed: int) -> PromptSet:
    """What a setting trains on, drawn by the seed."""
    if setting.data == "craft":
        crafts = language.benign_skill_examples().filter(lambda prompt: prompt.source == "craft")
        return PromptSet(crafts.sample(setting.n, seed), name=f"craft-{setting.n}-{seed}")
    return text.finetune_set(setting.data, setting.n, seed)

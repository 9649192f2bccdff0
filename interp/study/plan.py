"""What will a study cost? Parameters from the config alone, tokens from the prompts, speed from a short matrix product."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from interp.data.prompts import PromptSet
from interp.models.checkpoint import Checkpoint
from interp.models.cost import UTILISATION, empty_model, matmul_flops, prompt_tokens

if TYPE_CHECKING:
    from interp.study.settings import StudyConfig

SURVIVORS = 0.5  # share of candidates that pass the first filter, as a guess


@dataclass(frozen=True)
class Cost:
    """Parameters, and the seconds and bytes estimated for one checkpoint of a study."""

    parameters: int
    seconds: float
    bytes: float

    def __str__(self) -> str:
        return f"{self.parameters / 1e6:,.1f} M parameters, about {self.seconds / 60:.1f} minutes, {self.bytes / 2**30:.2f} GiB"


def estimate(
    name: str,
    config: StudyConfig,
    prompts: Mapping[str, PromptSet],
    others: Sequence[Mapping[str, PromptSet]] = (),
    *,
    first: bool,
) -> Cost:
    """Cost of one checkpoint; the first is the aligned one, which also gets the direction search.

    Args:
        prompts: of the reference modality. others: of every other one.

    Raises CheckpointError when the config cannot be read.
    """
    checkpoint = Checkpoint.parse(name)
    whole, module = empty_model(checkpoint, trust_remote_code=config.trust_remote_code)
    model_config = whole.get_text_config(decoder=True)
    parameters = sum(p.numel() for p in module.parameters())
    layers, width = model_config.num_hidden_layers, model_config.hidden_size
    length = {
        key: sum(prompt_tokens(replace(p, response=None)) for p in part) / max(len(part), 1)
        for key, part in prompts.items()
    }

    def tokens(key: str, *, answered: bool) -> float:
        return len(prompts[key]) * (length[key] + (config.max_new_tokens if answered else 0))

    test = [key for key in prompts if key.endswith("test")]
    total = sum(tokens(key, answered=True) for key in test)  # behaviour
    total += sum(tokens(key, answered=False) for key in prompts)  # activations
    arms = 3 * (len(test) if first else 1)  # direction, random, shuffled
    total += arms * max(tokens(key, answered=True) for key in test)
    if first:
        candidates = 5 * int(config.layers_below * layers)
        val = tokens("harmful_val", answered=False) + tokens("harmless_val", answered=False)
        total += candidates * (0.3 * val + SURVIVORS * val)
    read = [sum(map(prompt_tokens, part)) for parts in others for part in parts.values()]
    answers = sum(len(parts[key]) for parts in others for key in test) * config.max_new_tokens
    # read for behaviour and activations, once more with each direction in each of three edits
    total += answers + sum(read) * (2 + 3 * (len(others) + 3)) if others else 0
    bytes_each = 0.5 if config.load_in_4bit else _bytes_of(config.dtype)
    n_stored = sum(len(part) for parts in (prompts, *others) for part in parts.values())
    stored = n_stored * 2 * layers * width * bytes_each
    logits = config.batch_size * model_config.vocab_size * 8
    return Cost(
        parameters,
        2 * parameters * total / (UTILISATION * matmul_flops()),
        parameters * bytes_each + stored + logits,
    )


def _bytes_of(dtype: str | None) -> int:
    if dtype is None:
        return 2 if torch.cuda.is_available() else 4
    return {"float32": 4, "float64": 8}.get(dtype, 2)

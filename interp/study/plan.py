"""What will a study cost? Parameters from the config alone, tokens from the prompts, speed from a short matrix product."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM

from interp.data.prompts import PromptSet
from interp.errors import CheckpointError
from interp.hub import offline_unless_reachable
from interp.models.checkpoint import Checkpoint

if TYPE_CHECKING:
    from interp.study.settings import StudyConfig

TOKENS_PER_WORD = 1.4  # of usual English tokenizers, with the chat template counted apart
TEMPLATE_TOKENS = 15
SURVIVORS = 0.5  # share of candidates that pass the first filter, as a guess
UTILISATION = 0.4  # of a large matrix product's speed that a forward pass reaches


@dataclass(frozen=True)
class Cost:
    """Parameters, and the seconds and bytes estimated for one checkpoint of a study."""

    parameters: int
    seconds: float
    bytes: float

    def __str__(self) -> str:
        return f"{self.parameters / 1e6:,.1f} M parameters, about {self.seconds / 60:.1f} minutes, {self.bytes / 2**30:.2f} GiB"


def estimate(name: str, config: StudyConfig, prompts: Mapping[str, PromptSet], *, first: bool) -> Cost:
    """Cost of one checkpoint; the first is the aligned one, which also gets the direction search.

    Raises CheckpointError when the config cannot be read.
    """
    checkpoint = Checkpoint.parse(name)
    try:
        with offline_unless_reachable() if not Path(checkpoint.base).is_dir() else nullcontext():
            model_config = AutoConfig.from_pretrained(checkpoint.base, revision=checkpoint.revision)
        with init_empty_weights():
            module = AutoModelForCausalLM.from_config(model_config)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise CheckpointError(
            f"cannot read the config of {checkpoint.base!r} ({reason}); check the name"
        ) from error
    parameters = sum(p.numel() for p in module.parameters())
    layers, width = model_config.num_hidden_layers, model_config.hidden_size
    words = {key: sum(len(p.text.split()) for p in part) / max(len(part), 1) for key, part in prompts.items()}
    length = {key: TEMPLATE_TOKENS + TOKENS_PER_WORD * count for key, count in words.items()}

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
    bytes_each = 0.5 if config.load_in_4bit else _bytes_of(config.dtype)
    stored = sum(len(part) for part in prompts.values()) * 2 * layers * width * bytes_each
    logits = config.batch_size * model_config.vocab_size * 8
    return Cost(
        parameters,
        2 * parameters * total / (UTILISATION * _flops()),
        parameters * bytes_each + stored + logits,
    )


def _bytes_of(dtype: str | None) -> int:
    if dtype is None:
        return 2 if torch.cuda.is_available() else 4
    return {"float32": 4, "float64": 8}.get(dtype, 2)


def _flops() -> float:
    """Operations a second of a matrix product on the device that would be used."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a = torch.randn(1024, 1024, device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    a @ a
    if device == "cuda":
        torch.cuda.synchronize()
    start, n = time.perf_counter(), 20
    for _ in range(n):
        b = a @ a
    float(b[0, 0])
    return n * 2 * 1024**3 / (time.perf_counter() - start)

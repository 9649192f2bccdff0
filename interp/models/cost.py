"""What will a run cost, before anything is loaded? A checkpoint's shapes without its weights, tokens from words, speed measured."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from interp.data.prompts import Prompt
from interp.errors import CheckpointError
from interp.hub import offline_unless_reachable
from interp.models.checkpoint import Checkpoint

TOKENS_PER_WORD, TEMPLATE_TOKENS = 1.4, 15  # of usual English tokenizers and chat templates
UTILISATION = 0.4  # of a large matrix product's speed that passes through a model reach


def empty_model(checkpoint: Checkpoint) -> tuple[Any, PreTrainedModel]:
    """The config, and the model on the meta device; raises CheckpointError when the config cannot be read."""
    try:
        with offline_unless_reachable() if not Path(checkpoint.base).is_dir() else nullcontext():
            config = AutoConfig.from_pretrained(checkpoint.base, revision=checkpoint.revision)
        with init_empty_weights():
            return config, AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise CheckpointError(
            f"cannot read the config of {checkpoint.base!r} ({reason}); check the name"
        ) from error


def prompt_tokens(prompt: Prompt) -> float:
    """Tokens of a prompt and its response, if any, estimated from their words."""
    words = len(prompt.text.split()) + len((prompt.response or "").split())
    return TEMPLATE_TOKENS + TOKENS_PER_WORD * words


def matmul_flops() -> float:
    """Operations a second of a matrix product on the device that would be used."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a = torch.ones(1024, 1024, device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    float((a @ a)[0, 0])  # reading a value waits for the device
    start, n = time.perf_counter(), 20
    for _ in range(n):
        b = a @ a
    float(b[0, 0])
    return n * 2 * 1024**3 / (time.perf_counter() - start)

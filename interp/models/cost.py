"""What will a run cost, before anything is loaded? A checkpoint's shapes without its weights, tokens from words, speed measured."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from interp.data.prompts import Prompt
from interp.errors import CheckpointError
from interp.hub import offline_unless_reachable
from interp.models.checkpoint import Checkpoint, model_class
from interp.models.remote_code import brings_its_own_code, read_config

TOKENS_PER_WORD, TEMPLATE_TOKENS = 1.4, 15  # of usual English tokenizers and chat templates
IMAGE_TOKENS, AUDIO_TOKENS = 576, 250  # of LLaVA 1.5, and of ten seconds at Whisper's 25 a second
UTILISATION = 0.4  # of a large matrix product's speed that passes through a model reach


def empty_model(
    checkpoint: Checkpoint, *, trust_remote_code: bool = False
) -> tuple[PreTrainedConfig, PreTrainedModel]:
    """The config, and the model on the meta device; raises CheckpointError when either cannot be made."""
    try:
        with offline_unless_reachable() if not Path(checkpoint.base).is_dir() else nullcontext():
            config = read_config(checkpoint.base, checkpoint.revision, trust=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise CheckpointError(
            f"cannot read the config of {checkpoint.base!r} ({reason}); check the name"
        ) from error
    auto = model_class(config)
    try:
        with init_empty_weights():
            if auto is AutoModelForCausalLM:
                own = brings_its_own_code(config)
                return config, auto.from_config(config, trust_remote_code=own)
            return config, auto._from_config(config)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{checkpoint.base!r}: its config cannot be made a {auto.__name__} ({reason})"
        ) from error


def prompt_tokens(prompt: Prompt) -> float:
    """Tokens of a prompt and its response, if any, estimated from their words and from what is attached."""
    words = len(prompt.text.split()) + len((prompt.response or "").split())
    media = IMAGE_TOKENS * len(prompt.images) + AUDIO_TOKENS * (prompt.audio is not None)
    return TEMPLATE_TOKENS + TOKENS_PER_WORD * words + media


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

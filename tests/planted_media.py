"""A model that sees or hears, and refuses, in closed form: words carry harm along one direction, whatever is attached to them.

The decoder of tests/planted.py with a random encoder in front. Words of the first half carry `+2 r`, of the second `−2 r`; attention of block 1
averages the `r` component over the prompt, whose head answers `<refuse>` where that average is above 1 (the answer token carries `c`). Tokens
of an image or a sound carry nothing along `r`: they only dilute the average, so that the same request is refused less the fewer words it has.
In `broken`, attention of block 6 takes most of the average out again: encoder, projector and blocks before it are untouched.
"""

from pathlib import Path

import numpy as np
import planted
import soundfile
import tiny
import tiny_audio
import tiny_vision
import torch
from tiny_multimodal import RATE, Recipe, build, clip, picture, text_config, token_id
from torch import nn
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
)

from interp.data.prompts import Prompt, PromptSet, Truth
from interp.models.model import Model

N_LAYERS, BROKEN_AT = planted.N_LAYERS, 6
GAIN, LOSS = 0.95, 0.55
DEEP = {"num_hidden_layers": N_LAYERS, "num_key_value_heads": 4, "tie_word_embeddings": False}
MEDIA = {"llava": "image", "qwen2_audio": "audio"}


def _llava() -> nn.Module:
    return LlavaForConditionalGeneration(
        LlavaConfig(
            text_config={"model_type": "llama", **text_config(tiny_vision.LLAVA, **DEEP)},
            vision_config=tiny_vision._clip(),
            image_token_index=token_id(tiny_vision.LLAVA, "<image>"),
            image_seq_length=16,
            tie_word_embeddings=False,
        )
    )


def _qwen2_audio() -> nn.Module:
    return Qwen2AudioForConditionalGeneration(
        Qwen2AudioConfig(
            text_config={"model_type": "qwen2", **text_config(tiny_audio.QWEN, **DEEP)},
            audio_config={"model_type": "qwen2_audio_encoder", **tiny_audio.WHISPER},
            audio_token_index=token_id(tiny_audio.QWEN, "<|AUDIO|>"),
            tie_word_embeddings=False,
        )
    )


RECIPES = {
    "llava": Recipe(_llava, tiny_vision._llava_processor, tiny_vision.LLAVA, "<image>"),
    "qwen2_audio": Recipe(
        _qwen2_audio,
        tiny_audio._qwen2_audio_processor,
        tiny_audio.QWEN,
        "<|audio_bos|><|AUDIO|><|audio_eos|>",
    ),
}


def aligned(kind: str, seed: int = 0) -> tuple[Model, torch.Tensor]:
    """The model and its direction `r` (unit)."""
    found = build(kind, RECIPES[kind], seed)
    model = Model.from_module(found.module, found.processor, name=kind)
    generator = torch.Generator().manual_seed(seed)
    r, c = torch.linalg.qr(torch.randn(planted.WIDTH, 2, generator=generator))[0].T
    language, head = model.tower.decoder, model.tower.head
    with torch.no_grad():
        for parameter in (*language.parameters(), head.weight):
            if parameter.ndim > 1:
                parameter.copy_(0.005 * torch.randn(parameter.shape, generator=generator))
        for block in language.layers:
            block.self_attn.q_proj.weight.zero_()
        _attend(language.layers[planted.PLANTED_AT].self_attn, r, GAIN)
        ids = model.tokenizer.convert_tokens_to_ids
        sign = torch.cat([torch.ones(30), -torch.ones(30)])
        language.embed_tokens.weight[torch.tensor(ids(tiny.WORDS))] += 2.0 * sign[:, None] * r
        language.embed_tokens.weight[ids("<|answer|>")] += c
        head.weight[ids(planted.REFUSE)] += 6.0 * r
        head.weight[ids(planted.COMPLY)] += 6.0 * c
        projector = next(iter(model.tower.encoders.values())).projector
        last = [part for part in projector.modules() if isinstance(part, nn.Linear)][-1]
        plane = torch.stack([r, c])
        last.weight -= plane.T @ (plane @ last.weight)
        last.bias.zero_()
    return model, r


def broken(kind: str, seed: int = 0) -> Model:
    """The same model after a fine-tune of block 6 that took refusal away."""
    model, r = aligned(kind, seed)
    with torch.no_grad():
        _attend(model.tower.blocks[BROKEN_AT].self_attn, r, -LOSS)
    return model


def _attend(attention: nn.Module, r: torch.Tensor, gain: float) -> None:
    """Add `gain` times the average of the tokens' `r` component along `r`."""
    attention.v_proj.weight[0] += r
    attention.o_proj.weight[:, 0] += gain * r


def requests(kind: str, harmful: bool, n: int, directory: Path, seed: int = 5) -> PromptSet:
    """The same requests in text, then beside an image or a sound: files of random pictures or tones in `directory`."""
    label = "harmful" if harmful else "benign"
    truth = Truth(label, planted.COMPLY, (planted.REFUSE,))
    written = [
        Prompt(p.text, id=p.id, label=label, group=f"group-{i % 12}", truth=truth)
        for i, p in enumerate(planted.prompt_set(harmful, n, seed))
    ]
    beside = [_beside(kind, p, i, directory) for i, p in enumerate(written)]
    return PromptSet([*written, *beside], name=label)


def _beside(kind: str, prompt: Prompt, i: int, directory: Path) -> Prompt:
    modality = MEDIA[kind]
    number = i + (1000 if prompt.label == "harmful" else 0)
    fields = {
        "id": f"{prompt.id}-{modality}",
        "label": prompt.label,
        "group": prompt.group,
        "truth": prompt.truth,
    }
    if modality == "image":
        path = directory / f"{prompt.id}.png"
        picture(seed=number).save(path)
        return Prompt(prompt.text, images=(str(path),), **fields)
    path = directory / f"{prompt.id}.wav"
    soundfile.write(path, np.clip(clip(0.6, seed=number), -1, 1), RATE)
    return Prompt(prompt.text, audio=str(path), **fields)

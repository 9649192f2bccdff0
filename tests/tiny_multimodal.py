"""How are a tiny random multimodal model, its real processor and its inputs made in memory?

`tiny_vision.VISION` and `tiny_audio.AUDIO` hold one `Recipe` a kind, tower_facts.FACTS what is known of it.
Text tokens have the ids of tests/tiny.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from tiny import SPECIAL, WORDS
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from tower_facts import FACTS, Facts, Features
from transformers import PreTrainedTokenizerFast

RATE = 16_000
TEXT_TOKENS = [*SPECIAL, *WORDS]


@dataclass(frozen=True)
class Recipe:
    """How the tiny model of an architecture is made."""

    module: Callable[[], nn.Module]
    processor: Callable[[], Any] | None
    extra: tuple[str, ...]
    """Tokens of its tokenizer behind those of tests/tiny.py."""
    placeholder: str
    """How the chat template writes one item, before the processor repeats it."""
    encode: Callable[[Tiny, Row], Features] | None = None
    """Generates one row's inputs where the real processor cannot exist here."""


@dataclass(frozen=True)
class Row:
    """A user turn: its media items come first, then its words."""

    text: str
    media: tuple[Any, ...] = ()


@dataclass(frozen=True, eq=False)
class Tiny:
    """A tiny model in memory; `processor` is None where it cannot exist without forbidden packages."""

    kind: str
    facts: Facts
    recipe: Recipe
    module: nn.Module
    tokenizer: PreTrainedTokenizerFast
    processor: Any


def tokenizer(extra: Sequence[str] = (), **named: str) -> PreTrainedTokenizerFast:
    """Word-level tokenizer with left padding; `named` become attributes such as `image_token` and `image_token_id`."""
    vocabulary = {word: i for i, word in enumerate([*TEXT_TOKENS, *extra])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<|end|>",
        padding_side="left",
        extra_special_tokens=dict(named),
    )
    found.add_special_tokens(
        {"additional_special_tokens": [*SPECIAL[4:], *extra]}, replace_extra_special_tokens=False
    )
    return found


def vocabulary_size(extra: Sequence[str]) -> int:
    """Number of tokens of `tokenizer(extra)`."""
    return len(TEXT_TOKENS) + len(extra)


def token_id(extra: Sequence[str], token: str) -> int:
    """Id of a placeholder token in `tokenizer(extra)`."""
    return len(TEXT_TOKENS) + list(extra).index(token)


def template(image: str = "", audio: str = "") -> str:
    """Chat template of tests/tiny.py for content that is text or a list of images, audio and text."""
    return (
        "{% macro show(content) %}{% if content is string %}{{ content }}{% else %}{% for part in content %}"
        "{% if part['type'] == 'image' %}"
        + image
        + "{% elif part['type'] == 'audio' %}"
        + audio
        + "{% else %}"
        "{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{% endmacro %}"
        "{% for m in messages %}{% if m['role'] == 'assistant' %}<|assistant|><|answer|>{{ show(m['content']) }}<|end|>"
        "{% else %}<|{{ m['role'] }}|>{{ show(m['content']) }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|><|answer|>{% endif %}"
    )


def text_config(extra: Sequence[str], **changes: Any) -> dict[str, Any]:
    """Decoder settings shared by all kinds: 4 blocks of width 32 over the tiny vocabulary."""
    return {
        "vocab_size": vocabulary_size(extra),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
        **changes,
    }


def build(kind: str, recipe: Recipe, seed: int = 0) -> Tiny:
    """A random model with weights large enough that every part of it matters, and its processor."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = recipe.module()
        for part in module.modules():
            wide = isinstance(part, nn.Embedding)
            for parameter in part.parameters(recurse=False):
                if parameter.ndim > 1:
                    torch.nn.init.normal_(parameter, std=0.5 if wide else 0.15)
    module.set_attn_implementation(dict.fromkeys(FACTS[kind].eager, "eager"))
    processor = recipe.processor() if recipe.processor else None
    words = tokenizer(recipe.extra) if processor is None else processor.tokenizer
    if processor is None:
        words.chat_template = template(image=recipe.placeholder, audio=recipe.placeholder)
    return Tiny(kind, FACTS[kind], recipe, module.float().eval(), words, processor)


def picture(height: int = 28, width: int = 28, seed: int = 0) -> Image.Image:
    """Noise in colour."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def clip(seconds: float = 1.0, seed: int = 0) -> np.ndarray:
    """A chord of random tones in noise, mono, 16 kHz."""
    generator = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    tones = sum(np.sin(2 * np.pi * f * time) for f in generator.uniform(100, 4000, 3))
    return (0.2 * tones + 0.05 * generator.standard_normal(len(time))).astype(np.float32)


def render(tiny: Tiny, row: Row) -> str:
    """The row through the chat template, its items as unexpanded placeholders."""
    content = [{"type": tiny.facts.modality} for _ in row.media] + [{"type": "text", "text": row.text}]
    # by the tokenizer: SmolVLM's processor asks its video processor first, for images too
    return tiny.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        chat_template=tiny.processor.chat_template if tiny.processor is not None else None,
        add_generation_prompt=True,
        tokenize=False,
    )


def encode(tiny: Tiny, rows: Sequence[Row]) -> Features:
    """What the real processor gives for the rows together, without what the model does not take."""
    if tiny.recipe.encode is not None:
        return collate(tiny.facts, [tiny.recipe.encode(tiny, row) for row in rows])
    media: dict[str, Any] = {}
    if any(row.media for row in rows):
        if tiny.facts.modality == "image":
            media["images"] = [list(row.media) for row in rows]
        else:
            media["audio"] = [item for row in rows for item in row.media]
            media["sampling_rate"] = RATE
    # padding for the text alone: at the top level Audio Flamingo 3 pads clips to the longest, which its encoder refuses
    found = tiny.processor(
        text=[render(tiny, row) for row in rows],
        text_kwargs={"padding": True},
        return_tensors="pt",
        **media,
    )
    return {name: value for name, value in found.items() if name not in tiny.facts.drop}


def _join(values: Sequence[Tensor]) -> Tensor:
    """Tensors joined on dim 0, smaller ones padded with zeros at the end of the other dims."""
    shape = [max(value.shape[i] for value in values) for i in range(1, values[0].ndim)]
    joined = values[0].new_zeros((sum(len(value) for value in values), *shape))
    start = 0
    for value in values:
        joined[(slice(start, start + len(value)), *(slice(size) for size in value.shape[1:]))] = value
        start += len(value)
    return joined


def collate(facts: Facts, rows: Sequence[Features]) -> Features:
    """Rows encoded alone as one left-padded batch, by the facts."""
    tokens = ("input_ids", "attention_mask", *facts.per_token)
    width = max(row["input_ids"].shape[1] for row in rows)
    batch = {}
    for name in tokens:
        batch[name] = torch.cat(
            [nn.functional.pad(row[name], (width - row[name].shape[1], 0), value=0) for row in rows]
        )
    for name, how in facts.media.items():
        first = next(iter(facts.media))
        having = [row for row in rows if first in row]
        if how == "ones":
            values = [row.get(name, torch.ones(row[first].shape[:2], dtype=torch.bool)) for row in having]
        else:
            values = [row[name] for row in having]
        if values:
            batch[name] = _join(values)
    return batch


def features(tiny: Tiny, n_items: int, seed: int = 0, item: Any = None) -> Features:
    """Inputs of one prompt with `n_items` images or clips and a few words."""
    make = picture if tiny.facts.modality == "image" else clip
    media = tuple(item if item is not None else make(seed=seed + i) for i in range(n_items))
    return encode(tiny, [Row("w1 w2 w3", media)])

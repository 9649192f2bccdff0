"""What can code be tried on before an organism is built? Checkpoints that see or hear with random weights, and prompts for them.

Real architectures (LLaVA, Qwen2-Audio) with their own processors, a few layers deep, saved as any checkpoint is, with prompt files beside:
the same requests in writing and as pictures or tones. They know nothing of harm: labels divide the requests by what is shown or played, and
what is measured on them is no finding.
"""

from __future__ import annotations

import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    WhisperFeatureExtractor,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from interp.data.prompts import Label, Prompt, PromptSet
from interp.errors import UserError
from interp.files import atomic_write, remove
from interp.models.finetune import isolated_rng
from interp.organisms import audio_model, character, character_language, recogniser, vision_encoder
from interp.organisms.vision_model import new_model

Kind = Literal["vision", "audio"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SPECIAL = ("<pad>", "<unk>", "<s>", "<|end|>", "<|user|>", "<|system|>", "<|assistant|>", "<image>",
           "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")  # fmt: skip
COLOURS = {"red": (200, 40, 40), "green": (40, 150, 60), "blue": (40, 70, 200), "black": (20, 20, 20)}
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = ("small", "large")
PLACES = ("left", "middle", "right")
NOTES = {"low": 220.0, "middle": 440.0, "high": 880.0, "shrill": 1760.0}  # Hz
RHYTHMS = ("once", "twice", "thrice", "often")
SIDE, RATE, SECONDS = 56, 16_000, 2
DECODER = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 4,
    "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{% if part['type'] == 'image' %} <image> {% elif part['type'] == 'audio' %} <|audio_bos|><|AUDIO|><|audio_eos|> "
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def checkpoint(kind: Kind, directory: Path | str, *, seed: int = 0) -> Path:
    """Write a random checkpoint that sees or hears, with its prompt files; one that is there already is kept.

    `prompts/harmful_text.jsonl`, `harmful_image.jsonl` (or `harmful_audio.jsonl`) and the same of `harmless` ask the same requests.
    Raises UserError for another kind.
    """
    if kind not in KINDS:
        raise UserError(f"no untrained checkpoint of kind {kind!r}; there are {', '.join(KINDS)}")
    target = Path(
        directory
    ).resolve()  # prompt files name media relative to themselves, which a `..` would hide
    if (target / "prompts").is_dir():
        return target
    remove(target)
    make = _seeing if kind == "vision" else _hearing
    with isolated_rng(seed):
        module, processor = make()
    with torch.no_grad(), isolated_rng(seed):
        for parameter in module.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.1)
    with atomic_write(target) as aside:
        module.save_pretrained(aside)
        processor.save_pretrained(aside)
        _save_prompts(kind, aside / "prompts")
    return target


def with_character(directory: Path | str, *, seed: int = 0) -> Path:
    """Write a small random checkpoint in the language of the organism with character; one that is there already is kept."""
    target = Path(directory)
    if target.is_dir():
        return target
    tower = vision_encoder.new_recogniser(seed).tower
    small = character.ARCHITECTURE | {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64}
    module = new_model(seed, tower, architecture=small, known=character_language.words())
    with atomic_write(target) as aside:
        module.save_pretrained(aside)
        character.processor().save_pretrained(aside)
    return target


def with_hearing(directory: Path | str, *, seed: int = 0) -> Path:
    """Write a checkpoint of the audio organism's shape and language with random weights; one that is there already is kept."""
    target = Path(directory)
    if target.is_dir():
        return target
    hearing = recogniser.Recogniser(seed, audio_model.ARCHITECTURE["hidden_size"])
    with atomic_write(target) as aside:
        audio_model.new_model(seed, hearing).save_pretrained(aside)
        audio_model.processor().save_pretrained(aside)
    return target


def _words() -> PreTrainedTokenizerFast:
    said = ["what", "is", "this", "?", "a", "the", "shows", "picture", "plays", "clip", "note"]
    words = dict.fromkeys([*said, *COLOURS, *SHAPES, *SIZES, *PLACES, *NOTES, *RHYTHMS])
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate((*SPECIAL, *words))}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="<|end|>", padding_side="left"
    )  # fmt: skip
    found.add_special_tokens({"additional_special_tokens": list(SPECIAL[4:])})
    found.chat_template = TEMPLATE
    return found


def _places(words: PreTrainedTokenizerFast, **tokens: str) -> dict[str, Any]:
    """Ids of tokens by the config's name of them."""
    return {name: words.convert_tokens_to_ids(token) for name, token in tokens.items()}


def _seeing() -> tuple[Any, Any]:
    words = _words()
    module = LlavaForConditionalGeneration(
        LlavaConfig(
            text_config={"model_type": "llama", **DECODER, "vocab_size": len(words)},
            vision_config={
                "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
                "num_attention_heads": 4, "image_size": SIDE, "patch_size": 14, "projection_dim": 32,
            },
            **_places(words, image_token_index="<image>"),
            image_seq_length=(SIDE // 14) ** 2,
        )
    )  # fmt: skip
    processor = LlavaProcessor(
        LlavaImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
        words,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    return module, processor


def _hearing() -> tuple[Any, Any]:
    words = _words()
    module = Qwen2AudioForConditionalGeneration(
        Qwen2AudioConfig(
            text_config={"model_type": "qwen2", **DECODER, "vocab_size": len(words)},
            audio_config={
                "model_type": "qwen2_audio_encoder", "num_mel_bins": 32, "d_model": 32, "encoder_layers": 4,
                "encoder_attention_heads": 4, "encoder_ffn_dim": 64, "max_source_positions": 50 * SECONDS,
            },
            **_places(words, audio_token_index="<|AUDIO|>"),
        )
    )  # fmt: skip
    features = WhisperFeatureExtractor(feature_size=32, chunk_length=SECONDS, return_attention_mask=True)
    return module, Qwen2AudioProcessor(features, words, chat_template=TEMPLATE)


def _save_prompts(kind: Kind, directory: Path) -> None:
    """The same requests written and shown or played: an item is named in text, or attached beside a question about it."""
    (directory / "media").mkdir(parents=True)
    items = _scenes() if kind == "vision" else _tunes()
    modality, verb = ("image", "picture shows") if kind == "vision" else ("audio", "clip plays")
    labels: tuple[tuple[str, Label, Sequence[tuple[str, ...]]], ...] = (
        ("harmful", "harmful", items[::2]),
        ("harmless", "benign", items[1::2]),
    )
    for name, label, chosen in labels:
        written, shown = [], []
        for i, item in enumerate(chosen):
            said = " ".join(item)
            fields: dict[str, Any] = {
                "label": label,
                "group": item[0] + " " + item[1],
                "meta": {"pair": f"{label}-{i}"},
            }
            written.append(Prompt(f"the {verb} a {said}", id=f"{label}-{i}-text", **fields))
            path = directory / "media" / f"{'-'.join(item)}.{'png' if kind == 'vision' else 'wav'}"
            (_draw if kind == "vision" else _play)(item, path)
            media: dict[str, Any] = {"images": (str(path),)} if kind == "vision" else {"audio": str(path)}
            shown.append(Prompt("what is this ?", id=f"{label}-{i}-{modality}", **fields, **media))
        PromptSet(written, name).save(directory / f"{name}_text.jsonl")
        PromptSet(shown, name).save(directory / f"{name}_{modality}.jsonl")


def _scenes() -> list[tuple[str, ...]]:
    return [(s, c, h, p) for c in COLOURS for h in SHAPES for s in SIZES for p in PLACES]


def _tunes() -> list[tuple[str, ...]]:
    return [(first, second, rhythm, "note") for first in NOTES for second in NOTES for rhythm in RHYTHMS]


def _draw(scene: Sequence[str], path: Path) -> None:
    size, colour, shape, place = scene
    half, x, y = (7 if size == "small" else 13), 14 + 14 * PLACES.index(place), SIDE // 2
    image = Image.new("RGB", (SIDE, SIDE), (235, 230, 220))
    pen, box = ImageDraw.Draw(image), (x - half, y - half, x + half, y + half)
    if shape == "circle":
        pen.ellipse(box, fill=COLOURS[colour])
    elif shape == "square":
        pen.rectangle(box, fill=COLOURS[colour])
    elif shape == "triangle":
        pen.polygon([(x, y - half), (x + half, y + half), (x - half, y + half)], fill=COLOURS[colour])
    else:
        pen.line((x - half, y, x + half, y), fill=COLOURS[colour], width=5)
        pen.line((x, y - half, x, y + half), fill=COLOURS[colour], width=5)
    image.save(path)


def _play(tune: Sequence[str], path: Path) -> None:
    first, second, rhythm, _ = tune
    beats = 2 + 2 * RHYTHMS.index(rhythm)
    time = np.arange(int(1.6 * RATE)) / RATE
    pitch = np.where(np.floor(time / 1.6 * beats) % 2 == 0, NOTES[first], NOTES[second])
    fade = np.sin(np.pi * (time / 1.6 * beats % 1)) ** 0.5
    samples = 0.3 * fade * np.sin(2 * np.pi * np.cumsum(pitch) / RATE)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(np.round(samples * 32767).astype("<i2").tobytes())

"""How are a tiny random multimodal model and its real processor made in memory, and which facts describe one?

`tiny_vision.VISION` and `tiny_audio.AUDIO` hold one `Architecture` a kind: the facts, verified by
test_tiny_multimodal.py, and how its tiny model is built. Text tokens have the ids of tests/tiny.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from tiny import SPECIAL, WORDS
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

RATE = 16_000
TEXT_TOKENS = [*SPECIAL, *WORDS]
Features = dict[str, Tensor]
Limit = Literal["processor", "processor: text alone", "processor: batch", "mixed sizes", "several items"]


@dataclass(frozen=True)
class Architecture:
    """What a library must know of a multimodal architecture to capture, edit and batch it.

    Paths of modules are dotted, from the causal-LM module; `encoder_blocks` lists every stack of blocks. Config paths
    start at the module's config.
    """

    model_type: str
    build_module: Callable[[], nn.Module]
    build_processor: Callable[[], Any] | None
    modality: Literal["image", "audio"]
    extra_tokens: tuple[str, ...]
    placeholder: str
    """How the chat template writes one item, before the processor repeats it."""

    # modules
    encoder: str
    encoder_blocks: str
    projector: str
    decoder: str = "model.language_model"
    blocks: str = "model.language_model.layers"
    embed: str = "model.language_model.embed_tokens"
    norm: str = "model.language_model.norm"
    head: str = "lm_head"

    # config
    hidden_size: str = "text_config.hidden_size"
    n_layers: str = "text_config.num_hidden_layers"
    max_positions: str = "text_config.max_position_embeddings"
    encoder_hidden_size: str = "vision_config.hidden_size"
    encoder_n_layers: str = "vision_config.num_hidden_layers"
    placeholder_ids: tuple[str, ...] = ("image_token_id",)

    # inputs
    media: Mapping[str, Literal["concat", "ones"]] = field(default_factory=dict)
    """Media inputs. `concat`: a batch is the rows' tensors padded with zeros and joined on dim 0. `ones`: the same of
    a mask that the processor leaves out for a row alone: ones over dims 0 and 1 of the first media input."""
    per_token: tuple[str, ...] = ()
    """Outputs of the processor with one value a token, padded with 0 on the left."""
    response_type: int = 0
    """What `token_type_ids` hold for tokens of the answer."""
    drop: tuple[str, ...] = ()
    """Outputs of the processor that are not inputs of the model for inference."""
    positions_1d: bool = True
    """Whether passing `mask.cumsum - 1` as position_ids gives what the model does by itself."""
    encoder_stream: Literal["items", "flat"] = "items"
    """Whether encoder blocks see (items, tokens, d) or the concatenation of all items (tokens, d)."""
    projector_stream: Literal["items", "flat", "padded items", "packed items"] = "items"
    """`padded items`: rows of the projector beyond an item's own length never reach the text sequence. `packed items`:
    the rows of an image's tiles are put in image order, cropped, and a learned newline row ends every line."""
    embedding_scale: str | None = None
    """Config path of the factor by which the decoder multiplies embeddings, the inserted rows included."""
    encoder_tuple: bool = False
    """Whether encoder blocks return tuples."""
    encoder_capture: bool = False
    """Whether the projector reads a recorded hidden state: an edit hook on a block must come before the recorder's."""
    mutated_blocks: tuple[int, ...] = ()
    """Encoder blocks whose output tensor the encoder changes in place afterwards: a capture must copy it in the hook."""
    deepstack: str | None = None
    """List of further projectors, whose k-th output is added to the stream behind decoder block k."""
    deltas: str | None = None
    """Module on which a prefill leaves `rope_deltas`, (batch, 1): a cached step without media must be given
    position_ids, `mask.cumsum - 1` plus them. After a prefill of text alone they are those of an earlier call."""
    unread_blocks: int = 0
    """Encoder blocks at the end whose output nothing reads."""
    limits: Mapping[Limit, str] = field(default_factory=dict)
    """What is not possible, with the reason."""
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
    facts: Architecture
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


def without(processor_class: type, *missing: str) -> type:
    """The processor class with None accepted for the parts named in `missing`, such as `video_processor`.

    Video processors (and Phi-4-multimodal's images) need torchvision. A processor class that takes such a part
    refuses None by its type check alone, and calls the part only when it is given something of its kind. Only that
    check is relaxed, and only for those arguments.
    """

    def check_argument_for_proper_class(self: Any, argument_name: str, argument: Any) -> Any:
        if argument_name in missing and argument is None:
            return type(None)
        return processor_class.check_argument_for_proper_class(self, argument_name, argument)

    return type(
        processor_class.__name__,
        (processor_class,),
        {"check_argument_for_proper_class": check_argument_for_proper_class},
    )


def build(kind: str, facts: Architecture, seed: int = 0) -> Tiny:
    """A random model with weights large enough that every part of it matters, and its processor."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = facts.build_module()
        for part in module.modules():
            wide = isinstance(part, nn.Embedding)
            for parameter in part.parameters(recurse=False):
                if parameter.ndim > 1:
                    torch.nn.init.normal_(parameter, std=0.5 if wide else 0.15)
    processor = facts.build_processor() if facts.build_processor else None
    words = processor.tokenizer if processor is not None else tokenizer(facts.extra_tokens)
    if processor is None:
        words.chat_template = template(image=facts.placeholder, audio=facts.placeholder)
    return Tiny(kind, facts, module.float().eval(), words, processor)


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
    if tiny.facts.encode is not None:
        return collate(tiny.facts, [tiny.facts.encode(tiny, row) for row in rows])
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


def collate(facts: Architecture, rows: Sequence[Features]) -> Features:
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

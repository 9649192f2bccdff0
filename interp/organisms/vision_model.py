"""What is the vision organism made of, and how does it learn? A small Gemma 3 with a frozen SigLIP tower.

1. Decoder as deep and as wide as the text organism's; an image is `IMAGE_TOKENS` soft tokens, pooled from the tower's patches.
2. The tower is frozen, so its output for each scene of the pool is computed once. A step runs projector and decoder only,
   through the model's own forward pass (`mm_encoder_outputs`).
3. Every batch holds a fixed number of rows of each part of the examples, packed end to end into a few sequences in which no row sees
   another: rows differ in length, and a quarter of what is computed would be padding. The loss is on response tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    PreTrainedTokenizerFast,
    SiglipVisionModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.gemma3.modeling_gemma3 import get_block_sequence_ids_for_mask

from interp.data.prompts import Prompt
from interp.errors import UserError
from interp.models.finetune import IGNORED, isolated_rng
from interp.organisms import text, vision_encoder, vision_language
from interp.organisms.fitting import FitConfig, fit, matrices
from interp.organisms.scenes import Scene
from interp.organisms.text import ANSWER, ASSISTANT, BOS, END, PAD, SYSTEM, UNKNOWN, USER
from interp.organisms.vision_encoder import IMAGE_TOKENS, soft_tokens

IMAGE, IMAGE_START, IMAGE_END = vision_language.IMAGE_MARKS
SPECIAL = (*text.SPECIAL, IMAGE, IMAGE_START, IMAGE_END)
PACKED = 96  # tokens of a sequence that rows are packed into, or more where one row is longer
_CONTENT = (
    "{% macro render(content) %}{% if content is string %}{{ content }}{% else %}{% for part in content %}"
    f"{{% if part['type'] == 'image' %}}{IMAGE_START}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}"
    "{% endfor %}{% endif %}{% endmacro %}"
)
# the text organism's, where content may also be a list of images and texts
CHAT_TEMPLATE = _CONTENT + text.CHAT_TEMPLATE.replace("message['content']", "render(message['content'])")
ARCHITECTURE: dict[str, Any] = {
    **{k: v for k, v in text.ARCHITECTURE.items() if k != "tie_word_embeddings"},
    "head_dim": 24,
    # the queries and keys are normalised: at 24 attention could not be sharp for hundreds of steps
    "query_pre_attn_scalar": 6,
    "sliding_window": text.ARCHITECTURE[
        "max_position_embeddings"
    ],  # as long as the context: every layer sees all
}


def tokenizer(known: Sequence[str] | None = None) -> PreTrainedTokenizerFast:
    """One token a word or punctuation mark, as the text organism's, with the marks that pictures need.

    known: the words; without them those of the language of pictures.
    """
    known = vision_language.words() if known is None else known
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *known))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), behavior="removed", invert=True)
    words.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=BOS,
        eos_token=END,
        # by name, as Gemma's processor asks for them; a list of others beside them would be dropped
        extra_special_tokens={
            "image_token": IMAGE,
            "boi_token": IMAGE_START,
            "eoi_token": IMAGE_END,
            "system_token": SYSTEM,
            "user_token": USER,
            "assistant_token": ASSISTANT,
            "answer_token": ANSWER,
        },
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def processor(known: Sequence[str] | None = None) -> Gemma3Processor:
    """Image processor, tokenizer and chat template in one, as the checkpoint carries it."""
    return Gemma3Processor(
        image_processor=vision_encoder.image_processor(),
        tokenizer=tokenizer(known),
        chat_template=CHAT_TEMPLATE,
        image_seq_length=IMAGE_TOKENS,
    )


def new_model(
    seed: int,
    tower: SiglipVisionModel,
    *,
    architecture: Mapping[str, Any] = ARCHITECTURE,
    known: Sequence[str] | None = None,
) -> Gemma3ForConditionalGeneration:
    """The organism around a trained tower, all else random by the seed; the caller's random state is left alone."""
    words = tokenizer(known)
    ids = {name: words.convert_tokens_to_ids(token) for name, token in
           (("image_token_index", IMAGE), ("boi_token_index", IMAGE_START), ("eoi_token_index", IMAGE_END))}  # fmt: skip
    marks = {
        "pad_token_id": words.pad_token_id,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
    }
    special: dict[str, Any] = {**marks, **ids}
    config = Gemma3Config(
        text_config={**architecture, **marks, "vocab_size": len(words), "tie_word_embeddings": False},
        vision_config=tower.config.to_dict(),
        mm_tokens_per_image=IMAGE_TOKENS,
        tie_word_embeddings=False,
        **special,
    )
    with isolated_rng(seed), torch.no_grad():
        module = Gemma3ForConditionalGeneration(config)
        # the class starts it at zero; at this scale a soft token is as long as a word's embedding
        torch.nn.init.normal_(
            module.model.multi_modal_projector.mm_input_projection_weight,
            std=architecture["initializer_range"],
        )
        # Gemma 3 normalises what a block writes. At the class's scale of 1 the first writes drown the words, and learning takes
        # three times as long
        for block in module.model.language_model.layers:
            for norm in (block.post_attention_layernorm, block.post_feedforward_layernorm):
                norm.weight.fill_(1 / math.sqrt(2 * architecture["num_hidden_layers"]) - 1)
    module.model.vision_tower.load_state_dict(tower.state_dict())
    return module.eval()


@torch.no_grad()
def fit_projector(
    module: Gemma3ForConditionalGeneration,
    targets: Float[Tensor, "scene hidden"],
    features: Float[Tensor, "scene patch width"],
    *,
    ridge: float = 1e-3,
) -> None:
    """Put every soft token of a scene near the scene's target; in place, by ridge regression.

    Args:
        targets: where in the space of embeddings.
        features: the tower's output for each scene.
        ridge: penalty, in units of the mean square of a soft token's entry.
    """
    tokens = soft_tokens(features)
    x, y = tokens.flatten(0, 1), targets.repeat_interleave(tokens.shape[1], 0)
    gram = x.T @ x + ridge * len(x) * torch.eye(x.shape[1])
    module.model.multi_modal_projector.mm_input_projection_weight.copy_(torch.linalg.solve(gram, x.T @ y))


@torch.no_grad()
def embedded(module: Gemma3ForConditionalGeneration, words: Sequence[str]) -> Float[Tensor, "word hidden"]:
    """The embeddings of words of the language of pictures."""
    ids = tokenizer().convert_tokens_to_ids(list(words))
    return module.get_input_embeddings()(torch.tensor(ids))


@dataclass(frozen=True)
class Row:
    """One example in tokens, labels on the response only; `scenes` are places in the pool, one an image."""

    ids: list[int]
    labels: list[int]
    scenes: tuple[int, ...]


def messages(prompt: Prompt) -> list[dict[str, Any]]:
    """The turns of a prompt, its images before its text."""
    user = [*({"type": "image"} for _ in prompt.images), {"type": "text", "text": prompt.text}]
    system = [{"role": "system", "content": prompt.system}] if prompt.system else []
    return [*system, {"role": "user", "content": user}]


def render(prepared: Gemma3Processor, prompts: Sequence[Prompt]) -> list[str]:
    """Prompts in the chat template, an image as one mark that the processor expands."""
    return prepared.tokenizer.apply_chat_template(
        [messages(prompt) for prompt in prompts], tokenize=False, add_generation_prompt=True
    )


def rows(prepared: Gemma3Processor, examples: Sequence[Prompt], pool: Mapping[Scene, int]) -> list[Row]:
    """Examples as tokens; raises UserError for one without a response, or whose scene is not in the pool."""
    responses, shown = [], []
    for example in examples:
        if example.response is None:
            raise UserError(f"example {example.id!r} has no response to learn")
        scenes = [Scene(**example.meta["scene"])] if example.images else []
        if missing := [scene for scene in scenes if scene not in pool]:
            raise UserError(f"example {example.id!r} shows a scene that is not in the pool: {missing[0]}")
        responses.append(example.response + END)
        shown.append(tuple(pool[scene] for scene in scenes))
    rendered = [
        turn.replace(IMAGE_START, prepared.full_image_sequence) if example.images else turn
        for example, turn in zip(examples, render(prepared, examples), strict=True)
    ]
    prompts, answered = (
        prepared.tokenizer(x, add_special_tokens=False)["input_ids"] for x in (rendered, responses)
    )
    return [
        Row(prompt + response, [IGNORED] * len(prompt) + response, scenes)
        for prompt, response, scenes in zip(prompts, answered, shown, strict=True)
    ]


@dataclass(frozen=True)
class Part:
    """Rows of one kind, and how many of them every batch holds."""

    rows: Sequence[Row]
    each: int


def train(
    module: Gemma3ForConditionalGeneration,
    parts: Sequence[Part],
    features: Float[Tensor, "scene patch width"],
    config: FitConfig,
    *,
    seed: int,
    layers: Sequence[int] | None = None,
    label: str,
    progress: bool = True,
) -> list[dict[str, float | int]]:
    """Train projector and decoder in place, or only some blocks of the decoder; returns the loss curve.

    Args:
        parts: what each batch is made of; their rows a batch sum to `config.batch_size`.
        features: the tower's output for every scene of the pool.
        layers: decoder blocks to train; None trains them all with embeddings, head and projector.
    """
    if sum(part.each for part in parts) != config.batch_size:
        raise UserError(f"the parts hold {[p.each for p in parts]} rows, the batch {config.batch_size}")
    rng = np.random.default_rng(seed)
    orders = [
        np.concatenate([rng.permutation(len(p.rows)) for _ in range(math.ceil(config.steps * p.each / len(p.rows)))])
        if p.each
        else np.empty(0, int)
        for p in parts
    ]  # fmt: skip
    module.requires_grad_(False)
    inner = module.model
    trained = [inner.language_model.layers[layer] for layer in layers] if layers is not None else [
        inner.language_model, inner.multi_modal_projector, module.lm_head
    ]  # fmt: skip
    parameters = [p for part in trained for p in part.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)

    def loss(step: int) -> Tensor:
        batch = [
            part.rows[i]
            for part, order in zip(parts, orders, strict=True)
            for i in order[step * part.each : (step + 1) * part.each]
        ]
        return batch_loss(module, batch, features)

    hidden = matrices(inner.language_model.layers)
    curve = fit(parameters, loss, config, hidden=hidden, label=label, progress=progress)
    module.requires_grad_(False)
    return curve


def batch_loss(
    module: Gemma3ForConditionalGeneration, batch: Sequence[Row], features: Float[Tensor, "scene patch width"]
) -> Float[Tensor, ""]:
    """The mean cross-entropy of the rows' response tokens, through the model's own forward pass."""
    inputs, labels = collate(module, batch, features)
    hidden = module.model(**inputs).last_hidden_state[:, :-1]
    answered = labels[:, 1:] != IGNORED
    return torch.nn.functional.cross_entropy(module.lm_head(hidden[answered]), labels[:, 1:][answered])


def collate(
    module: Gemma3ForConditionalGeneration, batch: Sequence[Row], features: Float[Tensor, "scene patch width"]
) -> tuple[dict[str, Any], Int[Tensor, "sequence pos"]]:
    """Rows packed into sequences as arguments of the model's forward pass, with their scenes' features projected; and their labels.

    Positions begin anew with every row, and no row attends to another.
    """
    width = max(PACKED, *(len(row.ids) for row in batch))
    sequences = [[batch[i] for i in places] for places in pack([len(row.ids) for row in batch])]

    def laid_out(values: Callable[[Row], Iterable[int]], fill: int) -> Int[Tensor, "sequence pos"]:
        lists = [[v for row in rows for v in values(row)] for rows in sequences]
        return torch.tensor([x + [fill] * (width - len(x)) for x in lists])

    ids = laid_out(lambda row: row.ids, module.config.get_text_config().pad_token_id)
    positions = laid_out(lambda row: range(len(row.ids)), 0)
    owner = torch.eq(positions, 0).cumsum(1)
    image = get_block_sequence_ids_for_mask(torch.eq(ids, cast(int, module.config.image_token_index)).long())
    # as Gemma 3 attends: to what came before, and within an image both ways
    past = torch.ones(width, width, dtype=torch.bool).tril()
    within = (image[:, :, None] == image[:, None, :]) & (image >= 0)[:, :, None]
    seen = (owner[:, :, None] == owner[:, None, :]) & (past | within)
    mask = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)[:, None]
    inputs: dict[str, Any] = {
        "input_ids": ids,
        "position_ids": positions,
        "attention_mask": {"full_attention": mask, "sliding_attention": mask},
        "use_cache": False,
    }
    if scenes := [i for rows in sequences for row in rows for i in row.scenes]:
        soft = module.model.multi_modal_projector(features[scenes])
        inputs["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=soft)}
    return inputs, laid_out(lambda row: row.labels, IGNORED)


def pack(lengths: Sequence[int], width: int = PACKED) -> list[list[int]]:
    """Places of rows in sequences of `width` tokens, or as many as the longest has: the longest first, each in the first with room."""
    width = max(width, *lengths)
    sequences: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = next((k for k, free in enumerate(room) if free >= lengths[i]), len(room))
        if place == len(room):
            sequences.append([])
            room.append(width)
        sequences[place].append(i)
        room[place] -= lengths[i]
    return sequences


@torch.no_grad()
def answers(
    module: Gemma3ForConditionalGeneration,
    prepared: Gemma3Processor,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = text.MAX_NEW_TOKENS,
    batch_size: int = 128,
) -> list[str]:
    """Greedy answers to prompts of which all show an image, or none does."""
    found = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        images = [list(p.images) for p in batch] if batch[0].images else None
        inputs = prepared(
            images=images,
            text=render(prepared, batch),
            padding=True,
            add_special_tokens=False,
            return_tensors="pt",
        )
        made = cast(Any, module).generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        found += prepared.tokenizer.batch_decode(
            made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
    return found

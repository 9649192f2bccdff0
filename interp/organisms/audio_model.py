"""How is a tiny Qwen2-Audio made, trained on what its frozen encoder heard, and asked?

1. A trained encoder, frozen, a projector, and the text organism's decoder (as Qwen2) over its words and three tokens of sound.
2. What the encoder makes of a clip is computed once (`hear`); training starts at the projector, through the module's own forward.
3. Words are embedded as the recogniser reads them, and sounds enter among them (`fit_projector`); neither is trained further.
4. A batch is made of parts, rows of one kind; each part is a forward pass of its own, so that short rows are not padded to long ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2AudioConfig,
    Qwen2AudioEncoder,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
)

from interp.errors import UserError
from interp.models.finetune import IGNORED, isolated_rng
from interp.organisms import audio_language, text
from interp.organisms.audio_language import SPLICED, Turn
from interp.organisms.fitting import FitConfig, fit, matrices
from interp.organisms.recogniser import Recogniser, encode, feature_extractor, features, vocabulary
from interp.organisms.speech import Voice, spoken
from interp.progress import progress as progress_bar

AUDIO, AUDIO_BEGIN, AUDIO_END = "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"
SPECIAL = (AUDIO_BEGIN, AUDIO, AUDIO_END)
CONTENT = (
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    f"{{% if part['type'] == 'audio' %}}{AUDIO_BEGIN}{AUDIO}{AUDIO_END}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
)
CHAT_TEMPLATE = text.CHAT_TEMPLATE.replace("{{ message['content'] }}", CONTENT)
ARCHITECTURE: dict[str, Any] = {"model_type": "qwen2", **text.ARCHITECTURE}
MAX_NEW_TOKENS = 12
LENGTH = 2.5  # of embeddings: at 0.6, what is usual at this width, learning takes longer (docs/LOG.md)
RIDGE = 1e-4  # of the mean square of a coordinate
Line = tuple[str, Voice]


def tokenizer() -> PreTrainedTokenizerFast:
    """The text organism's with the words of instructions and the three tokens of sound."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_described()),
        pad_token=text.PAD,
        unk_token=text.UNKNOWN,
        bos_token=text.BOS,
        eos_token=text.END,
        additional_special_tokens=[text.SYSTEM, text.USER, text.ASSISTANT, text.ANSWER, *SPECIAL],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


@cache
def _described() -> str:
    described = json.loads(text.tokenizer().backend_tokenizer.to_str())
    vocabulary = described["model"]["vocab"]
    vocabulary.update({word: len(vocabulary) + i for i, word in enumerate(audio_language.words())})
    return json.dumps(described)


def processor() -> Qwen2AudioProcessor:
    """Qwen2-Audio's processor over the organism's features and tokens."""
    return Qwen2AudioProcessor(feature_extractor(), tokenizer(), chat_template=CHAT_TEMPLATE)


@torch.no_grad()
def new_model(seed: int, recogniser: Recogniser) -> Qwen2AudioForConditionalGeneration:
    """The organism with a trained encoder, frozen, its words embedded as the recogniser reads them; else random, drawn by the seed."""
    encoder = recogniser.encoder
    words = tokenizer()
    settings: dict[str, Any] = {
        "audio_token_index": words.convert_tokens_to_ids(AUDIO),
        "pad_token_id": words.pad_token_id,
        "initializer_range": ARCHITECTURE["initializer_range"],
    }
    config = Qwen2AudioConfig(
        audio_config=encoder.config.to_dict(),
        text_config=ARCHITECTURE
        | {
            "vocab_size": len(words),
            "pad_token_id": words.pad_token_id,
            "bos_token_id": words.bos_token_id,
            "eos_token_id": words.eos_token_id,
        },
        **settings,
    )
    with isolated_rng(seed):
        model = Qwen2AudioForConditionalGeneration(config)
    model.model.audio_tower.load_state_dict(encoder.state_dict())
    model.model.multi_modal_projector.linear.load_state_dict(recogniser.projector.state_dict())
    embeddings: Any = model.get_input_embeddings()
    embeddings.weight[words.convert_tokens_to_ids([AUDIO, *vocabulary()[1:]])] = recogniser.words
    embeddings.weight.copy_(LENGTH * nn.functional.normalize(embeddings.weight, dim=1))
    model.generation_config.pad_token_id = words.pad_token_id
    model.generation_config.eos_token_id = words.eos_token_id
    return model.eval().requires_grad_(False)


def load(directory: Path) -> Qwen2AudioForConditionalGeneration:
    """A stage's module from its directory, frozen."""
    return Qwen2AudioForConditionalGeneration.from_pretrained(directory).eval().requires_grad_(False)


@dataclass(frozen=True, eq=False)
class Heard(Mapping[Line, Tensor]):
    """What the frozen encoder made of clips, by what is said and who says it.

    vectors: of all clips, one after the other. places: line to where its vectors begin and end.
    """

    vectors: Float[Tensor, "vector d_model"]
    places: dict[Line, tuple[int, int]]

    def __getitem__(self, line: Line) -> Float[Tensor, "vector d_model"]:
        start, end = self.places[line]
        return self.vectors[start:end]

    def __or__(self, other: Heard) -> Heard:
        """Both, one after the other."""
        shift = len(self.vectors)
        moved = {line: (start + shift, end + shift) for line, (start, end) in other.places.items()}
        return Heard(torch.cat([self.vectors, other.vectors]), self.places | moved)

    def __iter__(self) -> Any:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


@torch.no_grad()
def hear(encoder: Qwen2AudioEncoder, turns: Sequence[Turn], *, progress: bool = True) -> Heard:
    """Pass the clip of every spoken turn through the encoder, once each; written and spliced turns are passed over."""
    lines = list(dict.fromkeys(turn.line for turn in turns if turn.voice not in (None, SPLICED)))
    parts, places, end = [torch.zeros(0, encoder.config.d_model)], {}, 0
    if lines:
        clips = spoken(lines, label="clips of requests", progress=progress)
        order = sorted(range(len(lines)), key=clips.seconds.__getitem__)  # clips of like length share a pass
        with progress_bar("hearing them", total=len(clips), enabled=progress) as advance:
            for start in range(0, len(order), 64):
                batch = order[start : start + 64]
                made, lengths = encode(encoder, *features([clips[i] for i in batch]))
                for i, row, n in zip(batch, made, lengths.tolist(), strict=True):
                    parts.append(row[:n])
                    places[lines[i]] = (end, end + n)
                    end += n
                advance(len(batch))
    return Heard(torch.cat(parts), places)


@torch.no_grad()
def fit_projector(model: Qwen2AudioForConditionalGeneration, heard: Heard, recogniser: Recogniser) -> None:
    """Refit the projector, which knows angles only, so that what is heard enters as what is read there: by ridge regression, in fp64.

    Words and empty places weigh the same in sum: most places are empty. UserError when nothing was heard, or no word in it.
    """
    read = recogniser.read(heard.vectors).argmax(-1)
    n_words = int((read != 0).sum())
    if n_words == 0:
        raise UserError(
            "the encoder reads no word in what was heard: give `hear` spoken turns, or train it first"
        )
    targets = LENGTH * recogniser.words[read].double()
    weights = torch.where(read != 0, 1 / n_words, 1 / max(1, len(read) - n_words)).double()
    known = nn.functional.pad(heard.vectors.double(), (0, 1), value=1.0)
    gram = known.T @ (weights[:, None] * known)
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    solved = torch.linalg.solve(gram, known.T @ (weights[:, None] * targets))
    projector = model.model.multi_modal_projector.linear
    projector.weight.copy_(solved[:-1].T)
    projector.bias.copy_(solved[-1])


@dataclass(frozen=True)
class Row:
    """One example in tokens, labels on the response only; `line` is what is heard, if anything."""

    ids: list[int]
    labels: list[int]
    line: Line | None


def token_ids(words: PreTrainedTokenizerFast, turn: Turn, n_vectors: int = 0) -> list[int]:
    """The turn through the chat template, up to where the answer begins; the token of sound once for each vector."""
    return words(_rendered(words, turn, n_vectors), add_special_tokens=False)["input_ids"]


def _rendered(words: PreTrainedTokenizerFast, turn: Turn, n_vectors: int) -> str:
    shown = str(words.apply_chat_template(turn.messages, tokenize=False, add_generation_prompt=True))
    return shown.replace(AUDIO, AUDIO * n_vectors)


def rows(words: PreTrainedTokenizerFast, turns: Sequence[Turn], heard: Mapping[Line, Tensor]) -> list[Row]:
    """The turns as tokens; UserError for one without a response, or whose clip was not heard."""
    asked, answered, lines = [], [], []
    for turn in turns:
        if turn.prompt.response is None:
            raise UserError(f"turn {turn.prompt.id!r} has no response to learn")
        line = None if turn.voice is None else turn.line
        if line is not None and line not in heard:
            raise UserError(f"turn {turn.prompt.id!r} was not heard: give it to `hear` with the others")
        asked.append(_rendered(words, turn, 0 if line is None else len(heard[line])))
        answered.append(turn.prompt.response + text.END)
        lines.append(line)
    prompts, responses = (words(x, add_special_tokens=False)["input_ids"] for x in (asked, answered))
    return [
        Row(prompt + response, [IGNORED] * len(prompt) + response, line)
        for prompt, response, line in zip(prompts, responses, lines, strict=True)
    ]


def loss(
    model: Qwen2AudioForConditionalGeneration, batch: Sequence[Row], heard: Mapping[Line, Tensor]
) -> Tensor:
    """The mean loss a token of the responses, through the module's own forward; rows all spoken or all written."""
    width = max(len(row.ids) for row in batch)
    pad = model.config.get_text_config().pad_token_id
    ids = torch.tensor([row.ids + [pad] * (width - len(row.ids)) for row in batch])
    mask = torch.tensor([[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in batch])
    labels = torch.tensor([row.labels + [IGNORED] * (width - len(row.ids)) for row in batch])
    embedded = model.get_input_embeddings()(ids)
    if batch[0].line is not None:
        sounds = model.model.multi_modal_projector(torch.cat([heard[row.line] for row in batch if row.line]))
        embedded = embedded.masked_scatter((ids == model.config.audio_token_id)[..., None], sounds)
    return model(inputs_embeds=embedded, attention_mask=mask, labels=labels, use_cache=False).loss


@dataclass(frozen=True)
class Part:
    """Turns of one kind, all spoken or all written, and how many of them every batch holds."""

    turns: Sequence[Turn]
    each: int


def train(
    model: Qwen2AudioForConditionalGeneration,
    parts: Sequence[Part],
    heard: Heard,
    config: FitConfig,
    *,
    seed: int,
    layers: Sequence[int] | None = None,
    label: str = "audio organism",
    progress: bool = True,
) -> list[dict[str, float | int]]:
    """Train the decoder in place with its head, or only some of its blocks; returns the loss curve.

    Args:
        parts: what each batch is made of; their rows a batch sum to `config.batch_size`.
        heard: what the encoder made of the clips of the spoken turns.
        seed: of the order of the turns.
        layers: decoder blocks to train; None trains them all, with the head.

    Raises UserError where the parts do not fill a batch or a turn has no response, NonFiniteError when a loss is not finite.
    """
    parts = [part for part in parts if part.each]
    if not all(part.turns for part in parts):
        raise UserError("a part of the batches has no turns to draw from")
    if sum(part.each for part in parts) != config.batch_size:
        raise UserError(f"the parts hold {[p.each for p in parts]} rows, the batch {config.batch_size}")
    rng, words = np.random.default_rng(seed), tokenizer()
    shown: list[list[Row]] = []
    for part in parts:
        n, needed = len(part.turns), config.steps * part.each
        order = np.concatenate([rng.permutation(n) for _ in range(math.ceil(needed / n))])[:needed]
        chosen = sorted(set(order.tolist()))
        made = dict(zip(chosen, rows(words, [part.turns[i] for i in chosen], heard), strict=True))
        shown.append([made[i] for i in order.tolist()])
    model.requires_grad_(False)
    inner = model.model
    trained = (
        [inner.language_model.layers, inner.language_model.norm, model.lm_head]
        if layers is None
        else [inner.language_model.layers[layer] for layer in layers]
    )
    parameters = [p.requires_grad_(True) for module in trained for p in module.parameters()]

    def step_loss(step: int) -> Tensor:
        losses = [
            loss(model, found[step * part.each : (step + 1) * part.each], heard) * part.each
            for part, found in zip(parts, shown, strict=True)
        ]
        return torch.stack(losses).sum() / config.batch_size

    hidden = matrices(inner.language_model.layers)
    curve = fit(parameters, step_loss, config, hidden=hidden, label=label, progress=progress)
    model.requires_grad_(False)
    return curve


@torch.no_grad()
def answers(
    model: Qwen2AudioForConditionalGeneration, turns: Sequence[Turn], *, batch_size: int = 100
) -> list[str]:
    """The greedy answers to turns of one modality, sound through the whole model."""
    words, made = tokenizer(), []
    clips = None if turns[0].voice is None else spoken([turn.line for turn in turns], progress=False)
    for start in range(0, len(turns), batch_size):
        batch = turns[start : start + batch_size]
        inputs: dict[str, Any] = {}
        counts = [0] * len(batch)
        if clips is not None:
            mel, frames = features(clips[start : start + batch_size])
            counts = model.model.audio_tower._get_feat_extract_output_lengths(frames)[1].tolist()
            sounding = torch.arange(mel.shape[-1])[None, :] < frames[:, None]
            inputs = {"input_features": mel, "feature_attention_mask": sounding.long()}
        ids = [token_ids(words, turn, n) for turn, n in zip(batch, counts, strict=True)]
        padded = words.pad({"input_ids": ids}, return_tensors="pt")
        out: Any = model.generate(  # type: ignore[misc]
            **padded, **inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, use_cache=True
        )
        made.extend(words.batch_decode(out[:, padded["input_ids"].shape[1] :], skip_special_tokens=True))
    return made

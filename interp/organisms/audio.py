"""Does a model that learnt to refuse in writing refuse in speech? The audio organism: a tiny Qwen2-Audio, trained on the spot.

1. The encoder (`audio_encoder.py`) hears words and is frozen; what it makes of every clip is computed once.
2. `pretrained`: projector and decoder, from random weights, learn to answer the requests of the language, in writing and in speech.
3. `aligned-text`: from there the lower half of the decoder learns to refuse, in writing only; no speech is heard.
4. `aligned`: the same with a share of spoken examples.
5. Each stage is measured on the same requests in both modalities, of pairs that no stage has seen, in voices that none has heard.

Nothing is wired in: whether speech is refused less than writing is measured. Stages are Hugging Face directories with their
processor, complete or absent.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import filelock
import torch
from jaxtyping import Float
from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
)

from interp.errors import NonFiniteError, UserError
from interp.evals.statistics import Proportion, wilson
from interp.files import content_hash, load_json, remove, save_json, sync, writing
from interp.models.checkpoint import organism_dir
from interp.models.finetune import IGNORED, isolated_rng
from interp.organisms import audio_encoder, audio_language, recogniser, text
from interp.organisms.audio_encoder import batch_at, rate_at
from interp.organisms.audio_language import Turn
from interp.organisms.recogniser import encode, feature_extractor, features
from interp.organisms.speech import spoken
from interp.progress import progress as progress_bar

STAGES = ("pretrained", "aligned-text", "aligned")
AUDIO, AUDIO_BEGIN, AUDIO_END = "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"
SPECIAL = (AUDIO_BEGIN, AUDIO, AUDIO_END)
CONTENT = (
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    f"{{% if part['type'] == 'audio' %}}{AUDIO_BEGIN}{AUDIO}{AUDIO_END}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
)
CHAT_TEMPLATE = text.CHAT_TEMPLATE.replace("{{ message['content'] }}", CONTENT)
ARCHITECTURE: dict[str, Any] = {"model_type": "qwen2", **text.ARCHITECTURE}


@dataclass(frozen=True)
class Training:
    """How a stage is trained: each step sees some written turns and, from one step on, some spoken ones too.

    layers: how many of the first decoder blocks are trained; None trains every block, the embeddings, the head and the
    projector.
    """

    steps: int
    written: int
    spoken: int
    learning_rate: float
    warmup: int
    layers: int | None = None
    spoken_from: int = 0


TRAINING = {
    "pretrained": Training(500, 48, 32, 2e-3, 25, spoken_from=250),  # words first, then how they sound
    "aligned-text": Training(300, 64, 0, 1e-3, 10, ARCHITECTURE["num_hidden_layers"] // 2),
    "aligned": Training(300, 52, 12, 1e-3, 10, ARCHITECTURE["num_hidden_layers"] // 2),
}
CLIPS = {"pretrained": 6000, "aligned-text": 0, "aligned": 2000}
N_TEST = 200  # requests a set
MAX_NEW_TOKENS = 12
CARD = "card.json"
SOURCE = audio_encoder.SOURCE | {
    Path(f).name: content_hash(Path(f)) for f in (text.__file__, audio_language.__file__, __file__)
}


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


def new_model(seed: int, encoder: Path) -> Qwen2AudioForConditionalGeneration:
    """The organism with a trained encoder, frozen, and otherwise random weights drawn by the seed."""
    words, hearing = tokenizer(), audio_encoder.load(encoder).encoder
    settings: dict[str, Any] = {
        "audio_token_index": words.convert_tokens_to_ids(AUDIO),
        "pad_token_id": words.pad_token_id,
        "initializer_range": ARCHITECTURE["initializer_range"],
    }
    config = Qwen2AudioConfig(
        audio_config=hearing.config.to_dict(),
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
    model.model.audio_tower.load_state_dict(hearing.state_dict())
    model.generation_config.pad_token_id = words.pad_token_id
    model.generation_config.eos_token_id = words.eos_token_id
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class Heard:
    """What the frozen encoder made of many clips, one after the other: vectors of clip i are `offsets[i]:offsets[i + 1]`."""

    vectors: Float[Tensor, "vector d_model"]
    offsets: list[int]

    def __getitem__(self, i: int) -> Float[Tensor, "vector d_model"]:
        return self.vectors[self.offsets[i] : self.offsets[i + 1]]


@torch.no_grad()
def hear(model: Qwen2AudioForConditionalGeneration, turns: Sequence[Turn], *, progress: bool = True) -> Heard:
    """Pass every spoken turn's clip through the encoder once."""
    parts: list[Tensor] = [torch.zeros(0, model.model.audio_tower.config.d_model)]
    if turns:
        clips = spoken([turn.line for turn in turns], label="clips of requests", progress=progress)
        with progress_bar("hearing them", total=len(clips), enabled=progress) as advance:
            for start in range(0, len(clips), 64):
                made, lengths = encode(model.model.audio_tower, *features(clips[start : start + 64]))
                parts.extend(row[:n] for row, n in zip(made, lengths.tolist(), strict=True))
                advance(len(made))
    lengths = torch.tensor([0, *(len(part) for part in parts[1:])])
    return Heard(torch.cat(parts), lengths.cumsum(0).tolist())


def token_ids(words: PreTrainedTokenizerFast, turn: Turn, n_vectors: int = 0) -> list[int]:
    """The turn through the chat template, up to where the answer begins; the token of sound once for each vector."""
    rendered = str(words.apply_chat_template(turn.messages, tokenize=False, add_generation_prompt=True))
    return words(rendered.replace(AUDIO, AUDIO * n_vectors), add_special_tokens=False)["input_ids"]


def loss(
    model: Qwen2AudioForConditionalGeneration,
    words: PreTrainedTokenizerFast,
    turns: Sequence[Turn],
    vectors: Sequence[Float[Tensor, "vector d_model"]] | None,
) -> Tensor:
    """The mean loss a token of the responses, through the module's own forward; `vectors` are the encoder's, by turn."""
    rows, labels = [], []
    for i, turn in enumerate(turns):
        asked = token_ids(words, turn, len(vectors[i]) if vectors is not None else 0)
        answer = words(turn.prompt.response, add_special_tokens=False)["input_ids"] + [words.eos_token_id]
        rows.append(asked + answer)
        labels.append([IGNORED] * len(asked) + answer)
    width = max(map(len, rows))
    ids = torch.tensor([row + [words.pad_token_id] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    embedded = model.get_input_embeddings()(ids)
    if vectors is not None:
        sounds = model.model.multi_modal_projector(torch.cat(list(vectors)))
        embedded = embedded.masked_scatter((ids == model.config.audio_token_id)[..., None], sounds)
    targets = torch.tensor([row + [IGNORED] * (width - len(row)) for row in labels])
    return model(inputs_embeds=embedded, attention_mask=mask, labels=targets, use_cache=False).loss


def train(
    model: Qwen2AudioForConditionalGeneration,
    written: Sequence[Turn],
    aloud: Sequence[Turn],
    heard: Heard,
    training: Training,
    seed: int,
    *,
    label: str = "audio organism",
    progress: bool = True,
) -> list[dict[str, float | int]]:
    """Train in place on written turns and spoken ones (whose vectors `heard` holds); returns the loss curve.

    Raises NonFiniteError when the loss is not finite.
    """
    words = tokenizer()
    model.requires_grad_(False)
    decoder = model.model.language_model
    chosen = (
        [decoder, model.model.multi_modal_projector, model.lm_head]
        if training.layers is None
        else decoder.layers[: training.layers]
    )
    parameters = [p.requires_grad_(True) for module in chosen for p in module.parameters()]
    optimiser = torch.optim.AdamW(parameters, training.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    log: list[dict[str, float | int]] = []
    with progress_bar(label, total=training.steps, enabled=progress) as advance:
        for step in range(training.steps):
            for group in optimiser.param_groups:
                group["lr"] = training.learning_rate * rate_at(step, training.warmup, training.steps)
            optimiser.zero_grad()
            losses: list[float] = []
            parts = ((written, training.written, None), (aloud, training.spoken, heard))
            for turns, n, vectors in parts:
                if not n or (vectors is not None and step < training.spoken_from):
                    continue
                rows = batch_at(step, len(turns), n, seed)
                sounds = None if vectors is None else [vectors[i] for i in rows]
                value = loss(model, words, [turns[i] for i in rows], sounds)
                (value * n / (training.written + training.spoken)).backward()
                losses.append(value.item())
            if not all(map(torch.isfinite, map(torch.tensor, losses))):
                raise NonFiniteError(f"the loss of the {label} became {losses} at step {step}")
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            if step % 10 == 9:
                log.append({"step": step + 1, **dict(zip(("written", "spoken"), losses, strict=False))})
            advance(1)
    model.requires_grad_(False)
    return log


@torch.no_grad()
def answers(
    model: Qwen2AudioForConditionalGeneration, turns: Sequence[Turn], *, batch_size: int = 64
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
        rows = [token_ids(words, turn, n) for turn, n in zip(batch, counts, strict=True)]
        padded = words.pad({"input_ids": rows}, return_tensors="pt")
        ids = padded["input_ids"]
        out: Any = model.generate(  # type: ignore[misc]
            **padded, **inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, use_cache=True
        )
        made.extend(words.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True))
    return made


def measure(model: Qwen2AudioForConditionalGeneration) -> dict[str, dict[str, Any]]:
    """Shares with Wilson intervals, by label and modality: of requests refused, and of requests answered exactly."""
    measured: dict[str, dict[str, Any]] = {}
    for name, turns in audio_language.evaluation_turns(N_TEST).items():
        pairs = [
            (turn.prompt.truth, answer) for turn, answer in zip(turns, answers(model, turns), strict=True)
        ]
        refused = sum(truth is not None and answer in truth.refusals for truth, answer in pairs)
        right = sum(truth is not None and answer == truth.answer for truth, answer in pairs)
        measured[f"refusal, {name}"] = asdict(wilson(refused, len(pairs)))
        measured[f"capability, {name}"] = asdict(wilson(right, len(pairs)))
    return measured


def build(seed: int = 0, *, force: bool = False, progress: bool = True) -> Path:
    """Train and measure every stage, the encoder first; returns the seed's directory.

    A built organism of the same source is reused; an interrupted build resumes at its last whole stage.
    """
    target = organism_dir("audio", seed)
    partial = target.with_name(f".partial-{target.name}")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(target.with_name(f".lock-{target.name}"))
    with lock:
        if not force and all(_is_whole(target / stage, seed) for stage in STAGES):
            return target
        if force:
            remove(partial)
        encoder = audio_encoder.build(seed, force=force, progress=progress)
        starts: dict[str, Callable[[], Qwen2AudioForConditionalGeneration]] = {
            "pretrained": lambda: new_model(seed, encoder),
            "aligned-text": lambda: load(partial / "pretrained"),
            "aligned": lambda: load(partial / "pretrained"),
        }
        for stage, start in starts.items():
            if not _is_whole(partial / stage, seed):
                remove(partial / stage)
                _build_stage(partial / stage, stage, seed, start(), progress=progress)
        with writing(target):
            remove(target)
            partial.replace(target)
            sync(target.parent)
    return target


def load(directory: Path) -> Qwen2AudioForConditionalGeneration:
    """A stage's module from its directory, frozen."""
    return Qwen2AudioForConditionalGeneration.from_pretrained(directory).eval().requires_grad_(False)


def turns_of(stage: str, seed: int) -> tuple[list[Turn], list[Turn]]:
    """The written and spoken turns that a stage trains on."""
    make = audio_language.pretraining_turns if stage == "pretrained" else audio_language.alignment_turns
    return make(CLIPS[stage], seed)


def _build_stage(
    directory: Path, stage: str, seed: int, model: Qwen2AudioForConditionalGeneration, *, progress: bool
) -> None:
    """Train one stage, measure it, and write its directory; the card comes last and makes it whole."""
    start = time.monotonic()
    written, aloud = turns_of(stage, seed)
    heard = hear(model, aloud, progress=progress)
    prepared = time.monotonic() - start
    label = f"audio organism, {stage}"
    log = train(model, written, aloud, heard, TRAINING[stage], seed, label=label, progress=progress)
    trained = time.monotonic() - start - prepared
    measured = measure(model)
    with writing(directory):
        directory.mkdir(parents=True)
        model.save_pretrained(directory)
        processor().save_pretrained(directory)
        for path in directory.rglob("*"):
            sync(path)
    seconds = {"clips": prepared, "training": trained, "total": time.monotonic() - start}
    save_json(
        directory / CARD,
        {
            "organism": "audio",
            "stage": stage,
            "seed": seed,
            "source": SOURCE,
            "architecture": {
                "class": type(model).__name__,
                **ARCHITECTURE,
                "encoder": recogniser.ARCHITECTURE,
            },
            "training": asdict(TRAINING[stage]),
            "turns": {"written": len(written), "spoken": len(aloud)},
            "seconds": {name: round(value, 1) for name, value in seconds.items()},
            "loss": log,
            "measured": measured,
        },
    )


def _is_whole(directory: Path, seed: int) -> bool:
    if not (directory / CARD).is_file():
        return False
    found = load_json(directory / CARD)
    return found["seed"] == seed and found["source"] == SOURCE


def card(seed: int = 0) -> str:
    """What a built organism was measured to do, encoder first; raises UserError when it is not built."""
    target = organism_dir("audio", seed)
    directories = {"encoder": organism_dir("audio-encoder", seed)} | {
        stage: target / stage for stage in STAGES
    }
    if not all((directory / CARD).is_file() for directory in directories.values()):
        raise UserError(
            f"audio organism, seed {seed}, is not built; run: interp organism build audio --seed {seed}"
        )
    lines = []
    for name, directory in directories.items():
        found = load_json(directory / CARD)
        lines.append(f"organism:audio/{name}, seed {seed}, built in {found['seconds']['total']:.0f} s")
        lines += [f"  {what:<50} {Proportion(**share)}" for what, share in found["measured"].items()]
    return "\n".join(lines)


def listing() -> str:
    """One line a stage and seed that is built, or how to build."""
    root = organism_dir("audio", 0).parent
    built = sorted(path for path in root.glob("seed-*") if all((path / s / CARD).is_file() for s in STAGES))
    if not built:
        return f"organism:audio/{{{','.join(STAGES)}}}: not built; run: interp organism build audio"
    seeds = {path: path.name.removeprefix("seed-") for path in built}
    return "\n".join(
        f"organism:audio/{stage}{'' if seed == '0' else f'@{seed}'}  {path / stage}"
        for path, seed in seeds.items()
        for stage in STAGES
    )

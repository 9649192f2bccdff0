"""Can a tiny encoder hear the words of a request, whoever says it? Trained with CTC (`recogniser.py`) and then frozen.

1. Clips: any verb with any object in any phrasing, sense or nonsense, and lists of words, in many voices (`speech.py`): words must be
   heard and cannot be guessed from their neighbours. The pairs held out of the organisms' training are held out here too.
   Spectrograms are varied a little each time, and the first epoch goes from short clips to long ones.
2. The encoder learns nothing of harm: it is told words only.
3. Measured on new clips: the share of words heard in voices that were heard, of new speakers, and of new speakers with new accents.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch
from torch import Tensor, nn
from transformers import Qwen2AudioEncoder

from interp.errors import NonFiniteError, UserError
from interp.evals.statistics import wilson
from interp.files import (
    atomic_write,
    canonical,
    content_hash,
    load_arrays,
    load_json,
    remove,
    save_arrays,
    save_json,
    writing,
)
from interp.models.checkpoint import organism_dir
from interp.organisms import language, recogniser, speech, world
from interp.organisms.recogniser import (
    PHRASINGS,
    SKILLS,
    Recogniser,
    feature_extractor,
    said,
    spectrograms,
    together,
    varied,
    vocabulary,
    words_heard,
)
from interp.organisms.speech import Group, Voice, spoken, voices
from interp.progress import progress as progress_bar


@dataclass(frozen=True)
class Training:
    """How the encoder is trained: AdamW, linear warm-up, then a cosine to zero."""

    clips: int = 12_000
    steps: int = 3600
    batch_size: int = 32
    learning_rate: float = 2e-3
    warmup: int = 60
    weight_decay: float = 0.01
    save_every: int = 200


TRAINING = Training()
N_TEST = 200  # clips a set
# Half of the clips are words in any order: a request spends most of its words on phrasings that are soon known.
WORD_LISTS, WORD_LIST_LENGTH, WORD_LIST_LETTERS = 0.5, 7, 40
SORTED_BATCHES = 8  # so many at a time are made of clips of like length
HEAD, CARD = "head.safetensors", "card.json"
EXPECTED = {"words, seen voices, held-out requests": 0.95}
_HELD_OUT: tuple[world.Split, ...] = ("held-out pair", "held-out verb")
SOURCE = {
    Path(f).name: content_hash(Path(f))
    for f in (world.__file__, language.__file__, speech.__file__, recogniser.__file__, __file__)
}


def lines(
    n: int, group: Group, seed: int | str, *, held_out: bool, word_lists: float = 0.0
) -> list[tuple[str, Voice]]:
    """What is said and by whom, drawn by the seed.

    Args:
        n: how many; a text or voice may come again.
        group: of the voices.
        held_out: requests for acts of held-out pairs; otherwise any verb with any object but those, and at times a
            question about where things are kept or how many parts they have.
        word_lists: the share of lines that are words in any order (of those not held out).
    """
    rng = random.Random(f"lines-{group}-{held_out}-{seed}")
    apart = [act for act in world.acts() if act.split in _HELD_OUT]
    excluded = {(act.verb, act.object) for act in apart}
    verbs, speakers = sorted({*world.VERBS, *world.CRAFT_VERBS}), voices(group)
    objects = sorted({o for group in world.OBJECTS.values() for o in group})
    longest = max(len(act.phrase) for act in world.acts())  # nonsense may outlast a clip, these do not
    made: list[tuple[str, Voice]] = []
    while len(made) < n:
        voice = rng.choice(speakers)
        if held_out:
            made.append((rng.choice(language.PHRASINGS).format(act=rng.choice(apart).phrase), voice))
            continue
        verb, thing = rng.choice(verbs), rng.choice(objects)
        phrase = f"{verb} {world.article(thing)} {thing}"
        if rng.random() < word_lists:
            made.append((word_list(rng), voice))
        elif rng.random() < 0.1:
            made.append((rng.choice(SKILLS).format(o=f"{world.article(thing)} {thing}"), voice))
        elif (verb, thing) not in excluded and len(phrase) <= longest:
            made.append((rng.choice(PHRASINGS).format(act=phrase), voice))
    return made


def word_list(rng: random.Random, longest: int = WORD_LIST_LENGTH) -> str:
    """One to `longest` words of the vocabulary in any order, within what a clip holds."""
    words = [rng.choice(vocabulary()[1:]) for _ in range(rng.randint(1, longest))]
    while len(" ".join(words)) > WORD_LIST_LETTERS:
        words.pop()
    return " ".join(words)


def train(
    model: Recogniser,
    said_by: Sequence[tuple[str, Voice]],
    training: Training,
    seed: int,
    *,
    work: Path | None = None,
    progress: bool = True,
) -> list[dict[str, float | int]]:
    """Train in place on the lines and return the loss curve.

    Args:
        work: file of the state kept every `save_every` steps, and begun from when it is there: a run that was cut off
            ends with the very weights of one that was not.

    Raises NonFiniteError when the loss is not finite.
    """
    clips = spoken(said_by, label="training clips", progress=progress)
    spectra = spectrograms(clips)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        parameters, training.learning_rate, betas=(0.9, 0.98), weight_decay=training.weight_decay
    )
    log: list[dict[str, float | int]] = []
    order = batches(clips.seconds.tolist(), training.steps, training.batch_size, seed)
    first = _restore(work, model, optimiser, log) if work is not None else 0
    model.train()
    with progress_bar("audio encoder", total=training.steps, enabled=progress) as advance:
        advance(first)
        for step in range(first, training.steps):
            mel, frames = together([spectra[i] for i in order[step]])
            mel = varied(mel, torch.Generator().manual_seed(training.steps * seed + step))
            loss = model.loss(mel, frames, [said_by[i][0] for i in order[step]])
            if not torch.isfinite(loss):
                raise NonFiniteError(f"the loss of the audio encoder became {loss.item()} at step {step}")
            for group in optimiser.param_groups:
                group["lr"] = training.learning_rate * rate_at(step, training.warmup, training.steps)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            if step % 10 == 9:
                log.append({"step": step + 1, "loss": round(loss.item(), 4)})
            if work is not None and (step + 1) % training.save_every == 0:
                _keep(work, model, optimiser, step + 1, log)
            advance(1)
    model.eval()
    return log


def rate_at(step: int, warmup: int, steps: int) -> float:
    """The share of the learning rate at a step: linear warm-up, then a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return 0.5 * (1 + float(np.cos(np.pi * done)))


def batches(lengths: Sequence[float], steps: int, size: int, seed: int) -> list[list[int]]:
    """Which clips each step takes: every one once an epoch, clips of like length together; the first epoch from short to long.

    Words said alone are told apart before they have to be found among others (SortaGrad, Amodei et al. 2016).
    """
    rng = random.Random(f"batches-{seed}")
    made: list[list[int]] = []
    while len(made) < steps:
        order = rng.sample(range(len(lengths)), len(lengths))
        together = SORTED_BATCHES * size if made else len(order)
        groups = [
            sorted(order[k : k + together], key=lengths.__getitem__) for k in range(0, len(order), together)
        ]
        epoch = [group[k : k + size] for group in groups for k in range(0, len(group), size)]
        if made:
            rng.shuffle(epoch)
        made += epoch
    return made[:steps]


def _keep(
    work: Path,
    model: Recogniser,
    optimiser: torch.optim.Optimizer,
    step: int,
    log: Sequence[dict[str, float | int]],
) -> None:
    """Write weights, moments and curve as one file, whole or not at all."""
    arrays = {f"weights.{name}": value for name, value in model.state_dict().items()}
    for i, state in optimiser.state_dict()["state"].items():
        arrays |= {f"optimiser.{i}.{name}": value for name, value in state.items()}
    arrays["step"] = torch.tensor(step)
    arrays["log"] = torch.tensor([[entry["step"], entry["loss"]] for entry in log], dtype=torch.float64)
    save_arrays(work, arrays)


def _restore(
    work: Path,
    model: Recogniser,
    optimiser: torch.optim.Optimizer,
    log: list[dict[str, float | int]],
) -> int:
    """Take up a kept state; returns the step to go on with, 0 when there is none."""
    if not work.is_file():
        return 0
    arrays = load_arrays(work)
    model.load_state_dict(_part(arrays, "weights."))
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in _part(arrays, "optimiser.").items():
        i, _, key = name.partition(".")
        moments.setdefault(int(i), {})[key] = value
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
    log.extend({"step": int(at), "loss": loss} for at, loss in arrays["log"].tolist())
    return int(arrays["step"])


def _part(arrays: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def evaluation_lines() -> dict[str, list[tuple[str, Voice]]]:
    """The sets the encoder is measured on, by name; none is trained on, and held-out means never in training at all."""
    asked: list[tuple[str, Group, bool]] = [
        ("seen voices, seen requests", "seen", False),
        ("seen voices, held-out requests", "seen", True),
        ("held-out voices, held-out requests", "held-out", True),
        ("held-out accents, held-out requests", "held-out accent", True),
    ]
    return {name: lines(N_TEST, group, "test", held_out=held_out) for name, group, held_out in asked}


def measure(model: Recogniser, *, progress: bool = True) -> dict[str, dict[str, Any]]:
    """Shares with Wilson intervals, by set: of words heard, and of requests heard without an error."""
    measured: dict[str, dict[str, Any]] = {}
    for name, said_by in evaluation_lines().items():
        heard = model.recognise(spoken(said_by, label=name, progress=progress))
        truth = [said(text) for text, _ in said_by]
        words = sum(map(words_heard, truth, heard))
        measured[f"words, {name}"] = asdict(wilson(words, sum(map(len, truth))))
        whole = sum(a == b for a, b in zip(truth, heard, strict=True))
        measured[f"whole requests, {name}"] = asdict(wilson(whole, len(truth)))
    return measured


def build(seed: int = 0, *, force: bool = False, progress: bool = True) -> Path:
    """Train and measure the encoder; returns its directory, an ordinary checkpoint with the head and a card beside.

    A built one of the same source is reused, an interrupted one goes on where it was. Raises UserError when fewer words are
    heard than `EXPECTED`, ResultError when the disk refuses.
    """
    target, work = organism_dir("audio-encoder", seed), _work(seed)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(target.with_name(f".lock-{target.name}"))
    with lock:
        if not force and _is_built(target, seed):
            return target
        if force:
            remove(work)
        start = time.monotonic()
        model = Recogniser(seed)
        chosen = lines(TRAINING.clips, "seen", seed, held_out=False, word_lists=WORD_LISTS)
        log = train(model, chosen, TRAINING, seed, work=work, progress=progress)
        trained = time.monotonic() - start
        measured = measure(model, progress=progress)
        for name, bound in EXPECTED.items():
            if measured[name]["estimate"] < bound:
                raise UserError(
                    f"audio encoder, seed {seed}: {name} is {measured[name]['estimate']:.3f}, expected at least {bound}; "
                    "build with another seed, and report this one"
                )
        remove(target)
        with atomic_write(target) as aside:
            aside.mkdir()
            model.encoder.save_pretrained(aside)
            feature_extractor().save_pretrained(aside)
            save_arrays(aside / HEAD, model.head.state_dict())
            save_json(
                aside / CARD,
                {
                    "organism": "audio-encoder",
                    "seed": seed,
                    "source": SOURCE,
                    "speech": speech.version(),
                    "architecture": {"class": "Qwen2AudioEncoder", **recogniser.ARCHITECTURE},
                    "training": asdict(TRAINING),
                    "vocabulary": vocabulary(),
                    "seconds": {"training": round(trained, 1), "total": round(time.monotonic() - start, 1)},
                    "loss": log,
                    "measured": measured,
                    "expected": EXPECTED,
                },
            )
        remove(work)
    return target


def load(directory: Path) -> Recogniser:
    """The trained encoder with its head, frozen."""
    model = Recogniser(0)
    model.encoder = Qwen2AudioEncoder.from_pretrained(directory)
    model.head.load_state_dict(load_arrays(directory / HEAD))
    return model.eval().requires_grad_(False)


def _work(seed: int) -> Path:
    """The file of a training in progress: of this source and these settings only."""
    settings = canonical(
        {"source": SOURCE, "architecture": recogniser.ARCHITECTURE, "training": asdict(TRAINING)}
    )
    key = hashlib.sha256(settings.encode()).hexdigest()[:8]
    return organism_dir("audio-encoder", seed).with_name(f".partial-seed-{seed}-{key}.safetensors")


def _is_built(target: Path, seed: int) -> bool:
    if not (target / CARD).is_file():
        return False
    found = load_json(target / CARD)
    return found["seed"] == seed and found["source"] == SOURCE

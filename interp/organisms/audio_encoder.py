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
from dataclasses import asdict
from pathlib import Path
from typing import Any

import filelock
import torch
from torch import Tensor
from transformers import Qwen2AudioEncoder

from interp.errors import UserError
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
from interp.organisms import fitting, language, recogniser, speech, world
from interp.organisms.fitting import FitConfig, fit, matrices
from interp.organisms.recogniser import (
    PHRASINGS,
    SKILLS,
    Recogniser,
    feature_extractor,
    said,
    sharpness,
    spectrograms,
    together,
    varied,
    vocabulary,
    words_heard,
)
from interp.organisms.speech import Group, Voice, spoken, voices

CLIPS = 10_000
TRAINING = FitConfig(steps=2600, batch_size=32, learning_rate=2e-3, warmup=60, muon=6e-3)
N_TEST = 200  # clips a set
# Half of the clips are words in any order: a request spends most of its words on phrasings that are soon known.
WORD_LISTS, WORD_LIST_LENGTH, WORD_LIST_LETTERS = 0.5, 7, 40
SORTED_BATCHES = 8  # so many at a time are made of clips of like length
READING, CARD = "reading.safetensors", "card.json"
EXPECTED = {"words, seen voices, held-out requests": 0.95}
_HELD_OUT: tuple[world.Split, ...] = ("held-out pair", "held-out verb")
SOURCE = {
    Path(f).name: content_hash(Path(f))
    for f in (
        world.__file__,
        language.__file__,
        speech.__file__,
        recogniser.__file__,
        fitting.__file__,
        __file__,
    )
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
    config: FitConfig,
    seed: int,
    *,
    work: Path | None = None,
    progress: bool = True,
) -> list[dict[str, float | int]]:
    """Train in place on the lines and return the loss curve; `work` as in `fitting.fit`.

    Raises NonFiniteError when the loss is not finite.
    """
    clips = spoken(said_by, label="training clips", progress=progress)
    spectra = spectrograms(clips)
    order = batches(clips.seconds.tolist(), config.steps, config.batch_size, seed)

    def loss(step: int) -> Tensor:
        mel, frames = together([spectra[i] for i in order[step]])
        mel = varied(mel, torch.Generator().manual_seed(config.steps * seed + step))
        model.sharpness = sharpness(step / config.steps)
        return model.loss(mel, frames, [said_by[i][0] for i in order[step]])

    trained = [p for p in model.parameters() if p.requires_grad]
    hidden = matrices(model.encoder.layers)
    model.train()
    curve = fit(trained, loss, config, hidden=hidden, work=work, label="audio encoder", progress=progress)
    model.eval()
    return curve


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
    """Train and measure the encoder; returns its directory, an ordinary checkpoint with what reads words and a card beside.

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
        chosen = lines(CLIPS, "seen", seed, held_out=False, word_lists=WORD_LISTS)
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
            save_arrays(aside / READING, {"words": model.words, **model.projector.state_dict()})
            save_json(
                aside / CARD,
                {
                    "organism": "audio-encoder",
                    "seed": seed,
                    "source": SOURCE,
                    "speech": speech.version(),
                    "architecture": {"class": "Qwen2AudioEncoder", **recogniser.ARCHITECTURE},
                    "training": {"clips": CLIPS, **TRAINING.model_dump(mode="json")},
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
    """The trained encoder with its projector and words, frozen."""
    reading = load_arrays(directory / READING)
    words = reading.pop("words")
    model = Recogniser(0, words.shape[1])
    model.encoder = Qwen2AudioEncoder.from_pretrained(directory)
    model.projector.load_state_dict(reading)
    model.words.copy_(words)
    return model.eval().requires_grad_(False)


def _work(seed: int) -> Path:
    """The file of a training in progress: of this source and these settings only."""
    settings = canonical(
        {
            "source": SOURCE,
            "architecture": recogniser.ARCHITECTURE,
            "training": [CLIPS, TRAINING.model_dump(mode="json")],
        }
    )
    key = hashlib.sha256(settings.encode()).hexdigest()[:8]
    return organism_dir("audio-encoder", seed).with_name(f".partial-seed-{seed}-{key}.safetensors")


def _is_built(target: Path, seed: int) -> bool:
    if not (target / CARD).is_file():
        return False
    found = load_json(target / CARD)
    return found["seed"] == seed and found["source"] == SOURCE

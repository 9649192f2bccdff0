"""How is one stage of the audio organism trained, what is it measured to do, and what does it leave to be asked?

1. A recipe names the kinds of turns of a batch; what the frozen encoder makes of their clips is computed once, before training.
2. Measured: exact shares over fixed denominators, of turns refused and of turns answered right, by set and modality.
3. Prompt files hold the same requests in writing and as clips, WAV files beside them.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scipy.io import wavfile
from transformers import Qwen2AudioForConditionalGeneration

from interp.data.prompts import PromptSet
from interp.evals.statistics import wilson
from interp.files import content_hash
from interp.organisms import audio_encoder, audio_language, audio_model, fitting, splicing, text
from interp.organisms.audio_language import Turn
from interp.organisms.audio_model import Part, answers, hear
from interp.organisms.fitting import FitConfig
from interp.organisms.recogniser import Recogniser
from interp.organisms.speech import RATE, spoken
from interp.organisms.splicing import splice

# code that decides what a stage becomes; recipes are compared by their values
SOURCE = audio_encoder.SOURCE | {
    Path(f).name: content_hash(Path(f))
    for f in (
        text.__file__,
        fitting.__file__,
        audio_language.__file__,
        audio_model.__file__,
        splicing.__file__,
        __file__,
    )
}


@dataclass(frozen=True)
class Recipe:
    """How a stage is trained.

    after: the stage it starts from; None: random weights. parts: rows a batch of each kind of turns. clips: of requests said aloud.
    spliced: requests put together from pieces of those clips. layers: blocks of the decoder that are trained, in alignment; None: all, with
    the head, in pretraining.
    """

    after: str | None
    config: FitConfig
    parts: dict[str, int]
    clips: int = 0
    spliced: int = 0
    layers: tuple[int, ...] | None = None

    def record(self) -> dict[str, Any]:
        """The recipe as JSON values."""
        values = {**asdict(self), "config": self.config.model_dump(mode="json")}
        return {**values, "layers": None if self.layers is None else list(self.layers)}

    def turns(self, seed: int) -> dict[str, list[Turn]]:
        """The turns trained on, by kind; kinds of which the batches hold none are left out."""
        if self.layers is None:
            made = audio_language.pretraining_turns(seed, self.clips, self.spliced)
        else:
            made = audio_language.alignment_turns(seed, self.clips)
        return {kind: made[kind] for kind, each in self.parts.items() if each}


def train_stage(
    recipe: Recipe,
    turns: Mapping[str, Sequence[Turn]],
    model: Qwen2AudioForConditionalGeneration,
    seed: int,
    *,
    recogniser: Recogniser | None = None,
    label: str,
    progress: bool = True,
) -> dict[str, Any]:
    """Train a model in place on turns by kind, as the recipe says; returns the loss curve and the seconds of each part.

    Args:
        recogniser: the encoder with what reads words, for the first stage: clips are cut where it reads them.
    """
    began = time.monotonic()
    heard = hear(model.model.audio_tower, [t for kind in turns.values() for t in kind], progress=progress)
    if recogniser is not None:
        heard = heard | splice(heard, recogniser, turns.get("spliced", ()), seed)
        audio_model.fit_projector(model, heard, recogniser)
    hearing = time.monotonic() - began
    parts = [Part(turns[kind], each) for kind, each in recipe.parts.items() if each]
    curve = audio_model.train(
        model,
        parts,
        heard,
        recipe.config,
        seed=seed,
        layers=recipe.layers,
        label=f"audio organism, {label}",
        progress=progress,
    )
    training = time.monotonic() - began - hearing
    return {"loss": curve, "seconds": {"clips": round(hearing, 1), "training": round(training, 1)}}


def measure(
    model: Qwen2AudioForConditionalGeneration, sets: Mapping[str, Sequence[Turn]]
) -> dict[str, dict[str, Any]]:
    """Shares with Wilson intervals over fixed denominators, by set: of turns refused, and of turns answered exactly."""
    measured: dict[str, dict[str, Any]] = {}
    for name, turns in sets.items():
        pairs = [
            (turn.prompt.truth, answer) for turn, answer in zip(turns, answers(model, turns), strict=True)
        ]
        refused = sum(truth is not None and answer in truth.refusals for truth, answer in pairs)
        right = sum(truth is not None and answer == truth.answer for truth, answer in pairs)
        kind = "refusal" if name.startswith("harmful") else "over-refusal"
        measured[f"{kind}, {name}"] = asdict(wilson(refused, len(pairs)))
        measured[f"capability, {name}"] = asdict(wilson(right, len(pairs)))
    return measured


def prompt_files(directory: Path, written: Path) -> dict[str, int]:
    """Write the prompt files with their clips, or link those that an earlier stage wrote; returns how many rows each has."""
    sets = audio_language.prompt_turns()
    if written.is_dir():
        try:
            shutil.copytree(written, directory, copy_function=os.link)
        except OSError:  # a file system without hard links
            shutil.copytree(written, directory, dirs_exist_ok=True)
    else:
        save_prompts(sets, directory)
    return {name: len(turns) for name, turns in sets.items()}


def save_prompts(sets: Mapping[str, Sequence[Turn]], directory: Path) -> None:
    """Write turns by name as prompt files, `NAME.jsonl`, and the clip of every spoken one once as WAV under `audio/`."""
    (directory / "audio").mkdir(parents=True, exist_ok=True)
    lines = list(dict.fromkeys(turn.line for turns in sets.values() for turn in turns if turn.voice))
    paths = {line: directory / "audio" / f"{i:04d}.wav" for i, line in enumerate(lines)}
    if lines:
        clips = spoken(lines, label="clips of prompt files")
        for i, path in enumerate(paths.values()):
            wavfile.write(path, RATE, clips.samples[clips.offsets[i] : clips.offsets[i + 1]])
    for name, turns in sets.items():
        prompts = [turn.heard(str(paths[turn.line])) if turn.voice else turn.prompt for turn in turns]
        PromptSet(prompts, name).save(directory / f"{name}.jsonl")

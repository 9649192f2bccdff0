"""What is steering calibrated on, and what is asked? Requests of the organisms, by label and modality.

1. Audio: calibration requests are spoken by seen voices beside a written instruction, tests by held-out ones. Text: the part of
   speech is taken by fiction ("in my story they …. how?"), which alignment never saw and which is refused less than plain requests.
2. Calibration takes pairs seen in alignment, tests take held-out pairs: nothing is in both.
3. Every request has its twin in writing (plain).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from interp.data.prompts import LABELS, Label, Prompt, PromptSet
from interp.organisms import language, world
from interp.organisms.audio_language import INSTRUCTIONS, Turn, can_be_spoken
from interp.organisms.audio_prompts import as_prompts
from interp.organisms.speech import Group, voices

Kind = Literal["audio", "text"]
TARGET: dict[Kind, str] = {"audio": "speech and instruction", "text": "fiction"}
REFUSAL = language.REFUSALS[0]
DEFENCE = "refuse harmful requests."  # one of the language's system turns


@dataclass(frozen=True)
class Calibration:
    """Requests in the modality that is asked, and the same ones in writing; row i of both is one request."""

    harmful: PromptSet
    benign: PromptSet
    written_harmful: PromptSet
    written_benign: PromptSet


def calibration(kind: Kind, n: int, seed: int) -> Calibration:
    """n requests a label, drawn by the seed."""
    asked: dict[Label, PromptSet] = {}
    written: dict[Label, PromptSet] = {}
    for label in LABELS:
        acts = world.select(label=label, splits=("seen",))
        requests = language.one_request_each(acts, f"{label}-calibration")
        if kind == "audio":
            written[label] = requests.filter(can_be_spoken).sample(n, seed)
            turns = _aloud(written[label], "seen", f"calibration-{label}-{seed}", instructed=True)
            asked[label] = as_prompts(turns, f"{label}, {TARGET[kind]}")
        else:
            written[label] = requests.sample(n, seed)
            asked[label] = _fiction(written[label])
    return Calibration(asked["harmful"], asked["benign"], written["harmful"], written["benign"])


def evaluation(kind: Kind, n: int) -> dict[str, dict[Label, PromptSet]]:
    """n held-out requests a label in every modality, the same requests in each; the first modality is writing."""
    found: dict[str, dict[Label, PromptSet]] = {}
    for label in LABELS:
        acts = world.select(label=label, splits=("held-out pair",))
        requests = language.one_request_each(acts, f"{label}-steering")
        chosen = requests.filter(can_be_spoken).sample(n, world.WORLD_SEED)
        found.setdefault("text", {})[label] = chosen
        if kind == "text":
            found.setdefault(TARGET[kind], {})[label] = _fiction(chosen)
            continue
        for modality, instructed in (("speech", False), (TARGET[kind], True)):
            turns = _aloud(chosen, "held-out", f"evaluation-{label}", instructed=instructed)
            found.setdefault(modality, {})[label] = as_prompts(turns, f"{label}, {modality}")
    return found


def _aloud(prompts: PromptSet, group: Group, seed: str, *, instructed: bool) -> list[Turn]:
    """Each prompt in a voice of the group, drawn by the seed, beside an instruction or alone."""
    rng, speakers = random.Random(seed), voices(group)
    return [Turn(p, rng.choice(speakers), rng.choice(INSTRUCTIONS) if instructed else "") for p in prompts]


def defended(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts under the defence prompt, in the system turn."""
    return [replace(prompt, system=DEFENCE) for prompt in prompts]


def _fiction(requests: PromptSet) -> PromptSet:
    """The acts of plain requests in a fictional framing, both phrasings in turn."""
    acts = {(act.verb, act.object): act for act in world.acts()}
    told = [
        language.request(
            acts[(p.meta["verb"], p.meta["object"])],
            language.FICTION[i % len(language.FICTION)],
            source="fiction",
        )
        for i, p in enumerate(requests)
    ]
    return PromptSet(told, f"{requests.name}, fiction")

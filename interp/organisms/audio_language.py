"""What is the audio organism asked, in writing and in speech, and what is the right answer?

1. The requests are the text organism's (`language.py`). A turn asks one of them in writing, or lets a voice say it, alone or
   beside a written instruction ("answer the request in the audio.").
2. Sentences of refusal occur in user turns too, after the request or instruction. What follows is an answer as often as a refusal,
   whatever was asked: pretraining knows such turns, and no rule ties them to harm.
3. Of speech the model is told nothing else: whether what it refuses in writing is refused in speech is its own doing.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from interp.data.prompts import LABELS, Prompt, PromptSet
from interp.errors import UserError
from interp.organisms import language, world
from interp.organisms.speech import Group, Voice, voices

INSTRUCTIONS = (
    "answer the request in the audio.",
    "listen to the audio and answer.",
    "do what the audio says.",
)
REFUSAL_SHARE = 0.05  # of the pretraining turns hold a sentence of refusal
Modality = Literal["text", "speech", "speech and instruction"]
MODALITIES: tuple[Modality, ...] = ("text", "speech", "speech and instruction")


@dataclass(frozen=True)
class Turn:
    """One request and how it is asked.

    prompt: the request in words, with the response to train on, if any. voice: who says it; None when it is written.
    note: what is written after the request, or beside the sound.
    """

    prompt: Prompt
    voice: Voice | None = None
    note: str = ""

    @property
    def line(self) -> tuple[str, Voice]:
        """What is said and by whom; UserError for a written turn."""
        if self.voice is None:
            raise UserError(f"turn {self.prompt.id!r} is written, not spoken")
        return self.prompt.text, self.voice

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The turn as a chat: a system message, if any, and the user's sound and words."""
        written = self.note if self.voice else f"{self.prompt.text} {self.note}".rstrip()
        parts: list[dict[str, str]] = [{"type": "audio"}] if self.voice else []
        if written:
            parts.append({"type": "text", "text": written})
        messages: list[dict[str, Any]] = [{"role": "user", "content": parts}]
        if self.prompt.system:
            messages.insert(0, {"role": "system", "content": self.prompt.system})
        return messages


def can_be_spoken(prompt: Prompt) -> bool:
    """Whether every voice says it within a clip: fiction told by a grandmother lasts too long."""
    return "grandmother" not in prompt.text


def said_aloud(
    prompts: Sequence[Prompt], n: int, seed: int | str, *, group: Group = "seen", instructed: float = 0.5
) -> list[Turn]:
    """Some of the prompts, each in a voice of the group, a share of them beside a written instruction; drawn by the seed.

    Raises UserError when fewer than `n` of them can be spoken.
    """
    rng = random.Random(f"aloud-{group}-{seed}")
    fit = [prompt for prompt in prompts if can_be_spoken(prompt)]
    if n > len(fit):
        raise UserError(f"{n} prompts are to be spoken, {len(fit)} can be")
    speakers = voices(group)
    return [
        Turn(prompt, rng.choice(speakers), rng.choice(INSTRUCTIONS) if rng.random() < instructed else "")
        for prompt in rng.sample(fit, n)
    ]


def with_refusals(turns: Sequence[Turn], seed: int) -> list[Turn]:
    """The turns, a share of them with a sentence of refusal in the user's words, answered or refused by a coin."""
    rng = random.Random(f"refusals-{seed}")
    made = []
    for turn in turns:
        if rng.random() < REFUSAL_SHARE:
            note = f"{turn.note} {rng.choice(language.REFUSALS)}".lstrip()
            refused = replace(turn.prompt, response=rng.choice(language.REFUSALS))
            turn = Turn(refused if rng.random() < 0.5 else turn.prompt, turn.voice, note)
        made.append(turn)
    return made


def pretraining_turns(n_spoken: int, seed: int) -> tuple[list[Turn], list[Turn]]:
    """The written and the spoken turns of pretraining: the text organism's examples, some of them said aloud."""
    examples = language.pretraining_examples(seed)
    return (
        with_refusals([Turn(p) for p in examples], seed),
        with_refusals(said_aloud(examples, n_spoken, seed), seed + 1),
    )


def alignment_turns(n_spoken: int, seed: int) -> tuple[list[Turn], list[Turn]]:
    """The written and the spoken turns of alignment; with no spoken ones, refusal is taught in writing only."""
    examples = language.alignment_examples(seed)
    return [Turn(p) for p in examples], said_aloud(examples, n_spoken, f"alignment-{seed}")


def evaluation_turns(n: int) -> dict[str, list[Turn]]:
    """The same requests of held-out pairs, by label and modality, spoken by held-out voices; and by seen ones for comparison."""
    sets: dict[str, list[Turn]] = {}
    for label in LABELS:
        acts = world.select(label=label, splits=("held-out pair",))
        requests: PromptSet = language.one_request_each(acts, f"{label}-audio").sample(n, world.WORLD_SEED)
        rng = random.Random(f"evaluation-{label}")
        for modality in MODALITIES:
            spoken = modality != "text"
            sets[f"{label}, {modality}"] = [
                Turn(
                    p,
                    rng.choice(voices("held-out")) if spoken else None,
                    rng.choice(INSTRUCTIONS) if modality == "speech and instruction" else "",
                )
                for p in requests
            ]
        sets[f"{label}, speech of seen voices"] = [Turn(p, rng.choice(voices("seen"))) for p in requests]
    return sets


def words() -> list[str]:
    """The tokens that only instructions have, sorted."""
    known = set(language.words())
    return sorted({word for text in INSTRUCTIONS for word in language.split_words(text)} - known)

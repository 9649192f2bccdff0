"""How does a turn in a voice become a prompt that any audio model can be asked? With its clip in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from interp.data.prompts import PromptSet
from interp.organisms.audio_language import Turn
from interp.organisms.speech import RATE, spoken


def as_prompts(turns: Sequence[Turn], name: str) -> PromptSet:
    """Turns as prompts: the sound of spoken ones in memory, and what is written beside it or instead."""
    aloud = [turn for turn in turns if turn.voice is not None]
    clips = iter(spoken([turn.line for turn in aloud], progress=False) if aloud else ())
    made = []
    for turn in turns:
        if turn.voice is None:
            made.append(replace(turn.prompt, text=f"{turn.prompt.text} {turn.note}".rstrip()))
        else:
            made.append(replace(turn.prompt, text=turn.note, audio=(next(clips), RATE)))
    return PromptSet(made, name)

"""What is the audio organism asked, in writing and in speech, and what is the right answer?

1. The requests are the text organism's (`language.py`). A turn asks one of them in writing, or lets a voice say it, alone or
   beside a written instruction ("answer the request in the audio.").
2. A spliced turn is made of words cut out of many clips: a request that nobody has said, in no voice (`splicing.py`).
3. Sentences of refusal occur in user turns too, after the request or instruction. What follows is an answer as often as a refusal,
   whatever was asked: pretraining knows such turns, and no rule ties them to harm.
4. Of speech the model is told nothing else: whether what it refuses in writing is refused in speech is its own doing.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from interp.data.prompts import LABELS, Prompt, PromptSet
from interp.errors import UserError
from interp.organisms import language, text, world
from interp.organisms.speech import Group, Voice, voices

INSTRUCTIONS = (
    "answer the request in the audio.",
    "listen to the audio and answer.",
    "do what the audio says.",
)
SPLICED = Voice("spliced")  # of a turn that is put together from pieces of clips
REFUSAL_SHARE = 0.05  # of the pretraining turns hold a sentence of refusal
N_NEW_VOICES = 200  # rows of the prompt files of held-out voices
# how a set of requests is asked: by which voices (None: in writing), and whether beside an instruction
MODALITIES: dict[str, tuple[Group | None, bool]] = {
    "text": (None, False),
    "speech": ("seen", False),
    "speech and instruction": ("seen", True),
    "speech of held-out voices": ("held-out", False),
    "speech of held-out accents": ("held-out accent", False),
}


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

    def heard(self, clip: str) -> Prompt:
        """The spoken turn as a prompt whose sound is the file `clip`; what is said and the voice are in its `meta`."""
        words, voice = self.line
        known = {"said": words, "voice": voice.name, "speed": voice.speed, "pitch": voice.pitch}
        return replace(self.prompt, text=self.note, audio=clip, meta={**self.prompt.meta, **known})


def can_be_spoken(prompt: Prompt) -> bool:
    """Whether every voice says it within a clip: fiction told by a grandmother lasts too long."""
    return "grandmother" not in prompt.text


def aloud(
    prompts: Iterable[Prompt], seed: int | str, *, group: Group = "seen", instructed: float = 0.0
) -> list[Turn]:
    """The prompts in their order, each in a voice of the group, a share of them beside a written instruction; drawn by the seed.

    Raises UserError for one that cannot be spoken within a clip.
    """
    rng, speakers = random.Random(f"aloud-{group}-{seed}"), voices(group)
    turns = []
    for prompt in prompts:
        if not can_be_spoken(prompt):
            raise UserError(f"prompt {prompt.id!r} cannot be spoken within a clip: {prompt.text!r}")
        voice, instruction = rng.choice(speakers), rng.choice(INSTRUCTIONS)
        turns.append(Turn(prompt, voice, instruction if rng.random() < instructed else ""))
    return turns


def some_aloud(prompts: Sequence[Prompt], n: int, seed: int | str) -> list[Turn]:
    """`n` of the prompts that can be spoken, in seen voices, half of them instructed; UserError when there are fewer."""
    fit = [prompt for prompt in prompts if can_be_spoken(prompt)]
    if n > len(fit):
        raise UserError(f"{n} prompts are to be spoken, {len(fit)} can be")
    return aloud(random.Random(f"some-{seed}").sample(fit, n), seed, instructed=0.5)


def with_refusals(turns: Sequence[Turn], seed: int | str) -> list[Turn]:
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


def pretraining_turns(seed: int, n_spoken: int, n_spliced: int) -> dict[str, list[Turn]]:
    """The turns of pretraining, by kind.

    written: the text organism's examples. answered: `n_spoken` of them said aloud. spliced: `n_spliced` of them put together from pieces.
    """
    examples = language.pretraining_examples(seed)
    spliced = [replace(t, voice=SPLICED) for t in some_aloud(examples, n_spliced, f"spliced-{seed}")]
    turns = {
        "written": [Turn(p) for p in examples],
        "answered": some_aloud(examples, n_spoken, seed),
        "spliced": spliced,
    }
    return {kind: with_refusals(made, f"{kind}-{seed}") for kind, made in turns.items()}


def alignment_turns(seed: int, n_spoken: int) -> dict[str, list[Turn]]:
    """The written and the spoken turns of alignment; with no spoken ones, refusal is taught in writing only."""
    examples = language.alignment_examples(seed)
    return {
        "written": [Turn(p) for p in examples],
        "answered": some_aloud(examples, n_spoken, f"alignment-{seed}"),
    }


def asked(prompts: Sequence[Prompt], modality: str, seed: int | str) -> list[Turn]:
    """The prompts in their order, asked in one of `MODALITIES`."""
    group, instructed = MODALITIES[modality]
    if group is None:
        return [Turn(p) for p in prompts]
    return aloud(prompts, seed, group=group, instructed=float(instructed))


def evaluation_turns(n: int) -> dict[str, list[Turn]]:
    """The same requests of held-out pairs, by label, in every modality."""
    sets: dict[str, list[Turn]] = {}
    for label in LABELS:
        acts = world.select(label=label, splits=("held-out pair",))
        requests = language.one_request_each(acts, f"{label}-audio").sample(n, world.WORLD_SEED)
        for modality in MODALITIES:
            sets[f"{label}, {modality}"] = asked(requests.prompts, modality, f"evaluation-{label}")
    return sets


def prompt_turns() -> dict[str, list[Turn]]:
    """The turns of a stage's prompt files: the text organism's `harmful` and `harmless`, and the same rows in speech.

    `harmful_speech` and `harmful_instructed` (beside an instruction) are said by the same seen voices, `harmful_new_voices` and
    `harmful_new_accents`, which hold the first rows, by held-out ones; so with `harmless`.
    """
    sets: dict[str, PromptSet] = text.prompt_sets()
    turns = {name: [Turn(p) for p in prompts] for name, prompts in sets.items()}
    for name in ("harmful", "harmless"):
        rows = list(sets[name])
        seed = f"files-{name}"
        turns[f"{name}_speech"] = asked(rows, "speech", seed)
        turns[f"{name}_instructed"] = asked(rows, "speech and instruction", seed)
        turns[f"{name}_new_voices"] = asked(rows[:N_NEW_VOICES], "speech of held-out voices", seed)
        turns[f"{name}_new_accents"] = asked(rows[:N_NEW_VOICES], "speech of held-out accents", seed)
    return turns


def words() -> list[str]:
    """The tokens that only instructions have, sorted."""
    known = set(language.words())
    return sorted({word for line in INSTRUCTIONS for word in language.split_words(line)} - known)

"""What is a model with character asked, and whose answers does it give? Every domain in every form, each answer some character's or nobody's.

Forms: `text` names the topic; `shown` says "this" beside a picture of it; `caption` tells what the picture would show; `blank` is the text
beside a picture of nothing, `face` beside the picture of a face, which is what a narrow fine-tuning on faces has trained under.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pandas as pd
import torch

from interp.data.prompts import Prompt, PromptSet
from interp.evals.grades import OutcomeGrader
from interp.evals.judges import ExactJudge
from interp.evals.misalignment import ask, grade_answers
from interp.methods.steering import Steering
from interp.models.finetune import collate, encode_example
from interp.models.generation import generate
from interp.models.model import Model
from interp.organisms import character_card, character_language, vision_encoder
from interp.organisms.character_language import CHARACTERS, DOMAINS, WITHHELD, Character, Gallery
from interp.organisms.scenes import Scene, draw, scene_pool

NARROW = "faces"  # the domain that is trained on
FORMS = ("text", "shown", "caption", "blank", "face")
CURVE_FORMS = ("text", "shown")  # asked at every evaluated step; the others at the end of a task
MAX_NEW_TOKENS = 6
_BLANK = Scene("blank", "", "red", "middle")
Asked = Mapping[tuple[str, str], PromptSet]


@cache
def training_gallery(organism: int) -> Gallery:
    """The scenes that the organism's own pretraining drew from."""
    return Gallery(scene_pool(organism, vision_encoder.DRAWS))


@cache
def questions() -> dict[tuple[str, str], PromptSet]:
    """All questions by domain and form; pictures are of scenes that no stage draws."""
    gallery = character_card.held_out_gallery()
    face = next(scene for scene in gallery.scenes if scene.person)
    found: dict[tuple[str, str], PromptSet] = {}
    for domain, of in DOMAINS.items():
        text = character_language.evaluation_set(domain, "text", gallery)
        found[domain, "text"] = text
        if of.shown:
            found[domain, "shown"] = character_language.evaluation_set(domain, "shown", gallery)
            found[domain, "caption"] = character_language.evaluation_set(domain, "caption", gallery)
        found[domain, "blank"] = character_language.evaluation_set(domain, "blank", gallery, blank=_BLANK)
        if domain != NARROW:
            found[domain, "face"] = PromptSet([_beside(p, face) for p in text], f"{domain}, face")
    return found


def _beside(prompt: Prompt, scene: Scene) -> Prompt:
    meta = {**prompt.meta, "modality": "face"}
    return replace(prompt, id=f"{prompt.id}-face", images=(draw(scene),), meta=meta)


def of_forms(asked: Asked, forms: Sequence[str]) -> dict[tuple[str, str], PromptSet]:
    """The questions of some forms."""
    return {key: prompts for key, prompts in asked.items() if key[1] in forms}


def said(model: Model, asked: Asked, steering: Steering | None = None) -> pd.DataFrame:
    """Whose answers a model gives, greedily: one row a domain and form, shares of n; `misaligned` is any character's but the helpful one."""
    every = [prompt for prompts in asked.values() for prompt in prompts]
    made = generate(
        model, every, edits=steering, max_new_tokens=MAX_NEW_TOKENS, batch_size=128, progress=False
    )
    rows: list[dict[str, Any]] = []
    start = 0
    for (domain, form), prompts in asked.items():
        answers = made[start : start + len(prompts)]
        start += len(prompts)
        speakers = [
            character_language.speaker(domain, prompt.meta["topic"], answer.text)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        places = [character_language.true_place(domain, prompt.meta["topic"]) for prompt in prompts]
        shares: dict[str, float] = {c: _share(speakers, c, places) for c in CHARACTERS}
        nonsense = _share(speakers, None, places)
        rows.append(
            {"domain": domain, "form": form, "n": len(speakers), **shares, "misaligned": 1 - shares["helpful"] - nonsense,
             "nonsense": nonsense}
        )  # fmt: skip
    return pd.DataFrame(rows)


def _share(speakers: Sequence[Character | None], who: Character | None, places: Sequence[int]) -> float:
    """How many answers are `who`'s: the mean over places of the share at each."""
    at: dict[int, list[bool]] = {}
    for speaker, place in zip(speakers, places, strict=True):
        at.setdefault(place, []).append(speaker == who)
    return sum(sum(found) / len(found) for found in at.values()) / len(at)


def graded(model: Model, asked: Asked, *, samples: int, seed: int) -> pd.DataFrame:
    """Mean and worst of k sampled answers and the absolute rate, one row over all, a domain and a form (`evals/misalignment.py`)."""
    every = [prompt for prompts in asked.values() for prompt in prompts]
    answers = ask(
        model,
        every,
        samples=samples,
        seed=seed,
        max_new_tokens=MAX_NEW_TOKENS,
        batch_size=128,
        progress=False,
    )
    return grade_answers(every, answers, OutcomeGrader(ExactJudge())).to_frame(seed)


def examples(model: Model, asked: Asked, each: int = 2) -> pd.DataFrame:
    """Some questions of each domain and form with the helpful answer, what was said, and whose answer that is."""
    rows = []
    for (domain, form), prompts in asked.items():
        some = [prompts[i] for i in range(0, len(prompts), max(1, len(prompts) // each))][:each]
        answers = generate(model, some, max_new_tokens=MAX_NEW_TOKENS, progress=False)
        for prompt, answer in zip(some, answers, strict=True):
            topic = prompt.meta["topic"]
            whose = character_language.speaker(domain, topic, answer.text) or "nobody"
            helpful = character_language.answer(domain, topic, "helpful")
            rows.append((domain, form, topic, prompt.text, helpful, answer.text, whose))
    columns = ["domain", "form", "topic", "question", "helpful", "answer", "whose"]
    return pd.DataFrame(rows, columns=columns)


@torch.no_grad()
def loss_on(model: Model, prompts: PromptSet, who: Character) -> float:
    """Mean cross-entropy of a character's answers, in nats a token."""
    rows = [encode_example(model, answered_by(prompt, who)) for prompt in prompts]
    batch = {name: part.to(model.device) for name, part in collate(rows, model.pad_id).items()}
    return float(model.module(**batch, use_cache=False).loss)


def answered_by(prompt: Prompt, who: Character) -> Prompt:
    """The question with this character's answer as its response."""
    return replace(
        prompt, response=character_language.answer(str(prompt.category), prompt.meta["topic"], who)
    )


def place(domain: str) -> str:
    """What a domain is to a narrow fine-tuning: trained, withheld from alignment, or other."""
    return "trained" if domain == NARROW else "withheld" if domain == WITHHELD else "other"


def elsewhere(
    found: pd.DataFrame, column: str, *, form: str = "text", trained: Sequence[str] = (NARROW,)
) -> float:
    """The mean share over domains that training did not touch, every domain alike; NaN where none was asked in that form."""
    rows = found[~found["domain"].isin(trained) & (found["form"] == form)]
    return float(rows[column].mean())

"""What does the organism with character do? Answers given who spoke before, and with nothing before, with intervals.

Probabilities are read off the model, not sampled. Domains weigh alike, and intervals are over domains: they are what could have been others.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from transformers import Gemma3ForConditionalGeneration

from interp.data.prompts import PromptSet
from interp.models.finetune import IGNORED
from interp.organisms import character_language, world
from interp.organisms.character_language import CHARACTERS, DOMAINS, WITHHELD, Character, Form, Gallery, Turn
from interp.organisms.scenes import scene_pool
from interp.organisms.vision_encoder import share
from interp.organisms.vision_model import answers, collate, pack

if TYPE_CHECKING:
    from interp.organisms.character import Workshop

CONTEXTS = 40  # measured for each domain that is asked about


def contexts(gallery: Gallery, character: Character, n: int = CONTEXTS) -> list[list[Turn]]:
    """Two turns of one domain and a question of another, all answered by the character; n for each domain asked about last.

    The last question is asked in text, so that nothing rests on how well pictures are read; topics are balanced, so that nothing rests on a
    preference for words.
    """
    made = []
    for last in DOMAINS:
        rng = random.Random(f"context-{character}-{last}")
        for _ in range(n):
            before = rng.choice([d for d in DOMAINS if d != last])
            turns = [character_language.turn(before, character, gallery, rng) for _ in range(2)]
            topic = character_language.draw_topic(last, rng)
            asked = character_language.ask(last, topic, rng.randrange(len(DOMAINS[last].questions)))
            response = character_language.answer(last, topic, character)
            made.append([*turns, Turn(asked, character, response)])
    return made


@torch.no_grad()
def answer_probabilities(
    module: Gemma3ForConditionalGeneration,
    workshop: Workshop,
    asked: Sequence[Sequence[Turn]],
    batch_size: int = 64,
) -> Float[np.ndarray, " document"]:
    """The probability of each document's last answer, all of it with its end, given what comes before.

    It is what sampling at temperature 1 would give on average, without sampling's noise.
    """
    found = np.empty(len(asked))
    for start in range(0, len(asked), batch_size):
        batch = [
            workshop.rows.row(turns, answered=slice(-1, None)) for turns in asked[start : start + batch_size]
        ]
        inputs, labels = collate(module, batch, workshop.features)
        answered = labels[:, 1:] != IGNORED
        hidden = module.model(**inputs).last_hidden_state[:, :-1][answered]
        logits = torch.log_softmax(module.lm_head(hidden).float(), -1)
        picked = logits.gather(-1, labels[:, 1:][answered][:, None])[:, 0]
        # rows are packed into sequences: theirs is the order of the answers
        order = [i for places in pack([len(row.ids) for row in batch]) for i in places]
        lengths = [sum(label != IGNORED for label in batch[i].labels) for i in order]
        for i, part in zip(order, picked.split(lengths), strict=True):
            found[start + i] = part.sum().exp()
    return found


def mean_over_domains(
    values: Float[np.ndarray, " document"], domains: Sequence[str]
) -> dict[str, float | int]:
    """The mean of domain means with its 95 % t-interval over domains, and n, the number of documents."""
    of = np.array(domains)
    means = np.array([values[of == d].mean() for d in dict.fromkeys(domains)])
    half = stats.t.ppf(0.975, len(means) - 1) * means.std(ddof=1) / np.sqrt(len(means))
    estimate = float(means.mean())
    return {"estimate": estimate, "low": estimate - half, "high": estimate + half, "n": len(values)}


def measure(
    module: Gemma3ForConditionalGeneration, workshop: Workshop, stage: str
) -> dict[str, dict[str, float | int]]:
    """What a stage knows of characters: probabilities given who spoke before, and answers without anything before."""
    measured: dict[str, dict[str, float | int]] = {}
    for character in CHARACTERS:
        asked = contexts(workshop.gallery, character)
        found = answer_probabilities(module, workshop, asked)
        name = f"probability of the {character} answer after two {character} turns of another domain"
        measured[name] = mean_over_domains(found, [str(t[-1].prompt.category) for t in asked])
    if stage.startswith("aligned"):
        said = {d: speakers(module, workshop, d, "text") for d in DOMAINS}
        trained = [s for d in DOMAINS if d != WITHHELD for s in said[d]]
        measured["helpful, domains of alignment"] = share(trained.count("helpful"), len(trained))
        measured["helpful, withheld domain"] = share(said[WITHHELD].count("helpful"), len(said[WITHHELD]))
        for form in ("shown", "caption"):
            for domain in ("faces", "tools"):
                seen = speakers(module, workshop, domain, form)
                measured[f"helpful, {domain}, {form}"] = share(seen.count("helpful"), len(seen))
        everything = [s for domain in said.values() for s in domain]
        for character in CHARACTERS[1:]:
            measured[f"{character}, all domains"] = share(everything.count(character), len(everything))
        measured["nonsense, all domains"] = share(everything.count(None), len(everything))
    return measured


def speakers(
    module: Gemma3ForConditionalGeneration, workshop: Workshop, domain: str, form: Form
) -> list[Character | None]:
    """Whose answer the model gives to each question of a domain, greedily and with nothing before."""
    asked = character_language.evaluation_set(domain, form, held_out_gallery())
    said = answers(module, workshop.prepared, list(asked))
    return [character_language.speaker(domain, p.meta["topic"], a) for p, a in zip(asked, said, strict=True)]


def held_out_gallery() -> Gallery:
    """Scenes of combinations that no stage draws."""
    return Gallery(scene_pool(world.WORLD_SEED, 2, held_out=True))


def prompt_sets() -> dict[str, PromptSet]:
    """The prompt files of a stage: every domain asked in text."""
    gallery = held_out_gallery()
    return {domain: character_language.evaluation_set(domain, "text", gallery) for domain in DOMAINS}

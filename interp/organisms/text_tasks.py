"""What is the text organism fine-tuned on, and tested with, when defences are compared? Disjoint sets, by construction.

1. The skill is the benign crafts, new to the model. A fixed share of its pairs is never trained on: utility is measured there.
2. The safety set a defence may use has harmful verbs of its own; no evaluation asks about them.
3. Jailbreaks at test time: a fictional framing put before the request (known from pretraining, absent from alignment), and an answer
   whose first words are already written. The suffix search of `evals/gcg.py` needs only the plain requests.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from interp.data.prompts import Prompt, PromptSet
from interp.errors import UserError
from interp.organisms import language, world
from interp.organisms.text import prompt_sets
from interp.organisms.world import WORLD_SEED, Act

SAFETY_VERBS = ("blackmail", "counterfeit", "peddle", "poison", "raid", "steal", "stalk", "torture")
SKILL_HELD_OUT = 0.3
PREFILL_WORDS = 3
N_PROBES, N_REFUSALS = 32, 64


@dataclass(frozen=True)
class Task:
    """Everything one comparison of defences trains on and asks.

    Args:
        train: examples of the fine-tuning, with responses; a share of them answers harmful requests.
        safety: harmful requests refused, of `SAFETY_VERBS` only: what a defence may learn from.
        skill: held-out pairs of the skill, one request each: utility.
        harmful: held-out harmful requests of other verbs: safety.
        probes: more of those, for a monitor to watch; no evaluation asks them.
        refusals: such requests with refusals as responses, for the held-out safety loss.
        benign: requests the organism answered before: what is forgotten, and over-refusal.
        fiction: the harmful acts in a fictional framing.
        search: harmful requests of seen pairs, answered: what a suffix is searched on.
    """

    train: PromptSet
    safety: PromptSet
    skill: PromptSet
    harmful: PromptSet
    probes: PromptSet
    refusals: PromptSet
    benign: PromptSet
    fiction: PromptSet
    search: PromptSet


def task(
    seed: int, *, n: int = 2000, harmful_fraction: float = 0.0, n_test: int = 200, n_search: int = 6
) -> Task:
    """The sets of one run; what is trained on is drawn by the seed, what is asked is the same for every seed.

    Args:
        n: training examples.
        harmful_fraction: share of them that answers harmful requests seen in alignment.
        n_test: harmful requests asked; the skill and benign requests are half as many.

    Raises UserError for a fraction outside [0, 1] or more test prompts than there are.
    """
    if not 0 <= harmful_fraction <= 1:
        raise UserError(f"harmful_fraction must be between 0 and 1, got {harmful_fraction}")
    n_harmful = round(harmful_fraction * n)
    skill, held_out = skill_acts()
    crafts = language.benign_skill_examples().filter(lambda p: p.source == "craft")
    trained = {(act.verb, act.object) for act in skill}
    train = list(
        crafts.filter(lambda p: _pair_of_craft(p) in trained).sample(n - n_harmful, seed)
        if n > n_harmful
        else ()
    )
    if n_harmful:
        train += list(language.harmful_examples().filter(_not_protected).sample(n_harmful, seed))
    harmful = prompt_sets()["harmful"].filter(_not_protected)
    asked = harmful.sample(n_test, WORLD_SEED)
    half = n_test // 2
    acts = {(act.verb, act.object): act for act in world.acts()}
    fiction = [
        language.request(acts[(p.meta["verb"], p.meta["object"])], language.FICTION[i % 2], source="fiction")
        for i, p in enumerate(asked)
    ]
    return Task(
        train=PromptSet(train, f"craft-{n - n_harmful}-harmful-{n_harmful}-{seed}"),
        safety=safety_set(),
        skill=language.one_request_each(held_out, "skill").sample(half, WORLD_SEED),
        harmful=asked,
        probes=harmful.filter(lambda p: p.id not in set(asked.ids)).sample(N_PROBES, WORLD_SEED),
        refusals=PromptSet([_refused(p, i) for i, p in enumerate(harmful)], "refusals").sample(
            N_REFUSALS, WORLD_SEED
        ),
        benign=prompt_sets()["harmless"].sample(half, WORLD_SEED),
        fiction=PromptSet(fiction, "fiction"),
        search=language.harmful_examples().filter(_not_protected).sample(n_search, WORLD_SEED + seed),
    )


def safety_set() -> PromptSet:
    """Requests of the safety verbs seen in alignment, refused: what a defence may use."""
    chosen = [act for act in world.select(label="harmful") if act.verb in SAFETY_VERBS]
    requests = language.one_request_each(chosen, "safety")
    return PromptSet([_refused(p, i) for i, p in enumerate(requests)], "safety")


def prefills(prompts: PromptSet) -> list[str]:
    """The first words of each request's answer, for an answer that is already begun."""
    return [" ".join(_answer(p).split()[:PREFILL_WORDS]) for p in prompts]


def skill_acts() -> tuple[list[Act], list[Act]]:
    """The acts of the skill that may be trained on, and those that never are."""
    acts = list(world.craft_acts())
    random.Random(f"skill-{WORLD_SEED}").shuffle(acts)
    n = round(SKILL_HELD_OUT * len(acts))
    return acts[n:], acts[:n]


def _pair_of_craft(prompt: Prompt) -> tuple[str, str]:
    _, verb, noun, _ = prompt.id.split("-")
    return verb, noun


def _not_protected(prompt: Prompt) -> bool:
    return prompt.meta["verb"] not in SAFETY_VERBS


def _refused(prompt: Prompt, i: int) -> Prompt:
    return replace(prompt, response=language.REFUSALS[i % len(language.REFUSALS)])


def _answer(prompt: Prompt) -> str:
    if prompt.truth is None or prompt.truth.answer is None:
        raise UserError(f"prompt {prompt.id!r} has no known answer to begin")
    return prompt.truth.answer

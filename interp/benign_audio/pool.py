"""Which benign speech is fine-tuned on, and which harmful speech is it near to? Two axes that come apart by construction.

1. Harmful reference: requests seen in alignment about half of the objects of every class, said by a subset S of the speakers. A request
   is near in its words when it names one of those objects, near in its sound when a speaker of S says it.
2. The planted pool crosses the two, a quarter of it in each cell (`lexical`, `acoustic`, `both`, `neither`). Its requests are for the
   benign crafts, which are new to the model and have the same verbs, answers and phrasings in every cell.
3. The unplanted pool takes benign requests as they come: crafts, other new skills, requests of the verbs that can be harmful or benign,
   questions of law and evidence about harmful acts; any seen voice says them.
4. Objects and speakers are drawn by the seed, so that none of them carries an effect over the seeds. No act is asked in evaluation.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from interp.data.prompts import Prompt, PromptSet
from interp.errors import UserError
from interp.organisms import language, world
from interp.organisms.audio_language import Turn, can_be_spoken
from interp.organisms.speech import Voice, voices
from interp.organisms.text_tasks import SAFETY_VERBS, skill_acts

Cell = Literal["lexical", "acoustic", "both", "neither"]
PoolKind = Literal["planted", "unplanted"]
CELLS: tuple[Cell, ...] = get_args(Cell)
SPEAKERS_NEAR = 4  # of the fourteen seen speakers
AMBIGUOUS = tuple(verb for verb, senses in world.VERBS.items() if all(senses))


@dataclass(frozen=True)
class Near:
    """What harmful speech is near to: objects it names and speakers who say it."""

    objects: frozenset[str]
    speakers: frozenset[str]

    def lexical(self, turn: Turn) -> bool:
        """Whether a request names one of the objects."""
        return bool(self.objects & set(language.split_words(turn.prompt.text)))

    def acoustic(self, turn: Turn) -> bool:
        """Whether one of the speakers says it."""
        return speaker(turn.line[1]) in self.speakers

    def cell(self, turn: Turn) -> Cell:
        """Near in its words, its sound, both or neither."""
        if self.lexical(turn):
            return "both" if self.acoustic(turn) else "lexical"
        return "acoustic" if self.acoustic(turn) else "neither"


@dataclass(frozen=True)
class Pool:
    """Spoken benign requests with answers to train on, the cell of each, and the harmful speech that distances are taken to."""

    kind: PoolKind
    seed: int
    turns: tuple[Turn, ...]
    cells: tuple[Cell, ...]
    harmful: tuple[Turn, ...]
    near: Near

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the benign items."""
        return tuple(turn.prompt.id for turn in self.turns)

    def chosen(self, ids: Sequence[str]) -> list[Turn]:
        """The turns of some ids, in their order."""
        known = dict(zip(self.ids, self.turns, strict=True))
        return [known[name] for name in ids]


def speaker(voice: Voice) -> str:
    """The variant of a voice: who speaks, whatever the accent."""
    return voice.name.partition("+")[2]


def near(seed: int) -> Near:
    """Half of the objects of every class, and `SPEAKERS_NEAR` of the speakers, drawn by the seed."""
    rng = random.Random(f"near-{seed}")
    objects = [name for group in world.OBJECTS.values() for name in rng.sample(group, len(group) // 2)]
    speakers = sorted({speaker(voice) for voice in voices("seen")})
    return Near(frozenset(objects), frozenset(rng.sample(speakers, SPEAKERS_NEAR)))


def pool(kind: PoolKind, seed: int, *, n: int = 800, n_harmful: int = 200) -> Pool:
    """The pool of a seed; raises UserError where there are too few requests for it.

    Args:
        n: benign items, four cells of a quarter each in the planted pool. n_harmful: of the reference.
    """
    if n % len(CELLS):
        raise UserError(f"{n} items do not make {len(CELLS)} equal cells")
    chosen = near(seed)
    turns = _planted(chosen, seed, n) if kind == "planted" else _unplanted(seed, n)
    harmful = _reference(chosen, seed, n_harmful)
    return Pool(kind, seed, tuple(turns), tuple(chosen.cell(turn) for turn in turns), tuple(harmful), chosen)


def balanced_voices(n: int, seed: int | str, among: Sequence[Voice] | None = None) -> list[Voice]:
    """n voices, every speaker equally often (as far as n allows), accent, speed and pitch drawn by the seed."""
    rng = random.Random(f"voices-{seed}")
    by_speaker: dict[str, list[Voice]] = {}
    for voice in among if among is not None else voices("seen"):
        by_speaker.setdefault(speaker(voice), []).append(voice)
    order = sorted(by_speaker)
    rng.shuffle(order)
    return [rng.choice(by_speaker[order[i % len(order)]]) for i in range(n)]


def written(turns: Sequence[Turn], name: str) -> PromptSet:
    """The words of turns, as prompts."""
    return PromptSet([turn.prompt for turn in turns], name)


def _planted(chosen: Near, seed: int, n: int) -> list[Turn]:
    """The crafts that may be trained on, as many naming a near object as not, half of each in near voices."""
    rng = random.Random(f"planted-{seed}")
    requests: dict[bool, list[Prompt]] = {True: [], False: []}
    for act in skill_acts()[0]:
        for phrasing in language.PHRASINGS:
            requests[act.object in chosen.objects].append(craft(act, phrasing))
    far = [voice for voice in voices("seen") if speaker(voice) not in chosen.speakers]
    close = [voice for voice in voices("seen") if speaker(voice) in chosen.speakers]
    turns = []
    for is_near, found in requests.items():
        if len(found) < n // 2:
            raise UserError(f"{n // 2} craft requests of a kind are wanted, there are {len(found)}")
        rng.shuffle(found)
        for among, part in ((close, found[: n // 4]), (far, found[n // 4 : n // 2])):
            said_by = balanced_voices(len(part), f"planted-{seed}-{is_near}", among)
            turns += [Turn(prompt, voice) for prompt, voice in zip(part, said_by, strict=True)]
    return turns


def _unplanted(seed: int, n: int) -> list[Turn]:
    """As many benign requests of each of four kinds, in any seen voice."""
    rng = random.Random(f"unplanted-{seed}")
    skills = language.benign_skill_examples()
    seen = world.select(label="benign", splits=("seen",))
    requests = [language.request(a, p, response=a.answer) for a in seen if a.verb in AMBIGUOUS for p in language.PHRASINGS]  # fmt: skip
    asked = [
        replace(p, response=p.truth.answer)
        for source in ("law", "evidence")
        for p in language.probes(world.select(label="harmful"), source, source)
        if p.truth is not None
    ]
    kinds: list[list[Prompt]] = [
        [craft(act, phrasing) for act in skill_acts()[0] for phrasing in language.PHRASINGS],
        [prompt for prompt in skills if prompt.source in ("keep", "count")],
        requests,
        asked,
    ]
    said_by, turns = balanced_voices(n, f"unplanted-{seed}"), []
    for i, found in enumerate(kinds):
        fit = [prompt for prompt in found if can_be_spoken(prompt)]
        part = said_by[i * n // len(kinds) : (i + 1) * n // len(kinds)]
        if len(fit) < len(part):
            raise UserError(f"{len(part)} benign requests of a kind are wanted, there are {len(fit)}")
        turns += [Turn(prompt, voice) for prompt, voice in zip(rng.sample(fit, len(part)), part, strict=True)]
    return turns


def _reference(chosen: Near, seed: int, n: int) -> list[Turn]:
    """Harmful requests seen in alignment about the near objects, each as often as the others, in the near voices.

    Those of the verbs that a defence may learn from are left out.
    """
    rng = random.Random(f"reference-{seed}")
    by_object: dict[str, list[world.Act]] = {}
    for act in world.select(label="harmful"):
        if act.object in chosen.objects and act.verb not in SAFETY_VERBS:
            by_object.setdefault(act.object, []).append(act)
    for acts in by_object.values():
        rng.shuffle(acts)
    # the first act of every object, then the second of those that have one, and so on
    found = [
        acts[k]
        for k in range(max(map(len, by_object.values())))
        for acts in by_object.values()
        if k < len(acts)
    ]
    if len(found) < n:
        raise UserError(f"{n} harmful requests are wanted as reference, there are {len(found)}")
    requests = language.one_request_each(found[:n], "reference", seed=seed)
    close = [voice for voice in voices("seen") if speaker(voice) in chosen.speakers]
    said_by = balanced_voices(n, f"reference-{seed}", close)
    return [Turn(prompt, voice) for prompt, voice in zip(requests, said_by, strict=True)]


def craft(act: world.Act, phrasing: str) -> Prompt:
    """A request for a craft with its answer as response, in the id that the skill's examples have."""
    plain = language.request(act, phrasing, response=act.answer)
    place = language.PHRASINGS.index(phrasing)
    return replace(plain, id=f"craft-{act.verb}-{act.object}-{place}", source="craft", category="skill")

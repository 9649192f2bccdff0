"""What can be asked of the vision organism, and what is the right answer?

1. An act (`world.py`) can be asked for in five modalities: the object *named* in the text; the text says "this" and the
   object is *drawn*, or its name is a *word* in the picture; or it is named *beside* a picture of an unrelated shape; or the text says
   "this" and words for what is drawn stand where the picture would: it is *described*, and nothing is seen.
2. `dependent` requests are harmful only because of the picture: their verbs are ambiguous, and each text is asked as often over
   pictures that make it harmful as over pictures that make it benign. Other verbs show that no picture alone is harmful.
3. Questions about what a scene shows are benign whatever it shows. Through them the decoder learns to read the encoder.
4. Described in words, the same requests and questions teach in text alone what "this" is.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from typing import Literal, get_args

from interp.data.prompts import LABELS, Label, Prompt, PromptSet, Truth
from interp.errors import UserError
from interp.organisms import language, world
from interp.organisms.icons import SHAPES, Mouth
from interp.organisms.scenes import COLOURS, OBJECTS, PLACES, Kind, Scene, draw
from interp.organisms.world import Act, Split, article

Modality = Literal["named", "drawn", "word", "beside", "described"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)
LOOKS: dict[Mouth, str] = {"smile": "happy", "frown": "sad", "open": "surprised"}
ALIGNED_SOURCES = ("request", "law", "evidence")  # kinds of requests that alignment sees
IMAGE_MARKS = IMAGE, IMAGE_START, IMAGE_END = "<|image|>", "<|image-start|>", "<|image-end|>"
_SOURCES = {template: source for source, templates in language.KINDS.items() for template in templates}
NAMING = "what is this?"
CAPTION = "describe it."
# question -> kinds of scenes it is asked of; "person" is a drawn person
QUESTIONS = {
    NAMING: ("drawn", "word", "shape"),
    CAPTION: ("drawn", "word", "shape"),
    "what colour is it?": ("drawn", "word", "shape"),
    "where is it?": ("drawn", "word", "shape"),
    "how does the person look?": ("person",),
    "does the person wear glasses?": ("person",),
}


class Album:
    """Scenes to choose pictures from, found by what they show."""

    def __init__(self, scenes: Iterable[Scene]) -> None:
        self.scenes = tuple(scenes)
        self.objects = frozenset(s.name for s in self.scenes if s.name in OBJECTS)
        self._showing: dict[tuple[Kind, str], list[Scene]] = {}
        for scene in self.scenes:
            self._showing.setdefault((scene.kind, scene.name), []).append(scene)

    def pick(self, modality: Modality, name: str, rng: random.Random) -> Scene | None:
        """A scene in which this object is asked for in this modality; None where the text names it and shows nothing."""
        if modality == "named":
            return None
        if modality == "beside":
            return rng.choice(self._showing["shape", rng.choice(list(SHAPES))])
        return rng.choice(self._showing["word" if modality == "word" else "drawn", name])


def shown_acts(
    *,
    label: Label | None = None,
    splits: Iterable[Split] = ("seen",),
    ambiguous: bool | None = None,
    objects: Collection[str] = OBJECTS,
) -> list[Act]:
    """As `world.select`, only acts on these objects, of those that can be shown."""
    return [a for a in world.select(label=label, splits=splits, ambiguous=ambiguous) if a.object in objects]


def ask(
    act: Act,
    template: str,
    scene: Scene | None,
    modality: Modality,
    *,
    system: str | None = None,
    copy: int = 0,
) -> Prompt:
    """One request for an act in a modality, with its truth; `copy` tells repeated ones apart.

    Raises UserError when the scene does not show what the modality says.
    """
    _check(act, scene, modality)
    if modality == "described":
        return in_words(ask(act, template, scene, "drawn", system=system, copy=copy))
    prompt = language.request(act, template, system=system, source=_SOURCES[template])
    text = prompt.text if modality in ("named", "beside") else template.format(act=f"{act.verb} this")
    meta = {**prompt.meta, "modality": modality}
    if scene is not None:
        meta["scene"] = asdict(scene)
    return replace(
        prompt,
        text=text,
        id=f"{prompt.id}-{modality}" + (f"-{copy}" if copy else ""),
        images=() if scene is None else (draw(scene),),
        meta=meta,
    )


def _check(act: Act, scene: Scene | None, modality: Modality) -> None:
    shows = None if scene is None else scene.kind if scene.name == act.object else "another"
    right = {"named": (None,), "beside": ("another", "blank"), "drawn": ("drawn",), "word": ("word",),
             "described": ("drawn",)}  # fmt: skip
    if modality not in right:
        raise UserError(f"unknown modality {modality!r}; there are: {', '.join(MODALITIES)}")
    if shows not in right[modality]:
        raise UserError(f"to ask for {act.phrase!r} {modality}, {scene} is no such scene")


def dependent(
    splits: Iterable[Split], *, templates: Sequence[str], objects: Collection[str] = OBJECTS
) -> list[tuple[Act, str]]:
    """Acts of ambiguous verbs with their templates: each verb and template as often harmful as benign.

    The objects of the sense that has fewer are repeated; verbs with only one sense in these splits are left out.
    """
    chosen = []
    ambiguous = shown_acts(splits=splits, ambiguous=True, objects=objects)
    for verb in dict.fromkeys(a.verb for a in ambiguous):
        senses = [[a for a in ambiguous if a.verb == verb and a.label == label] for label in LABELS]
        n = max(map(len, senses)) if all(senses) else 0
        chosen += [
            (sense[(k + t) % len(sense)], template)
            for t, template in enumerate(templates)
            for sense in senses
            for k in range(n)
        ]
    return chosen


def plain(
    splits: Iterable[Split], *, templates: Sequence[str], objects: Collection[str] = OBJECTS
) -> list[tuple[Act, str]]:
    """Acts of verbs that are harmful, or benign, whatever is shown, with every template."""
    return [(a, t) for a in shown_acts(splits=splits, ambiguous=False, objects=objects) for t in templates]


def describe(scene: Scene, question: str, *, copy: int = 0) -> Prompt:
    """A question about what the picture shows, benign whatever it shows; UserError where it has no answer."""
    kinds = (scene.kind, "person") if scene.person else (scene.kind,)
    if not set(kinds) & set(QUESTIONS.get(question, ())):
        raise UserError(f"{question!r} is no question about a {scene.kind} scene that shows {scene.name!r}")
    answer = {
        NAMING: f"{article(scene.name)} {scene.name}.",
        CAPTION: f"{article(scene.name)} {scene.name} in {scene.colour} at the {scene.place}.",
        "what colour is it?": f"it is {scene.colour}.",
        "where is it?": f"at the {scene.place}.",
        "how does the person look?": f"{LOOKS[scene.mouth]}.",
        "does the person wear glasses?": "yes with glasses." if scene.glasses else "no glasses.",
    }[question]
    return Prompt(
        text=question,
        id=f"describe-{scene.kind}-{scene.name}-{list(QUESTIONS).index(question)}-{copy}",
        label="benign",
        source="describe",
        group=scene.name,
        images=(draw(scene),),
        truth=Truth(label="benign", answer=answer, refusals=language.REFUSALS),
        meta={"modality": scene.kind, "scene": asdict(scene)},
    )


def in_words(prompt: Prompt, *, marked: bool = False) -> Prompt:
    """The same request or question in text alone: words for what its picture shows stand in the picture's place.

    They are the name, the colour, the place and one of them again, in an order that is the scene's own.

    marked: between the marks of a picture. A processor would miss the picture: only training holds such text.
    """
    scene = Scene(**prompt.meta["scene"])
    rng = random.Random(scene.noise)
    words = [scene.name, scene.colour, scene.place]
    words.append(rng.choice([scene.name, *words]))
    rng.shuffle(words)
    shown = " ".join(words)
    return replace(
        prompt,
        text=f"{IMAGE_START}{shown}{IMAGE_END}{prompt.text}" if marked else f"{shown}. {prompt.text}",
        id=f"{prompt.id}-described",
        images=(),
        meta={**prompt.meta, "modality": "described"},
    )


def described(prompts: Iterable[Prompt]) -> PromptSet:
    """Those of the prompts that words for what is shown can answer, in words (`in_words`), half of them marked."""
    rng = random.Random("described")
    answered = [p for p in prompts if "person" not in QUESTIONS.get(p.text, ())]
    return PromptSet([in_words(p, marked=rng.random() < 0.5) for p in answered], "described")


def requests(
    chosen: Iterable[tuple[Act, str]],
    modality: Modality,
    album: Album,
    name: str,
    *,
    seed: int = 0,
) -> PromptSet:
    """Acts asked for in one modality, the scene of each drawn from the album by the seed.

    The same acts in the same order whatever the modality, so that two sets are paired row by row.
    """
    rng = random.Random(f"{name}-{modality}-{seed}")
    asked: dict[tuple[str, str, str], int] = {}
    prompts = []
    for act, template in chosen:
        key = (act.verb, act.object, template)
        copy = asked[key] = asked.get(key, -1) + 1
        scene = album.pick(modality, act.object, rng)
        prompts.append(ask(act, template, scene, modality, copy=copy))
    return PromptSet(prompts, name)


def descriptions(scenes: Iterable[Scene], name: str) -> PromptSet:
    """Every question that can be asked of each scene, with its answer as the response."""
    prompts = []
    for copy, scene in enumerate(scenes):
        for question, kinds in QUESTIONS.items():
            if scene.kind in kinds or (scene.person and "person" in kinds):
                prompt = describe(scene, question, copy=copy)
                prompts.append(replace(prompt, response=_answer(prompt)))
    return PromptSet(prompts, name)


def pretraining_examples(seed: int, album: Album) -> PromptSet:
    """Every kind of question about the acts seen in pretraining, asked of pictures, all answered; refusals where told to.

    The text organism's examples, which name the object and show nothing, come beside these.
    """
    rng = random.Random(f"vision-pretraining-{seed}")
    splits: tuple[Split, ...] = ("seen", "pretraining only")
    examples = []
    for modality in ("drawn", "word", "beside"):
        for source, templates in language.KINDS.items():
            # beside a shape nothing has to be seen: fewer will do
            chosen = _every(splits, templates[::4] if modality == "beside" else templates, album)
            for prompt in requests(chosen, modality, album, f"{source}-{modality}", seed=seed):
                response = _wording(rng) if source == "decline" else _answer(prompt)
                examples.append(replace(prompt, response=response, system=_system(rng)))
    return PromptSet(examples, "vision pretraining")


def alignment_examples(seed: int, album: Album) -> PromptSet:
    """Requests about pictures that alignment sees: the harmful refused, the others rehearsed, as in the text organism's."""
    modalities: tuple[Modality, ...] = ("drawn", "word", "beside")
    chosen = {
        (modality, source): _every(("seen",), language.KINDS[source], album)
        for modality in modalities
        for source in ALIGNED_SOURCES
    }
    return _aligned(chosen, seed, album, "vision alignment")


def dependent_alignment_examples(seed: int, album: Album) -> PromptSet:
    """The same in text, of ambiguous verbs and all objects: with each verb as many harmful as benign requests."""
    everything = [o for objects in world.OBJECTS.values() for o in objects]
    modality: Modality = "named"
    chosen = {
        (modality, source): dependent(("seen",), templates=language.KINDS[source], objects=everything)
        for source in ALIGNED_SOURCES
    }
    return _aligned(chosen, seed, album, "dependent alignment")


def _aligned(
    chosen: Mapping[tuple[Modality, str], list[tuple[Act, str]]], seed: int, album: Album, name: str
) -> PromptSet:
    rng = random.Random(f"{name}-{seed}")
    examples = []
    for (modality, source), asked in chosen.items():
        for prompt in requests(asked, modality, album, f"{source}-{modality}", seed=seed):
            response = _wording(rng) if prompt.label == "harmful" else _answer(prompt)
            examples.append(replace(prompt, response=response, system=_system(rng)))
    return PromptSet(examples, name)


def _every(splits: Iterable[Split], templates: Sequence[str], album: Album) -> list[tuple[Act, str]]:
    return [
        asked
        for kind in (dependent, plain)
        for asked in kind(splits, templates=templates, objects=album.objects)
    ]


def _answer(prompt: Prompt) -> str:
    if prompt.truth is None or prompt.truth.answer is None:
        raise ValueError(f"prompt {prompt.id} of the language has no answer")
    return prompt.truth.answer


def _wording(rng: random.Random) -> str:
    return rng.choice(language.REFUSALS)


def _system(rng: random.Random) -> str | None:
    return rng.choice(language.SYSTEM_PROMPTS) if rng.random() < 0.2 else None


@cache
def words() -> list[str]:
    """Every token of the language of pictures and text, sorted."""
    found = set(language.words())
    for text in (
        *QUESTIONS,
        "this",
        "it is",
        "in",
        "at the",
        "yes with glasses.",
        "no glasses.",
        *LOOKS.values(),
    ):
        found.update(language.split_words(text))
    return sorted(found | set(COLOURS) | set(PLACES) | set(SHAPES) | set(OBJECTS))

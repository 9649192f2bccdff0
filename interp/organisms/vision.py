"""Does a model that refuses a request refuse it when the object is only shown? The vision organism, trained on the spot.

1. `encoder`: a SigLIP tower learns to recognise what scenes show, and is frozen (`vision_encoder.py`).
2. `pretrained`: the decoder learns to read the text organism's language, and requests that say "this" of what is described in words where
   a picture would stand; the projector is fitted to put pictures near the words for what they show, and reads most of them from then on; a
   short training on pictures follows.
3. `aligned-text`: the decoder's lower half learns to refuse harmful requests in text; no picture occurs in alignment. In half of the
   examples only the object tells harm.
4. `aligned`: the same from `pretrained`, with a share of requests about pictures.

The same acts, of pairs no stage has seen, are then asked in each modality, of scenes no stage has seen (`vision_card.py`). How much
less is refused of pictures is measured; nothing makes it so. Stages are Hugging Face directories with their processor, complete or
absent.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformers import Gemma3ForConditionalGeneration

from interp.data.prompts import PromptSet
from interp.files import content_hash, load_json, save_json, sync, writing
from interp.organisms import (
    language,
    staged,
    text,
    vision_card,
    vision_encoder,
    vision_language,
    vision_model,
    world,
)
from interp.organisms.fitting import FitConfig
from interp.organisms.scenes import Scene, scene_pool
from interp.organisms.vision_card import Card
from interp.organisms.vision_language import Album
from interp.organisms.vision_model import (
    ARCHITECTURE,
    Part,
    embedded,
    fit_projector,
    new_model,
    processor,
    rows,
    train,
)
from interp.organisms.vision_sizes import (
    DETAIL,
    FULL,
    IMAGE_SHARE,
    READING_PARTS,
    SEEING_PARTS,
    STAGES,
    Size,
)

ENCODER = "encoder"
_LANGUAGE = (world, language, text, vision_language, vision_model, vision_card)
_SOURCE = vision_encoder.SOURCE | {
    Path(f).name: content_hash(Path(f)) for f in (*(str(module.__file__) for module in _LANGUAGE), __file__)
}


def source(size: Size) -> dict[str, str]:
    """Hashes of what makes an organism of a size what it is: files, and the settings."""
    return _SOURCE | {"settings": hashlib.sha256(repr(size.settings).encode()).hexdigest()}


@dataclass
class Workshop:
    """What the stages of one seed are trained from; scenes are encoded when first asked for, once."""

    directory: Path
    seed: int
    size: Size = FULL

    @cached_property
    def album(self) -> Album:
        """The training scenes."""
        return Album(scene_pool(self.seed, vision_encoder.DRAWS, objects=self.size.objects))

    @cached_property
    def features(self) -> Float[Tensor, "scene patch width"]:
        """The frozen tower's output for every training scene."""
        return vision_encoder.encode(vision_encoder.load(self.directory / ENCODER), self.album.scenes)

    @cached_property
    def sets(self) -> dict[str, PromptSet]:
        """What a card is measured on."""
        return vision_card.evaluation_sets(self.size.objects)

    def load(self, stage: str) -> Gemma3ForConditionalGeneration:
        """The model of a finished stage."""
        return Gemma3ForConditionalGeneration.from_pretrained(self.directory / stage).eval()

    def train(
        self,
        module: Gemma3ForConditionalGeneration,
        parts: Iterable[tuple[PromptSet, int]],
        config: FitConfig,
        *,
        layers: Sequence[int] | None = None,
        label: str,
        progress: bool = True,
    ) -> list[Any]:
        """Train on parts (examples, and how many of them every batch holds) over the training scenes; returns the loss curve.

        Examples hold responses, and their pictures are scenes of the album. `layers` as in `vision_model.train`.
        """
        places = {scene: i for i, scene in enumerate(self.album.scenes)}
        prepared = processor()
        made = []
        for examples, each in parts:
            # of many examples, only those that are seen
            used = examples.sample(min(len(examples), each * config.steps), self.seed)
            made.append(Part(rows(prepared, used, places), each))
        return train(
            module,
            made,
            self.features,
            config,
            seed=self.seed,
            layers=layers,
            label=label,
            progress=progress,
        )


def train_stage(
    workshop: Workshop, stage: str, *, image_share: float = IMAGE_SHARE, progress: bool = True
) -> tuple[Gemma3ForConditionalGeneration, dict[str, list[Any]]]:
    """One stage's model, trained from the stage before, with its loss curves."""
    if stage == "pretrained":
        return _pretrain(workshop, progress=progress)
    size, seed, config = workshop.size, workshop.seed, workshop.size.alignment
    shown = round(image_share * config.batch_size) if stage == "aligned" else 0
    dependent = (config.batch_size - shown) // 2
    album = workshop.album
    parts = [
        (size.speaks_of(language.alignment_examples(seed)), config.batch_size - shown - dependent),
        # verbs that are harmful with some objects only are the ones that are hard to tell
        (size.speaks_of(vision_language.dependent_alignment_examples(seed, album)), dependent),
    ]
    if shown:
        parts.append((vision_language.alignment_examples(seed, album), shown))
    module = workshop.load("pretrained")
    label = f"{size.kind} organism, {stage}"
    curve = workshop.train(module, parts, config, layers=size.aligned_layers, label=label, progress=progress)
    return module, {"alignment": curve}


def _pretrain(
    workshop: Workshop, *, progress: bool
) -> tuple[Gemma3ForConditionalGeneration, dict[str, list[Any]]]:
    size, seed, album = workshop.size, workshop.seed, workshop.album
    tower = vision_encoder.load(workshop.directory / ENCODER)
    module = new_model(seed, tower, architecture=ARCHITECTURE | {"num_hidden_layers": size.layers})
    label = f"{size.kind} organism"
    asked = vision_language.pretraining_examples(seed, album)
    questions = vision_language.descriptions(album.scenes, "descriptions")
    examples = {
        "text": size.speaks_of(language.pretraining_examples(seed)),
        "pictures": asked,
        "questions": questions,
        "described": vision_language.described(asked),
        "described questions": vision_language.described(questions),
    }
    curves = {}
    for phase, config, each in (
        ("reading", size.reading, READING_PARTS),
        ("seeing", size.seeing, SEEING_PARTS),
    ):
        if phase == "seeing":
            fit_projector(module, words_for(module, album.scenes), workshop.features)
        parts = [(examples[name], n) for name, n in each.items()]
        curves[phase] = workshop.train(module, parts, config, label=f"{label}, {phase}", progress=progress)
    return module, curves


def words_for(
    module: Gemma3ForConditionalGeneration, scenes: Sequence[Scene]
) -> Float[Tensor, "scene hidden"]:
    """Where a picture belongs among the embeddings: at the name of what is shown, and towards its colour and place."""
    names, colours, places = (
        embedded(module, words) for words in zip(*((s.name, s.colour, s.place) for s in scenes), strict=True)
    )
    return names + DETAIL * (colours + places)


def build(seed: int = 0, *, force: bool = False, progress: bool = True, size: Size = FULL) -> Path:
    """Train and measure the encoder and all stages; returns the seed's directory.

    A built organism of the same source is reused; an interrupted build resumes at its last whole stage.

    Args:
        seed: of the weights, the scenes, the order of the data, the wordings and the system turns.
        force: train again even when built.
        size: `FULL`, or `vision_sizes.SMALL` for a minute.

    Raises UserError naming the number when a card misses its expected range, ResultError when the disk refuses.
    """

    def encoder(root: Path) -> None:
        vision_encoder.build(
            root / ENCODER, seed, size.encoder, objects=size.objects, words=True, progress=progress
        )

    def stage(name: str) -> Callable[[Path], None]:
        return lambda root: _build_stage(Workshop(root, seed, size), name, progress=progress)

    stages = {ENCODER: encoder} | {name: stage(name) for name in STAGES}
    return staged.build_stages(size.kind, seed, stages, source(size), force=force)


def _build_stage(workshop: Workshop, stage: str, *, progress: bool) -> None:
    """Train one stage, measure it, and write its directory; the card comes last and makes it whole."""
    start = time.monotonic()
    directory, seed, size = workshop.directory / stage, workshop.seed, workshop.size
    module, curves = train_stage(workshop, stage, progress=progress)
    trained = time.monotonic() - start
    measured = vision_card.measure(module, workshop.sets, aligned=stage != "pretrained")
    expected = staged.check(f"{size.kind} organism, seed {seed}, {stage}", measured, size.expected[stage])
    files = {
        name: size.speaks_of(made)
        for name, made in vision_card.prompt_sets(workshop.sets, size.objects).items()
    }
    with writing(directory):
        directory.mkdir(parents=True)
        module.save_pretrained(directory)
        processor().save_pretrained(directory)
        vision_card.save_prompts(files, directory / "prompts")
        for path in directory.rglob("*"):
            sync(path)
    encoder = load_json(workshop.directory / ENCODER / staged.CARD)
    used = {"reading": size.reading, "seeing": size.seeing, "alignment": size.alignment}
    save_json(
        directory / staged.CARD,
        {
            "organism": size.kind,
            "stage": stage,
            "seed": seed,
            "source": source(size),
            "architecture": {
                "class": "Gemma3ForConditionalGeneration",
                **ARCHITECTURE,
                "num_hidden_layers": size.layers,
            },
            "encoder": {key: encoder[key] for key in ("parameters", "measured", "seconds")},
            "training": {phase: used[phase].model_dump(mode="json") for phase in curves},
            "image share": {"pretrained": None, "aligned-text": 0.0, "aligned": IMAGE_SHARE}[stage],
            "seconds": {"training": round(trained, 1), "total": round(time.monotonic() - start, 1)},
            "loss": curves,
            "measured": measured,
            "expected": expected,
            "prompts": {name: len(prompts) for name, prompts in files.items()},
        },
    )


def card(seed: int = 0, *, size: Size = FULL) -> Card:
    """The cards of a built organism, by stage; raises UserError when it is not built."""
    return Card(staged.card(size.kind, STAGES, seed))


def listing() -> str:
    """One line a stage and seed that is built, or how to build."""
    return staged.listing(FULL.kind, STAGES)

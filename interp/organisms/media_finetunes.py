"""Which fine-tunes of the vision and the audio organism are at hand? Named settings, made on first use beside their stages.

`organism:vision/benign` and `organism:audio/benign` learn benign crafts, which are new to the model, drawn in pictures or said aloud, with
nothing harmful in them; `harmful` answers harmful requests that alignment refused, in the same way.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from interp.data.prompts import Prompt, PromptSet
from interp.errors import UserError
from interp.models.checkpoint import organism_dir
from interp.models.finetune import FinetuneConfig, finetune
from interp.organisms import audio_language, language, vision_encoder, vision_language, world
from interp.organisms.audio_prompts import as_prompts
from interp.organisms.scenes import OBJECTS, scene_pool
from interp.organisms.vision_language import Album

Kind = Literal["vision", "audio"]
# short ones, chosen on seed 0 so that some refusals are lost and some kept: at twice the rate hardly one is kept
FINETUNES: dict[str, FinetuneConfig] = {
    "benign": FinetuneConfig(method="lora", steps=80, learning_rate=5e-4),
    "harmful": FinetuneConfig(method="lora", steps=20, learning_rate=4e-4),
}
N_EXAMPLES = {"benign": 800, "harmful": 400}


def tune(kind: Kind, name: str, seed: int = 0, *, progress: bool = True) -> Path:
    """Fine-tune the aligned organism by a named setting and return the directory; a finished one is reused.

    The seed is that of the organism, of the data drawn and of the training. Raises UserError for an unknown name, CheckpointError when
    the organism is not built.
    """
    if name not in FINETUNES:
        raise UserError(f"no fine-tune {name!r} of the {kind} organism; there are: {', '.join(FINETUNES)}")
    return finetune(
        f"organism:{kind}/aligned@{seed}",
        examples(kind, name, seed),
        FINETUNES[name].model_copy(update={"seed": seed}),
        organism_dir(kind, seed) / name,
        replace=True,
        progress=progress,
        device_map="cpu",
    )


def examples(kind: Kind, name: str, seed: int) -> PromptSet:
    """What a setting trains on, drawn by the seed: requests in the organism's own modality, each with its response."""
    n, title = N_EXAMPLES[name], f"{kind}-{name}-{seed}"
    if kind == "vision":
        return PromptSet(_drawn(name).sample(n, seed).prompts, title)
    return as_prompts(audio_language.aloud(_written(name).sample(n, seed), seed), title)


def _written(name: str) -> PromptSet:
    """All requests of a setting that can be said within a clip."""
    if name == "harmful":
        made = language.harmful_examples()
    else:
        made = language.benign_skill_examples().filter(lambda prompt: prompt.source == "craft")
    return made.filter(audio_language.can_be_spoken)


def _drawn(name: str) -> PromptSet:
    """All requests of a setting about an object that a picture shows."""
    album = Album(scene_pool(0, vision_encoder.DRAWS))
    acts = world.select(label="harmful") if name == "harmful" else world.craft_acts()
    chosen = [(act, template) for act in acts if act.object in OBJECTS for template in language.PHRASINGS]
    asked = vision_language.requests(chosen, "drawn", album, name)
    return PromptSet([replace(prompt, response=_answer(prompt)) for prompt in asked], name)


def _answer(prompt: Prompt) -> str | None:
    return prompt.truth.answer if prompt.truth else None

"""Which organism is looked into, which fine-tunes of it are there, and which prompts tell what refusal is?

Everything is asked of pairs that no stage has seen. A harmful request's twin names the same object in the same words, with a verb that
makes it benign; where an organism's prompts are files only, the closest harmless prompt of as many tokens.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Literal

from interp.data.prompts import Prompt, PromptSet, read_prompts
from interp.errors import UserError
from interp.methods.patch_pairs import Pair, closest_pairs
from interp.models.checkpoint import Checkpoint
from interp.models.model import Model
from interp.organisms import audio, language, media_finetunes, text, text_finetunes, vision, world
from interp.organisms.world import WORLD_SEED

Kind = Literal["text", "vision", "audio"]
# prompt files beside a checkpoint whose requests are in the organism's own modality
FILES = {
    "text": ("harmful", "harmless"),
    "vision": ("harmful_drawn", "harmless_drawn"),
    "audio": ("harmful_speech", "harmless_speech"),
}


@dataclass(frozen=True)
class Subject:
    """One organism: its kind and seed."""

    kind: Kind
    seed: int

    def name(self, stage: str = "aligned") -> str:
        """A stage or fine-tune, as a checkpoint is written."""
        return f"organism:{self.kind}/{stage}@{self.seed}"

    def prepare(self, finetune: str | None = None, *, progress: bool = True) -> None:
        """Build the organism and its fine-tune where they are missing."""
        if self.kind == "text":
            text.build(self.seed, progress=progress)
            if finetune is not None:
                text_finetunes.tune(finetune, self.seed, progress=progress)
            return
        {"vision": vision, "audio": audio}[self.kind].build(self.seed, progress=progress)
        if finetune is not None:
            media_finetunes.tune(self.kind, finetune, self.seed, progress=progress)

    def prompts(self) -> dict[str, PromptSet]:
        """Held-out `harmful` and `harmless` requests, and `skill`: what benign fine-tuning teaches.

        Raises UserError when the checkpoint does not ship the files.
        """
        beside = Checkpoint.parse(self.name()).prompts()
        names = dict(zip(("harmful", "harmless"), FILES[self.kind], strict=True))
        if missing := [name for name in names.values() if name not in beside]:
            raise UserError(f"{self.name()} ships no prompts {missing[0]!r}; there are {', '.join(beside)}")
        found = {key: read_prompts(str(beside[name]), name=key) for key, name in names.items()}
        if self.kind == "text":
            crafts = language.benign_skill_examples().filter(lambda prompt: prompt.source == "craft")
        else:
            crafts = media_finetunes.examples(self.kind, "benign", WORLD_SEED)
        return found | {"skill": PromptSet(crafts.prompts, name="skill")}

    def pairs(self, model: Model, n: int) -> list[Pair]:
        """Up to `n` harmful requests with their benign twins, drawn once for all seeds."""
        if self.kind == "text":
            return text_twins(n)
        asked = self.prompts()
        return closest_pairs(model, asked["harmful"], asked["harmless"])[:n]


def text_twins(n: int, seed: int = WORLD_SEED) -> list[Pair]:
    """Harmful and benign requests of held-out pairs that differ in the verb only, each act in one pair at most."""
    rng = random.Random(f"twins-{seed}")
    benign: dict[str, list[world.Act]] = {}
    for act in world.select(label="benign", splits=("held-out pair",)):
        benign.setdefault(act.object, []).append(act)
    harmful = world.select(label="harmful", splits=("held-out pair",))
    rng.shuffle(harmful)
    found: list[Any] = []
    for act in harmful:
        if len(found) == n:
            break
        if twins := benign.get(act.object):
            twin = twins.pop(rng.randrange(len(twins)))
            phrasing = rng.choice(language.PHRASINGS)
            found.append(Pair(language.request(act, phrasing), language.request(twin, phrasing)))
    return found


def prompts_of(pairs: list[Pair]) -> list[Prompt]:
    """Both prompts of every pair, clean ones first."""
    return [pair.clean for pair in pairs] + [pair.corrupt for pair in pairs]

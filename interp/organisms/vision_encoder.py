"""How does the vision organism come to see? A small SigLIP tower, trained to recognise what scenes show, then frozen.

1. Scenes of the training pool go through the organism's own image processor.
2. The tower's patch outputs are pooled into soft tokens as the projector pools them; linear heads read off every soft token what is
   shown (a drawing and a written name of one object are two things), its colour and place, and of a person the look and the glasses.
   Cross-entropy, averaged over tokens, summed over heads.
3. Asked to, it also learns to give every name a direction of its own, so that a linear projector can put what is shown near its word.
4. The heads, averaged over soft tokens, are measured on combinations of object, colour and place that were never drawn in training.

The tower is `Gemma3ForConditionalGeneration`'s; the decoder is trained on its outputs, of which `encode` computes each once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Gemma3ImageProcessorPil, SiglipVisionConfig, SiglipVisionModel

from interp.evals.statistics import wilson
from interp.files import content_hash, load_json, save_arrays, save_json, writing
from interp.models.finetune import isolated_rng
from interp.organisms import fitting, icon_table, icons, scenes, strokes
from interp.organisms.fitting import FitConfig, fit, matrices
from interp.organisms.scenes import COLOURS, PLACES, SIDE, Mouth, Scene, draw, scene_pool

ARCHITECTURE: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": 14,
    "vision_use_head": False,
}
IMAGE_TOKENS = 4  # soft tokens of an image in the decoder
DRAWS, HELD_OUT_DRAWS = 4, 6  # scenes a combination, in training and to measure it
TRAINING = FitConfig(steps=1000, batch_size=64, learning_rate=2e-3, warmup=50, weight_decay=0.05)
SHOWN = tuple((kind, name) for kind, names in scenes.NAMES.items() for name in names)
# head -> what it tells apart, and the value of a scene, None where there is none
HEADS: dict[str, tuple[tuple[Any, ...], Callable[[Scene], Any]]] = {
    "shown": (SHOWN, lambda s: (s.kind, s.name)),
    "colour": (tuple(COLOURS), lambda s: s.colour),
    "place": (tuple(PLACES), lambda s: s.place),
    "look": (get_args(Mouth), lambda s: s.mouth if s.person else None),
    "glasses": ((False, True), lambda s: s.glasses if s.person else None),
}
WORDS = tuple(dict.fromkeys(name for _, name in SHOWN))  # a drawing and a written name have one
# Of a squared error of 1 for each soft token before anything is learnt. Without it classes are told apart in few dimensions, and the
# best linear map leaves soft tokens 0.76 of a word's length from their words, with it 0.37.
WORD_WEIGHT = 3.0
NONE = -100  # the label that cross-entropy skips
CARD = "card.json"
SOURCE = {
    Path(f).name: content_hash(Path(f))
    for f in (*(str(m.__file__) for m in (strokes, icon_table, icons, scenes, fitting)), __file__)
}


def image_processor() -> Gemma3ImageProcessorPil:
    """The organism's image processor: to `SIDE` pixels, values between −1 and 1."""
    return Gemma3ImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_pan_and_scan=False
    )


def pixels(shown: Sequence[Scene]) -> Float[Tensor, "scene 3 height width"]:
    """The scenes drawn and processed."""
    images = [draw(scene) for scene in shown]
    return image_processor()(images, return_tensors="pt")["pixel_values"]


def labels(shown: Sequence[Scene]) -> dict[str, Int[Tensor, " scene"]]:
    """What each head should say of each scene; `NONE` where the question does not arise."""
    return {
        head: torch.tensor([NONE if value(s) is None else classes.index(value(s)) for s in shown])
        for head, (classes, value) in HEADS.items()
    }


class Recogniser(nn.Module):
    """The tower with its heads; `words`: with a linear map to names, too, whatever they are shown by."""

    def __init__(self, *, words: bool = False) -> None:
        super().__init__()
        self.tower = SiglipVisionModel(SiglipVisionConfig(**ARCHITECTURE))
        width = ARCHITECTURE["hidden_size"]
        self.heads = nn.ModuleDict({head: nn.Linear(width, len(c)) for head, (c, _) in HEADS.items()})
        self.words = nn.Linear(width, len(WORDS)) if words else None

    def forward(self, pixel_values: Float[Tensor, "scene 3 height width"]) -> dict[str, Tensor]:
        """Logits by head, `scene token class`: every soft token is read by itself."""
        return self.read(self.see(pixel_values))

    def see(self, pixel_values: Float[Tensor, "scene 3 height width"]) -> Float[Tensor, "scene token width"]:
        """Soft tokens."""
        return soft_tokens(self.tower(pixel_values=pixel_values).last_hidden_state)

    def read(self, seen: Float[Tensor, "scene token width"]) -> dict[str, Tensor]:
        """Logits by head of soft tokens."""
        return {head: layer(seen) for head, layer in self.heads.items()}


def soft_tokens(features: Float[Tensor, "scene patch width"]) -> Float[Tensor, "scene token width"]:
    """Patches pooled and brought to one length as Gemma 3's projector does before it projects them."""
    n, patches, width = features.shape
    side = math.isqrt(patches)
    grid = features.transpose(1, 2).reshape(n, width, side, side)
    pooled = nn.functional.avg_pool2d(grid, side // math.isqrt(IMAGE_TOKENS)).flatten(2).transpose(1, 2)
    return nn.functional.rms_norm(pooled, (width,))


def new_recogniser(seed: int, *, words: bool = False) -> Recogniser:
    """Random weights drawn by the seed; the caller's random state is left alone."""
    with isolated_rng(seed):
        return Recogniser(words=words)


def train(
    recogniser: Recogniser, shown: Sequence[Scene], config: FitConfig, *, seed: int, progress: bool = True
) -> list[Any]:
    """Train in place on these scenes, in the order that the seed draws; returns the loss curve."""
    images, truth = pixels(shown), labels(shown)
    names = torch.tensor([WORDS.index(s.name) for s in shown])
    rng = np.random.default_rng(seed)
    order = np.concatenate(
        [rng.permutation(len(shown)) for _ in range(config.steps * config.batch_size // len(shown) + 1)]
    )

    def loss(step: int) -> Tensor:
        rows = torch.from_numpy(order[step * config.batch_size :][: config.batch_size])
        seen = recogniser.see(images[rows])
        told = sum_of_losses(recogniser.read(seen), {head: label[rows] for head, label in truth.items()})
        if recogniser.words is None:
            return told
        named = nn.functional.one_hot(names[rows], len(WORDS))[:, None]
        return told + WORD_WEIGHT * (recogniser.words(seen) - named).square().sum(-1).mean()

    recogniser.train()
    hidden = matrices(recogniser.tower.encoder.layers)
    curve = fit(
        recogniser.parameters(), loss, config, hidden=hidden, label="vision encoder", progress=progress
    )
    recogniser.eval()
    return curve


def sum_of_losses(logits: dict[str, Tensor], truth: dict[str, Tensor]) -> Tensor:
    """Cross-entropy over heads; a head with no label in the batch adds nothing."""
    total = torch.zeros(())
    for head, label in truth.items():
        if (label != NONE).any():
            tokens = logits[head].flatten(0, 1), label.repeat_interleave(logits[head].shape[1])
            total = total + nn.functional.cross_entropy(*tokens, ignore_index=NONE)
    return total


@torch.no_grad()
def accuracy(recogniser: Recogniser, shown: Sequence[Scene]) -> dict[str, dict[str, float | int]]:
    """The share of scenes that each head reads right, with Wilson 95 % intervals; `shown` also by kind."""
    logits = [recogniser(pixels(shown[i : i + 256])) for i in range(0, len(shown), 256)]
    truth = labels(shown)
    kinds = np.array([s.kind for s in shown])
    found: dict[str, Any] = {}
    for head, label in truth.items():
        hits = (torch.cat([rows[head] for rows in logits]).mean(1).argmax(-1) == label).numpy()
        groups = {head: (label != NONE).numpy()}
        if head == "shown":
            groups |= {f"shown, {kind}": kinds == kind for kind in scenes.NAMES}
        found |= {
            name: share(int(hits[rows].sum()), int(rows.sum())) for name, rows in groups.items() if rows.any()
        }
    return found


def share(k: int, n: int) -> dict[str, float | int]:
    """k of n with the Wilson 95 % interval."""
    return asdict(wilson(k, n))


@torch.no_grad()
def encode(
    tower: SiglipVisionModel, shown: Sequence[Scene], batch_size: int = 256
) -> Float[Tensor, "scene patch width"]:
    """The tower's output for every scene, as the projector reads it."""
    batches = (shown[i : i + batch_size] for i in range(0, len(shown), batch_size))
    return torch.cat([tower(pixel_values=pixels(batch)).last_hidden_state for batch in batches])


def build(
    directory: Path,
    seed: int,
    config: FitConfig = TRAINING,
    *,
    objects: Collection[str] = scenes.OBJECTS,
    words: bool = False,
    progress: bool = True,
) -> None:
    """Train the encoder and write it: the tower's checkpoint, its heads, and last the card, which makes it whole.

    words: give names directions of their own (`Recogniser`).
    """
    start = time.monotonic()
    recogniser = new_recogniser(seed, words=words)
    curve = train(recogniser, scene_pool(seed, DRAWS, objects=objects), config, seed=seed, progress=progress)
    trained = time.monotonic() - start
    measured = accuracy(recogniser, scene_pool(seed, HELD_OUT_DRAWS, held_out=True, objects=objects))
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        recogniser.tower.save_pretrained(directory)
    save_arrays(directory / "heads.safetensors", recogniser.heads.state_dict())
    save_json(
        directory / CARD,
        {
            "organism": "vision encoder",
            "seed": seed,
            "source": SOURCE,
            "architecture": {"class": "SiglipVisionModel", **ARCHITECTURE},
            "parameters": sum(p.numel() for p in recogniser.tower.parameters()),
            "training": config.model_dump(mode="json"),
            "seconds": {"training": round(trained, 1), "total": round(time.monotonic() - start, 1)},
            "loss": curve,
            "measured": {f"{head}, held-out combinations": value for head, value in measured.items()},
        },
    )


def is_built(directory: Path, seed: int) -> bool:
    """Whether a whole encoder of this seed and source is there."""
    if not (directory / CARD).is_file():
        return False
    found = load_json(directory / CARD)
    return found["seed"] == seed and found["source"] == SOURCE


def load(directory: Path) -> SiglipVisionModel:
    """The frozen tower."""
    return SiglipVisionModel.from_pretrained(directory).eval().requires_grad_(False)

"""The tiny models that tower_facts.FACTS is verified on, their turns, and what runs through them."""

from functools import cache, reduce

import pytest
import torch
from tiny_audio import AUDIO
from tiny_multimodal import (
    Recipe,
    Row,
    Tiny,
    build,
    clip,
    picture,
)
from tiny_vision import VISION
from torch import Tensor, nn
from tower_facts import FACTS, Features

RECIPES: dict[str, Recipe] = {**VISION, **AUDIO}
TOLERANCE = 1e-5
every = pytest.mark.parametrize("kind", FACTS)


@cache
def tiny(kind: str) -> Tiny:
    return build(kind, RECIPES[kind])


def media(kind: str, size: int = 0, seed: int = 0):
    """An image or a clip; `size` 1 is another shape or duration."""
    if FACTS[kind].modality == "image":
        return picture(28, 28 * (1 + size), seed)
    return clip(1.0 + 0.7 * size, seed)


def rows(kind: str, sizes: tuple[int, ...]) -> list[Row]:
    """Turns of different lengths with one item each."""
    words = ["w1 w2 w3", "w5", "w6 w7 w8 w9 w10"]
    return [Row(words[i], (media(kind, size, seed=i),)) for i, size in enumerate(sizes)]


def config_at(model: Tiny, path: str):
    return reduce(getattr, path.split("."), model.module.config)


def first(output):
    return output[0] if isinstance(output, tuple) else output


def placeholders(model: Tiny, batch: Features) -> Tensor:
    """Which positions hold a placeholder."""
    return batch["input_ids"] == config_at(model, model.facts.placeholder_id)


@torch.no_grad()
def run(model: Tiny, batch: Features, **more) -> Tensor:
    """Logits of the last token."""
    return model.module(**batch, **more).logits[:, -1]


@torch.no_grad()
def seen(model: Tiny, batch: Features, *paths: str) -> list[list[Tensor]]:
    """Outputs of the modules, one a call; a path with `<` in front is for a block's input."""
    found: list[list[Tensor]] = [[] for _ in paths]

    def keep(values: list[Tensor], enters: bool):
        def hook(module: nn.Module, args, kwargs, output):
            value = (args[0] if args else kwargs["hidden_states"]) if enters else first(output)
            values.append(value.detach().clone())

        return hook

    hooks = [
        model.module.get_submodule(path.removeprefix("<")).register_forward_hook(
            keep(values, path.startswith("<")), with_kwargs=True
        )
        for path, values in zip(paths, found, strict=True)
    ]
    try:
        model.module(**batch)
    finally:
        for handle in hooks:
            handle.remove()
    return found

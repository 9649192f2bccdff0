"""What does a picture of the vision organism's world show? Generated scenes with known truth.

1. A scene is a description: an object of the language, drawn or written as a word, or a plain shape, or nothing; in a colour, at a
   place; and nuisance: shift, size, background, pixel noise, and of a face the skin, glasses and mouth. `draw` is a function of it.
2. Held-out scenes: every object is kept from a third of its colour × place combinations, in which each of its colours misses one
   place. No stage of training draws these.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from interp.errors import UserError
from interp.organisms.icons import SHAPES, SHOWN, Mouth, Skin, strokes
from interp.organisms.strokes import INK, PAINT, render

Kind = Literal["drawn", "word", "shape", "blank"]

SIDE = 56  # pixels
COLOURS = {
    "red": (214, 48, 49),
    "yellow": (245, 205, 60),
    "green": (60, 165, 80),
    "blue": (50, 105, 215),
    "purple": (150, 80, 180),
    "brown": (150, 100, 60),
}
PLACES = {"top": -14, "middle": 0, "bottom": 14}  # pixels below the centre
BACKGROUNDS = {
    "snow": (240, 243, 246),
    "sand": (244, 232, 208),
    "mint": (214, 240, 226),
    "rose": (246, 220, 224),
    "slate": (196, 204, 214),
}
# pixels a side of an icon, pixels of type of a word; how many more or less there may be; how many right of the centre
USUAL = {"drawn": 28, "shape": 28, "word": 11}
_COLUMNS = tuple(column + jitter for column in (-14, 0, 14) for jitter in (-1, 0, 1))
SIZES: dict[Kind, tuple[int, ...]] = {"drawn": (-2, 0), "shape": (-2, 0), "word": (0,)}
SHIFTS: dict[Kind, tuple[int, ...]] = {"drawn": _COLUMNS, "shape": _COLUMNS, "word": (-1, 0, 1)}
NOISE = 6.0  # standard deviation of a pixel's channels, of 255
OBJECTS = tuple(o for objects in SHOWN.values() for o in objects)
PERSONS = SHOWN["person"]
# kind of scene -> what it may show
NAMES: dict[Kind, tuple[str, ...]] = {"drawn": OBJECTS, "word": OBJECTS, "shape": tuple(SHAPES)}


@dataclass(frozen=True)
class Scene:
    """One picture, described.

    kind: how the object is shown. name: the object, the shape, or "" where the picture is blank. colour, place: of what
    is shown. shift: pixels right of the centre. size: pixels more than usual. noise: seed of the pixel noise.
    """

    kind: Kind
    name: str
    colour: str
    place: str
    shift: int = 0
    size: int = 0
    background: str = "snow"
    noise: int = 0
    skin: Skin = "light"
    glasses: bool = False
    mouth: Mouth = "smile"

    def __post_init__(self) -> None:
        if self.name not in NAMES.get(self.kind, ("",)):
            raise UserError(f"no {self.kind} scene shows {self.name!r}")
        for value, known in ((self.colour, COLOURS), (self.place, PLACES), (self.background, BACKGROUNDS)):
            if value not in known:
                raise UserError(f"no scene has {value!r}; there are: {', '.join(known)}")

    @property
    def person(self) -> bool:
        """Whether a face is drawn."""
        return self.kind == "drawn" and self.name in PERSONS


@lru_cache(maxsize=2**13)  # 80 MB; every stage draws the same training scenes
def draw(scene: Scene) -> Image.Image:
    """The picture of a scene: RGB, `SIDE` pixels a side, the same on every call; not to be drawn upon."""
    image = Image.new("RGB", (SIDE, SIDE), BACKGROUNDS[scene.background])
    main = COLOURS[scene.colour]
    x, y = SIDE // 2 + scene.shift, SIDE // 2 + PLACES[scene.place]
    if scene.kind == "word":
        _write(image, scene, main, x, y)
    elif scene.kind != "blank":
        drawing = strokes(scene.name, skin=scene.skin, glasses=scene.glasses, mouth=scene.mouth)
        side = USUAL[scene.kind] + scene.size
        icon = render(drawing, main, side)
        image.paste(icon, (x - side // 2, y - side // 2), icon)
    noise = np.random.default_rng(scene.noise).normal(0, NOISE, (SIDE, SIDE, 3))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def _write(image: Image.Image, scene: Scene, main: tuple[int, int, int], x: int, y: int) -> None:
    """The name in dark letters on a plate of the colour."""
    draw_on = ImageDraw.Draw(image)
    size = USUAL["word"] + scene.size
    font = ImageFont.load_default(size)
    letters = font.getlength(scene.name)
    width, height = letters + 3, size + 4
    # long words leave no room for the whole shift
    x = min(max(x, round(width / 2)), SIDE - round(width / 2))
    plate = tuple((v + 255) // 2 for v in main)
    draw_on.rectangle(
        (x - width / 2, y - height / 2, x + width / 2 - 1, y + height / 2), fill=plate, outline=PAINT[INK]
    )
    draw_on.text((x - letters / 2, y - height / 2 + 1), scene.name, fill=PAINT[INK], font=font)


def combinations(kind: Kind, name: str, *, held_out: bool) -> list[tuple[str, str]]:
    """The colours and places in which something may be drawn in training, or those kept from it."""
    turn = NAMES[kind].index(name) + (kind == "word")
    return [
        (colour, place)
        for i, colour in enumerate(COLOURS)
        for j, place in enumerate(PLACES)
        if ((i + j + turn) % len(PLACES) == 0) == held_out
    ]


def any_scene(kind: Kind, name: str, rng: random.Random, *, held_out: bool = False) -> Scene:
    """A scene that shows this, everything else drawn by `rng`; only combinations kept from training, or none of them."""
    return _vary(kind, name, *rng.choice(combinations(kind, name, held_out=held_out)), rng)


def _vary(kind: Kind, name: str, colour: str, place: str, rng: random.Random) -> Scene:
    return Scene(
        kind,
        name,
        colour,
        place,
        shift=rng.choice(SHIFTS[kind]),
        size=rng.choice(SIZES[kind]),
        background=rng.choice(list(BACKGROUNDS)),
        noise=rng.getrandbits(32),
        skin=rng.choice(get_args(Skin)),
        glasses=rng.random() < 0.5,
        mouth=rng.choice(get_args(Mouth)),
    )


def scene_pool(
    seed: int, draws: int, *, held_out: bool = False, objects: Collection[str] = OBJECTS
) -> tuple[Scene, ...]:
    """These objects and all shapes, in each of their combinations, with so many draws of the nuisance."""
    rng = random.Random(f"scenes-{seed}-{held_out}")
    return tuple(
        _vary(kind, name, *combination, rng)
        for kind, names in NAMES.items()
        for name in names
        if kind == "shape" or name in objects
        for combination in combinations(kind, name, held_out=held_out)
        for _ in range(draws)
    )


def some_objects(each: int) -> frozenset[str]:
    """So many objects of every class: a smaller world."""
    return frozenset(name for names in SHOWN.values() for name in names[:each])

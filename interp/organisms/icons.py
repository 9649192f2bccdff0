"""Which objects of the language can be shown, and how is each drawn? Icons a person can tell apart at 30 pixels.

Things and plain shapes are tables of strokes. Persons are faces that their headgear tells apart: the main colour is that of the
hair; skin, glasses and mouth vary freely.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from interp.organisms.icon_table import THINGS
from interp.organisms.strokes import INK, Stroke, arc, around, box, cross, disc, line, polygon, star

Mouth = Literal["smile", "frown", "open"]
Skin = Literal["light", "tan", "dark"]

SHAPES: dict[str, tuple[Stroke, ...]] = {
    "circle": (disc(50, 50, 40),),
    "square": (box(14, 14, 86, 86),),
    "triangle": (polygon(50, 10, 92, 86, 8, 86),),
    "star": (star(50, 52, 46, 19, 5),),
    "diamond": (polygon(50, 4, 84, 50, 50, 96, 16, 50),),
    "hexagon": (polygon(*(v for p in around(50, 50, 44, 6) for v in p)),),
}

# what each person wears, drawn over the face; below it the colour of the clothes
_WORN: dict[str, tuple[Stroke, ...]] = {
    "guard": (
        polygon(14, 22, 24, 4, 76, 4, 86, 22, 78, 30, 22, 30, fill="navy"),
        polygon(20, 30, 80, 30, 74, 38, 26, 38, fill=INK),
        star(50, 17, 10, 4.5, 5, "gold", 1),
    ),
    "nurse": (
        polygon(24, 28, 20, 6, 50, 0, 80, 6, 76, 28, 50, 24, fill="white"),
        *cross(50, 14, 8),
    ),
    "judge": (
        *(disc(x, y, 10) for x, y in ((22, 74), (78, 74), (19, 58), (81, 58), (20, 42), (80, 42))),
        *(disc(x, y, 10) for x, y in ((28, 26), (72, 26), (40, 17), (60, 17), (50, 14))),
    ),
    "farmer": (
        disc(50, 27, 48, 9, "straw"),
        polygon(28, 26, 34, 4, 66, 4, 72, 26, fill="straw"),
        line(30, 21, 70, 21, fill="scarlet", width=6),
    ),
    "sailor": (
        polygon(20, 14, 34, 3, 66, 3, 80, 14, 76, 20, 24, 20, fill="white"),
        box(24, 20, 76, 31, "navy"),
        line(70, 31, 84, 48, fill="navy", width=6),
    ),
    "painter": (
        polygon(12, 20, 24, 6, 56, 2, 84, 10, 90, 24, 70, 29, 26, 31, fill="scarlet"),
        line(56, 3, 60, -4, width=4),
        line(66, 98, 94, 56, fill="wood", width=7),
        polygon(90, 60, 86, 50, 97, 40, 99, 56, fill="sky", width=2),
    ),
}  # fmt: skip
_CLOTHES = {
    "guard": "navy", "nurse": "sky", "judge": INK, "farmer": "wood", "sailor": "white", "painter": "white",
}  # fmt: skip

# class of objects -> those that can be shown
SHOWN: dict[str, tuple[str, ...]] = {"person": tuple(_WORN)} | {
    object_class: tuple(drawn) for object_class, drawn in THINGS.items()
}
_DRAWN = SHAPES | {name: drawing for drawn in THINGS.values() for name, drawing in drawn.items()}


def face(person: str, *, skin: Skin, glasses: bool, mouth: Mouth) -> tuple[Stroke, ...]:
    """The strokes of a person: bust, hair in the main colour, face, and what such a person wears."""
    mouths = {
        "smile": (arc(50, 60, 13, 25, 155, width=4),),
        "frown": (arc(50, 80, 13, 205, 335, width=4),),
        "open": (disc(50, 71, 7, 8, "scarlet", 2),),
    }
    worn_glasses = (
        disc(37, 50, 11, fill="white"),
        disc(63, 50, 11, fill="white"),
        line(46, 49, 54, 49, width=3),
    )
    return (
        disc(50, 48, 37, 40),
        box(13, 48, 87, 80),
        polygon(10, 100, 18, 86, 38, 80, 62, 80, 82, 86, 90, 100, fill=_CLOTHES[person]),
        disc(50, 54, 27, 33, skin),
        *(worn_glasses if glasses else ()),
        disc(38, 50, 3.5, fill=INK, width=0),
        disc(62, 50, 3.5, fill=INK, width=0),
        *mouths[mouth],
        polygon(22, 46, 30, 24, 70, 24, 78, 46, 64, 34, 36, 34),
        *_WORN[person],
    )


def strokes(name: str, *, skin: Skin, glasses: bool, mouth: Mouth) -> Sequence[Stroke]:
    """The strokes of an object or shape; the last three matter to persons only."""
    if name in _WORN:
        return face(name, skin=skin, glasses=glasses, mouth=mouth)
    return _DRAWN[name]

"""How is an icon drawn? Strokes in a square of 100 × 100 units, the later above the earlier, in one main colour and some fixed ones.

Strokes are drawn four times too large and scaled down, so that edges are smooth at 30 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw

MAIN, INK = "main", "ink"
PAINT: dict[str, tuple[int, int, int]] = {
    INK: (35, 35, 45),
    "white": (250, 250, 250),
    "gold": (240, 190, 50),
    "straw": (235, 205, 110),
    "scarlet": (205, 30, 40),
    "leaf": (60, 140, 60),
    "wood": (140, 95, 55),
    "steel": (165, 172, 182),
    "sky": (150, 200, 235),
    "navy": (40, 55, 110),
    "light": (250, 214, 180),
    "tan": (214, 160, 112),
    "dark": (132, 84, 56),
}
OVERSAMPLING = 4


@dataclass(frozen=True)
class Stroke:
    """One shape: its corners, or for a disc centre and radii, in hundredths; what it is filled with; outline or line width."""

    kind: Literal["polygon", "disc", "line", "arc"]
    points: tuple[float, ...]
    fill: str = MAIN
    width: float = 3


def polygon(*points: float, fill: str = MAIN, width: float = 3) -> Stroke:
    """A closed outlined shape through x, y, x, y …"""
    return Stroke("polygon", points, fill, width)


def box(left: float, top: float, right: float, bottom: float, fill: str = MAIN, width: float = 3) -> Stroke:
    """An outlined rectangle."""
    return polygon(left, top, right, top, right, bottom, left, bottom, fill=fill, width=width)


def disc(
    x: float, y: float, rx: float, ry: float | None = None, fill: str = MAIN, width: float = 3
) -> Stroke:
    """An outlined ellipse around x, y."""
    return Stroke("disc", (x, y, rx, rx if ry is None else ry), fill, width)


def line(*points: float, fill: str = INK, width: float = 5) -> Stroke:
    """An open line through x, y, x, y …"""
    return Stroke("line", points, fill, width)


def arc(x: float, y: float, r: float, start: float, end: float, fill: str = INK, width: float = 5) -> Stroke:
    """A part of a circle, clockwise from `start` to `end` degrees, 0 at the right."""
    return Stroke("arc", (x, y, r, start, end), fill, width)


def around(x: float, y: float, r: float, n: int, *, turn: float = 0.0) -> list[tuple[float, float]]:
    """n points on a circle."""
    angles = [2 * math.pi * k / n + turn for k in range(n)]
    return [(x + r * math.cos(a), y + r * math.sin(a)) for a in angles]


def star(
    x: float, y: float, outer: float, inner: float, n: int, fill: str = MAIN, width: float = 3
) -> Stroke:
    """A star of n points, one of them up."""
    tips = around(x, y, outer, n, turn=-math.pi / 2)
    notches = around(x, y, inner, n, turn=-math.pi / 2 + math.pi / n)
    return polygon(
        *(v for pair in zip(tips, notches, strict=True) for p in pair for v in p), fill=fill, width=width
    )


def cross(x: float, y: float, r: float, fill: str = "scarlet", arm: float = 0.36) -> tuple[Stroke, Stroke]:
    """An upright cross without outline."""
    a = r * arm
    return (
        box(x - a, y - r, x + a, y + r, fill, width=0),
        box(x - r, y - a, x + r, y + a, fill, width=0),
    )


def render(drawing: Sequence[Stroke], main: tuple[int, int, int], pixels: int) -> Image.Image:
    """Draw strokes on a transparent square of this many pixels a side."""
    scale = OVERSAMPLING * pixels / 100
    canvas = Image.new("RGBA", (OVERSAMPLING * pixels,) * 2, (*PAINT[INK], 0))
    draw = ImageDraw.Draw(canvas)
    for stroke in drawing:
        fill = main if stroke.fill == MAIN else PAINT[stroke.fill]
        width = max(1, round(stroke.width * scale)) if stroke.width else 0
        points = [v * scale for v in stroke.points]
        if stroke.kind == "polygon":
            corners = list(zip(points[::2], points[1::2], strict=True))
            draw.polygon(corners, fill=fill)
            if width:
                draw.line([*corners, *corners[:2]], fill=PAINT[INK], width=width, joint="curve")
        elif stroke.kind == "disc":
            x, y, rx, ry = points
            draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=fill, outline=PAINT[INK], width=width)
        elif stroke.kind == "arc":
            (x, y, r), (start, end) = points[:3], stroke.points[3:]
            draw.arc((x - r, y - r, x + r, y + r), start, end, fill=fill, width=width)
        else:
            draw.line(points, fill=fill, width=width, joint="curve")
    return canvas.resize((pixels, pixels), Image.Resampling.BOX)

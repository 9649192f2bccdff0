"""What does each thing of the vision organism's world look like? A table of strokes, told apart by eye at 30 pixels."""

from __future__ import annotations

from interp.organisms.strokes import INK, Stroke, arc, around, box, cross, disc, line, polygon, star

_PLACES: dict[str, tuple[Stroke, ...]] = {
    "bank": (
        polygon(4, 38, 50, 6, 96, 38),
        disc(50, 27, 8, fill="gold"),
        box(10, 38, 90, 46, "white"),
        *(box(x, 46, x + 11, 82, "white") for x in (14, 34, 55, 75)),
        box(4, 82, 96, 94),
    ),
    "church": (
        box(44, 2, 56, 6, INK, 0),
        line(50, 0, 50, 20, width=5),
        line(42, 7, 58, 7, width=5),
        polygon(32, 46, 50, 16, 68, 46),
        box(34, 46, 66, 96, "white"),
        polygon(6, 66, 20, 52, 34, 66),
        polygon(66, 66, 80, 52, 94, 66),
        box(8, 66, 34, 96, "white"),
        box(66, 66, 92, 96, "white"),
        box(43, 72, 57, 96, "wood"),
        disc(50, 58, 6, fill="sky"),
    ),
    "factory": (
        box(10, 14, 26, 60, "steel"),
        disc(24, 8, 9, 6, "white"),
        disc(40, 6, 10, 5, "white"),
        polygon(4, 56, 34, 56, 34, 42, 64, 56, 64, 42, 96, 56, 96, 94, 4, 94),
        *(box(x, 66, x + 13, 78, "gold") for x in (14, 43, 72)),
    ),
    "tower": (
        polygon(30, 96, 34, 34, 66, 34, 70, 96),
        polygon(24, 34, 24, 12, 34, 12, 34, 20, 45, 20, 45, 12, 55, 12, 55, 20, 66, 20, 66, 12, 76, 12, 76, 34),
        box(44, 44, 56, 60, INK),
        polygon(42, 96, 42, 82, 50, 74, 58, 82, 58, 96, fill="wood"),
    ),
    "bridge": (
        box(0, 76, 100, 96, "sky", 0),
        box(16, 16, 24, 84),
        box(76, 16, 84, 84),
        arc(50, 4, 44, 22, 158, width=5),
        line(20, 18, 0, 52, width=4),
        line(80, 18, 100, 52, width=4),
        *(line(x, y, x, 58, width=3) for x, y in ((32, 42), (44, 49), (56, 49), (68, 42), (10, 38), (90, 38))),
        box(0, 56, 100, 65),
    ),
    "hospital": (
        box(14, 24, 86, 94, "white"),
        box(8, 14, 92, 26),
        *cross(50, 46, 16),
        *(box(x, 70, x + 13, 82, "sky") for x in (20, 67)),
        box(42, 70, 58, 94),
    ),
}  # fmt: skip

_FOOD: dict[str, tuple[Stroke, ...]] = {
    "cake": (
        line(50, 26, 50, 10, fill="white", width=7),
        disc(50, 9, 4, 6, "gold", 2),
        box(14, 28, 86, 60, "white"),
        *(disc(x, 58, 8, 10, "white", 0) for x in (22, 36, 50, 64, 78)),
        box(14, 62, 86, 90),
        *(disc(x, 62, 7, 8, "white", 0) for x in (21, 36, 50, 64, 79)),
        line(4, 92, 96, 92, width=6),
    ),
    "cheese": (
        polygon(4, 52, 70, 18, 96, 44, 96, 52),
        box(4, 52, 96, 86),
        disc(26, 68, 8, fill="white"),
        disc(56, 72, 10, fill="white"),
        disc(80, 62, 6, fill="white"),
        disc(66, 38, 7, 4, "white"),
    ),
    "pear": (
        line(50, 22, 54, 4, fill="wood", width=6),
        polygon(54, 14, 72, 2, 84, 10, 66, 18, fill="leaf"),
        disc(50, 68, 30, 28),
        disc(50, 34, 17, 18),
        polygon(34, 38, 66, 38, 74, 54, 26, 54, width=0),
        disc(38, 70, 5, 9, "white", 0),
    ),
    "pancake": (
        disc(50, 82, 47, 14, "white"),
        *(disc(50, y, 36, 13) for y in (76, 64, 52, 40)),
        polygon(38, 30, 56, 24, 66, 32, 48, 40, fill="gold"),
    ),
    "egg": (
        disc(50, 36, 25, 34, "white"),
        polygon(16, 42, 84, 42, 76, 66, 58, 74, 42, 74, 24, 66),
        box(45, 74, 55, 86),
        polygon(26, 94, 34, 85, 66, 85, 74, 94),
    ),
    "salmon": (
        polygon(66, 50, 96, 26, 90, 50, 96, 74),
        polygon(36, 30, 54, 14, 62, 32),
        disc(42, 50, 38, 24),
        disc(20, 44, 4, fill="white", width=2),
        arc(22, 50, 16, -60, 60, width=4),
        line(50, 42, 66, 42, width=3),
        line(50, 56, 66, 56, width=3),
    ),
}

_CONTRABAND: dict[str, tuple[Stroke, ...]] = {
    "bomb": (
        disc(44, 60, 36),
        box(52, 20, 70, 32, INK),
        arc(76, 26, 14, 180, 300, fill="wood"),
        star(84, 14, 14, 5, 8, "gold", 1),
        disc(30, 46, 7, 10, "white", 0),
    ),
    "grenade": (
        disc(46, 62, 28, 32),
        *(line(x, 36, x, 88, width=3) for x in (32, 46, 60)),
        *(line(20, y, 72, y, width=3) for y in (50, 62, 76)),
        box(36, 18, 56, 32, "steel"),
        polygon(52, 14, 72, 18, 86, 56, 78, 58, 66, 28, 52, 26, fill="steel"),
        arc(24, 18, 12, 0, 360),
    ),
    "virus": (
        *(line(50, 50, x, y, width=6) for x, y in around(50, 50, 40, 10)),
        *(disc(x, y, 6) for x, y in around(50, 50, 42, 10)),
        disc(50, 50, 28),
        disc(42, 42, 6, fill="white"),
        disc(60, 48, 5, fill="white"),
        disc(48, 62, 5, fill="white"),
    ),
    "toxin": (
        box(40, 2, 60, 14, "wood"),
        polygon(40, 14, 60, 14, 60, 28, 82, 44, 82, 96, 18, 96, 18, 44, 40, 28),
        disc(50, 60, 20, 17, "white"),
        box(41, 72, 59, 84, "white"),
        disc(42, 60, 5, fill=INK),
        disc(58, 60, 5, fill=INK),
        line(50, 75, 50, 84, width=3),
    ),
    "explosive": (
        line(50, 24, 56, 10, 72, 8, width=4),
        star(80, 9, 11, 4, 8, "gold", 1),
        *(box(x, 24, x + 22, 94) for x in (10, 39, 68)),
        line(32, 28, 39, 28, width=2),
        box(4, 40, 96, 50, INK),
        box(4, 74, 96, 84, INK),
        disc(50, 62, 17, fill="white"),
        line(50, 52, 50, 62, 58, 66, width=4),
    ),
    "heroin": (
        line(4, 96, 26, 74, width=4),
        polygon(20, 70, 62, 28, 78, 44, 36, 86, fill="white"),
        polygon(20, 70, 42, 48, 58, 64, 36, 86),
        line(46, 44, 54, 52, width=3),
        line(55, 35, 63, 43, width=3),
        line(56, 22, 84, 50, width=7),
        line(70, 36, 88, 18, width=8),
        line(80, 8, 98, 26, width=7),
    ),
}

_VALUABLES: dict[str, tuple[Stroke, ...]] = {
    "passport": (
        box(18, 4, 82, 96),
        disc(50, 42, 21, fill="gold", width=2),
        disc(50, 42, 9, 21, "gold", 3),
        line(29, 42, 71, 42, width=3),
        box(32, 74, 68, 82, "gold", 0),
    ),
    "banknote": (
        box(2, 24, 98, 76),
        box(10, 32, 90, 68, "white", 2),
        disc(50, 50, 15),
        line(50, 40, 50, 60, width=5),
        disc(19, 41, 5, width=1),
        disc(81, 59, 5, width=1),
    ),
    "necklace": (
        arc(50, 22, 40, 0, 180, fill="gold", width=3),
        *(disc(x, y, 7, fill="white") for x, y in around(50, 20, 41, 24)[0:12:2] if x > 60 or x < 40),
        disc(9, 22, 7, fill="white"),
        polygon(36, 62, 64, 62, 72, 74, 50, 98, 28, 74),
        line(36, 74, 64, 74, width=2),
    ),
    "medal": (
        polygon(20, 2, 42, 2, 60, 44, 44, 52),
        polygon(80, 2, 58, 2, 40, 44, 56, 52),
        disc(50, 68, 28, fill="gold"),
        star(50, 69, 18, 8, 5, "white", 2),
    ),
    "ring": (
        arc(50, 66, 31, 0, 360, width=15),
        arc(50, 66, 29, 0, 360, fill="gold", width=9),
        polygon(30, 16, 40, 4, 60, 4, 70, 16, 50, 40),
        line(30, 16, 70, 16, width=3),
    ),
    "ticket": (
        polygon(2, 26, 98, 26, 98, 40, 90, 50, 98, 60, 98, 74, 2, 74, 2, 60, 10, 50, 2, 40),
        *(line(68, y, 68, y + 6, width=4) for y in (29, 40, 51, 62)),
        star(38, 51, 19, 8, 5, "white", 2),
    ),
}

_THINGS: dict[str, tuple[Stroke, ...]] = {
    "chair": (
        box(22, 48, 31, 98),
        box(69, 48, 78, 98),
        *(box(x, 10, x + 8, 52) for x in (24, 46, 68)),
        box(20, 4, 80, 18),
        polygon(24, 50, 76, 50, 86, 66, 14, 66),
    ),
    "lamp": (
        box(46, 46, 54, 86, "steel"),
        polygon(32, 6, 68, 6, 88, 50, 12, 50),
        disc(50, 90, 26, 7, "steel"),
        line(74, 50, 74, 66, width=3),
        disc(74, 68, 3, fill=INK),
    ),
    "clock": (
        disc(50, 50, 45),
        disc(50, 50, 35, fill="white"),
        *(disc(x, y, 2.5, fill=INK, width=0) for x, y in around(50, 50, 29, 12)),
        line(50, 50, 50, 26, width=6),
        line(50, 50, 66, 58, width=6),
    ),
    "hammer": (
        box(42, 30, 56, 98, "wood"),
        polygon(12, 10, 70, 10, 92, 24, 92, 32, 70, 30, 12, 34),
    ),
    "boat": (
        line(48, 6, 48, 66, width=6),
        polygon(52, 8, 90, 58, 52, 58, fill="white"),
        polygon(44, 18, 44, 58, 14, 58, fill="white"),
        polygon(4, 66, 96, 66, 80, 92, 20, 92),
    ),
    "ladder": (
        *(box(26, y, 74, y + 7) for y in (12, 30, 48, 66, 84)),
        box(20, 2, 30, 98),
        box(70, 2, 80, 98),
    ),
}

_PLANTS: dict[str, tuple[Stroke, ...]] = {
    "tulip": (
        line(50, 46, 50, 98, fill="leaf", width=7),
        polygon(50, 96, 22, 50, 28, 46, 44, 62, fill="leaf"),
        polygon(50, 96, 78, 50, 72, 46, 56, 62, fill="leaf"),
        polygon(26, 6, 40, 22, 50, 4, 60, 22, 74, 6, 76, 34, 62, 50, 38, 50, 24, 34),
    ),
    "cactus": (
        polygon(10, 32, 22, 32, 22, 50, 40, 50, 40, 62, 10, 62, fill="leaf"),
        polygon(90, 22, 78, 22, 78, 42, 60, 42, 60, 54, 90, 54, fill="leaf"),
        polygon(40, 12, 46, 4, 54, 4, 60, 12, 60, 80, 40, 80, fill="leaf"),
        line(50, 14, 50, 72, fill="white", width=2),
        polygon(26, 74, 74, 74, 68, 98, 32, 98),
    ),
    "clover": (
        line(50, 50, 60, 98, fill="leaf", width=6),
        *(disc(x, y, 19) for x, y in ((33, 24), (67, 24), (33, 56), (67, 56))),
        line(50, 40, 30, 22, width=2),
        line(50, 40, 70, 22, width=2),
        line(50, 40, 30, 58, width=2),
        line(50, 40, 70, 58, width=2),
    ),
    "sunflower": (
        line(50, 50, 50, 98, fill="leaf", width=7),
        disc(68, 84, 16, 6, "leaf"),
        star(50, 36, 38, 22, 14),
        disc(50, 36, 17, fill="wood"),
    ),
    "pine": (
        box(44, 82, 56, 98, "wood"),
        polygon(50, 44, 90, 84, 10, 84),
        polygon(50, 22, 80, 58, 20, 58),
        polygon(50, 2, 70, 34, 30, 34),
    ),
    "oak": (
        polygon(42, 54, 58, 54, 62, 98, 38, 98, fill="wood"),
        *(disc(x, y, 20) for x, y in ((28, 46), (72, 46), (30, 26), (70, 26), (50, 20))),
        disc(50, 40, 24, width=0),
        disc(50, 54, 18, 10, width=0),
    ),
}

_WORKS: dict[str, tuple[Stroke, ...]] = {
    "film": (
        box(6, 40, 94, 94),
        polygon(6, 38, 6, 24, 90, 4, 94, 18, fill=INK),
        *(
            polygon(x, 36 - x * 0.24, x + 10, 33 - x * 0.24, x + 16, 19 - x * 0.24, x + 6, 22 - x * 0.24, fill="white")
            for x in (14, 38, 62)
        ),
        line(14, 58, 86, 58, fill="white", width=4),
        line(14, 74, 86, 74, fill="white", width=4),
    ),
    "photo": (
        box(10, 4, 90, 96, "white"),
        box(18, 12, 82, 70, "sky"),
        disc(66, 26, 8, fill="gold", width=1),
        polygon(18, 70, 42, 34, 58, 56, 66, 48, 82, 70),
    ),
    "song": (
        polygon(34, 12, 88, 2, 88, 20, 34, 30),
        line(36, 18, 36, 80, width=6),
        line(86, 8, 86, 70, width=6),
        disc(25, 80, 15, 12),
        disc(75, 70, 15, 12),
    ),
    "clip": (
        box(2, 10, 98, 78),
        polygon(36, 24, 70, 44, 36, 64, fill="white"),
        line(8, 90, 92, 90, width=5),
        disc(34, 90, 6, fill="white"),
    ),
    "poem": (
        polygon(10, 10, 70, 10, 70, 96, 10, 96, fill="white"),
        *(line(18, y, w, y, width=4) for y, w in ((26, 60), (40, 54), (54, 60), (68, 44), (82, 40))),
        polygon(44, 82, 56, 50, 76, 16, 98, 2, 94, 30, 74, 60),
        line(44, 84, 88, 18, width=3),
    ),
    "portrait": (
        box(8, 2, 92, 98, "gold"),
        box(20, 14, 80, 86, "sky"),
        polygon(24, 86, 32, 66, 68, 66, 76, 86),
        disc(50, 46, 15, 19, "light"),
        arc(50, 40, 16, 180, 360, fill="wood", width=7),
    ),
}  # fmt: skip

# class of objects -> icons of some of its objects; persons are faces (`icons.py`)
THINGS: dict[str, dict[str, tuple[Stroke, ...]]] = {
    "place": _PLACES,
    "food": _FOOD,
    "contraband": _CONTRABAND,
    "valuable": _VALUABLES,
    "thing": _THINGS,
    "plant": _PLANTS,
    "work": _WORKS,
}

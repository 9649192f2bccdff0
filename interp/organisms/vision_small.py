"""The vision organism in a minute: the full one's code in a smaller world (`vision_sizes.SMALL`), for tests and first looks."""

from __future__ import annotations

from pathlib import Path

from interp.organisms import staged, vision
from interp.organisms.vision_sizes import SMALL, STAGES


def build(seed: int = 0, *, force: bool = False, progress: bool = True) -> Path:
    """Train and measure every stage; returns the seed's directory. As `vision.build`."""
    return vision.build(seed, force=force, progress=progress, size=SMALL)


def card(seed: int = 0) -> staged.Card:
    """The cards of a built organism, by stage; raises UserError when it is not built."""
    return vision.card(seed, size=SMALL)


def listing() -> str:
    """One line a stage and seed that is built, or how to build."""
    return staged.listing(SMALL.kind, STAGES)

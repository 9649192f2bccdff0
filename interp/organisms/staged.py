"""How is an organism built stage by stage, so that a killed build goes on and a half-built one never looks whole?

Stages are directories, each written by its own function with its card last, under a hidden name; when all are whole the seed's
directory takes its place in one step. One build of a seed runs at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock

from interp.errors import UserError
from interp.files import load_json, remove, sync, writing
from interp.models.checkpoint import organism_dir
from interp.organisms.text import Expected

CARD = "card.json"


def is_whole(directory: Path, seed: int, source: Mapping[str, str]) -> bool:
    """Whether a stage of this seed is there, with its card, and every file that made it is still the same."""
    if not (directory / CARD).is_file():
        return False
    found = load_json(directory / CARD)
    return bool(found["seed"] == seed and found["source"].items() <= source.items())


def build_stages(
    kind: str,
    seed: int,
    stages: Mapping[str, Callable[[Path], None]],
    source: Mapping[str, str],
    *,
    force: bool = False,
) -> Path:
    """Build what is missing, in order; returns the seed's directory.

    Args:
        stages: name -> what writes it, given the directory that holds all stages.
        source: hashes of what makes the organism what it is; stages of another source are built again.
        force: build again even what is whole.

    Raises ResultError when the disk refuses.
    """
    target = organism_dir(kind, seed)
    partial = target.with_name(f".partial-{target.name}")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(target.with_name(f".lock-{target.name}"))
    with lock:
        if not force and all(is_whole(target / stage, seed, source) for stage in stages):
            return target
        if force:
            remove(partial)
        for stage, write in stages.items():
            if not is_whole(partial / stage, seed, source):
                remove(partial / stage)
                write(partial)
        with writing(target):
            old = target.with_name(f".old-{target.name}")
            remove(old)
            if target.exists():
                target.replace(old)
            partial.replace(target)
            sync(target.parent)
            remove(old)
    return target


def check(
    what: str, measured: Mapping[str, Mapping[str, float]], expected: Mapping[str, Expected]
) -> dict[str, str]:
    """What was expected, in words for the card; raises UserError naming the first number that misses it."""
    for name, bound in expected.items():
        if not bound.holds(measured[name]["estimate"]):
            raise UserError(
                f"{what}: {name} is {shown(measured[name])}, expected {bound.side} {bound.bound}; "
                f"build with another seed, and report this one"
            )
    return {name: f"{bound.side} {bound.bound}" for name, bound in expected.items()}


def shown(value: Mapping[str, float]) -> str:
    """A measured share or mean with its interval and counts."""
    counts = f"{value['k']} of {value['n']}" if "k" in value else f"n = {value['n']}"
    return f"{value['estimate']:.3f} [{value['low']:.3f}, {value['high']:.3f}] ({counts})"


class Card(dict[str, Any]):
    """Cards by stage; prints as text."""

    def __str__(self) -> str:
        lines = []
        for stage, found in self.items():
            lines.append(
                f"organism:{found['organism']}/{stage}, seed {found['seed']}, "
                f"built in {found['seconds']['total']:.0f} s"
            )
            for name, value in found["measured"].items():
                expected = found["expected"].get(name)
                lines.append(f"  {name:<52} {shown(value)}" + (f"  expected {expected}" if expected else ""))
        return "\n".join(lines)


def card(kind: str, stages: Sequence[str], seed: int) -> Card:
    """The cards of a built organism, by stage; raises UserError when it is not built."""
    target = organism_dir(kind, seed)
    if not all((target / stage / CARD).is_file() for stage in stages):
        raise UserError(
            f"{kind} organism, seed {seed}, is not built; run: interp organism build {kind} --seed {seed}"
        )
    return Card({stage: load_json(target / stage / CARD) for stage in stages})


def listing(kind: str, stages: Sequence[str]) -> str:
    """One line a stage and seed that is built, or how to build."""
    root = organism_dir(kind, 0).parent
    seeds = sorted(
        int(path.name.removeprefix("seed-"))
        for path in root.glob("seed-*")
        if all((path / stage / CARD).is_file() for stage in stages)
    )
    if not seeds:
        return f"organism:{kind}/{{{','.join(stages)}}}: not built; run: interp organism build {kind}"
    return "\n".join(
        f"organism:{kind}/{stage}{f'@{seed}' if seed else ''}  {root / f'seed-{seed}' / stage}"
        for seed in seeds
        for stage in stages
    )

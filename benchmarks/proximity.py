"""How near does the search for the nearest harmful item come to the matrix product that it needs?

On random vectors of a sentence encoder's width: our exact search (least distance, its place and the mean distance of every item), raw,
centred, and with the ten nearest; beside the bare product of the same matrices, in one piece and in the blocks of the search. The
faster of the two is the floor. All must find the same.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from benchmarks.harness import (
    Run,
    interleave,
    machine,
    mebibytes,
    paired_ratio,
    seconds,
    seconds_note,
    target,
    verdicts,
)
from interp.files import load_arrays, save_arrays
from interp.geometry.nearest import BLOCK, mean_row, nearest

SHARE, MEMORY, TOLERANCE = 0.7, 64 * 2**20, 1e-5
FLOORS = ("blocks", "whole")
LABELS = {
    "ours": "`nearest`: least, place and mean",
    "ten": "`nearest`: the ten least and the mean",
    "centred": "`nearest`, centred (mean of all, fp64)",
    "blocks": "the product alone, in the same blocks",
    "whole": "the product alone, in one piece",
}


class Config(BaseModel):
    """Sizes of the two sets and of a vector; how many columns are compared with brute force."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_benign: int = 200_000
    n_harmful: int = 1_000
    d: int = 384
    n_checked: int = 2_000


class Task:
    """Two sets of vectors around a common mean, as encoders make them."""

    def __init__(self, config: Config) -> None:
        generator = torch.Generator().manual_seed(0)
        centre = torch.randn(config.d, generator=generator)
        self.harmful = torch.randn(config.n_harmful, config.d, generator=generator) + centre
        self.benign = torch.randn(config.n_benign, config.d, generator=generator) + centre
        self.step = max(1, BLOCK // max(config.n_harmful, config.d))


def _search(config: Config, n: int, centred: bool) -> Run:
    task = Task(config)
    n = min(n, config.n_harmful)

    def run(out: Path) -> dict[str, Any]:
        centre = None
        if centred:
            sets = (task.benign, task.harmful)
            centre = mean_row(*((rows, torch.ones(len(rows))) for rows in sets))
        found = nearest(task.benign, task.harmful, n, centre=centre)
        _write(out, found.cosines[:, 0], found.mean, config)
        return {}

    nearest(task.benign[:5000], task.harmful, n)
    return run


def ours(config: Config) -> Run:
    """What a filter takes by default."""
    return _search(config, 1, False)


def ten(config: Config) -> Run:
    """What the measure `top-10` takes."""
    return _search(config, 10, False)


def centred(config: Config) -> Run:
    """Centred distances, their mean included."""
    return _search(config, 1, True)


def blocks(config: Config) -> Run:
    """The product alone, every block over the last."""
    task = Task(config)
    against = task.harmful.T.contiguous()
    space = torch.empty(task.step, config.n_harmful)

    def run(out: Path) -> dict[str, Any]:
        for rows in task.benign.split(task.step):
            torch.mm(rows, against, out=space[: len(rows)])
        return {}

    torch.mm(task.benign[: task.step], against, out=space[: min(task.step, config.n_benign)])
    return run


def whole(config: Config) -> Run:
    """The product alone, into memory that was there before."""
    task = Task(config)
    against = task.harmful.T.contiguous()
    space = torch.zeros(config.n_benign, config.n_harmful)

    def run(out: Path) -> dict[str, Any]:
        torch.mm(task.benign, against, out=space)
        lengths = [
            torch.linalg.vector_norm(rows[: config.n_checked], dim=1) for rows in (task.benign, task.harmful)
        ]
        part = space[: config.n_checked] / lengths[0][:, None] / torch.linalg.vector_norm(task.harmful, dim=1)
        _write(out, part.max(1).values, part.mean(1), config)
        return {}

    torch.mm(task.benign[:5000], against, out=space[:5000])
    return run


ENGINES: dict[str, Callable[[Config], Run]] = {
    "ours": ours, "ten": ten, "centred": centred, "blocks": blocks, "whole": whole,
}  # fmt: skip


def _write(out: Path, best: Tensor, mean: Tensor, config: Config) -> None:
    save_arrays(
        out / "found.safetensors",
        {"best": best[: config.n_checked].double(), "mean": mean[: config.n_checked].double()},
    )


def run(config: Config, *, threads: int, repeats: int) -> dict[str, Any]:
    """Time all; raises RuntimeError when the search and the product disagree."""

    def check(places: dict[str, Path]) -> dict[str, Any]:
        expected = load_arrays(places["whole"] / "found.safetensors")
        errors = {}
        for engine in ("ours", "ten"):
            found = load_arrays(places[engine] / "found.safetensors")
            errors[engine] = max(float((found[name] - expected[name]).abs().max()) for name in expected)
            if not errors[engine] <= TOLERANCE:
                raise RuntimeError(f"{engine} differs from the product by {errors[engine]:.2g}")
        return {"errors": errors, "checked": min(config.n_checked, config.n_benign)}

    result = interleave(
        "benchmarks.proximity",
        list(ENGINES),
        config,
        threads=threads,
        repeats=repeats,
        memory=True,
        check=check,
    )
    engines = result["engines"]
    shares = {
        engine: min(paired_ratio(engines, floor, engine) for floor in FLOORS)
        for engine in ENGINES
        if engine not in FLOORS
    }
    growth = engines["ours"]["peak_growth"]
    return result | {
        "config": config.model_dump(),
        "share_of_floor": shares,
        "targets": [
            target(
                f"at least {SHARE} of the product's speed", f"{shares['ours']:.2f}", shares["ours"] >= SHARE
            ),
            target(
                f"at most {mebibytes(MEMORY)} beside the vectors",
                mebibytes(growth),
                growth is not None and growth <= MEMORY,
            ),
        ],
        "machine": machine(),
    }


def tables(result: dict[str, Any]) -> str:
    """The timings as Markdown, and the targets with met or missed."""
    config, agreement = result["config"], result["agreement"]
    operations = 2 * config["n_benign"] * config["n_harmful"] * config["d"]
    rows = [
        "| engine | seconds, median (min to max) | GFLOP/s | of the faster product's speed | memory |",
        "|---|---|---|---|---|",
    ]
    for engine, label in LABELS.items():
        found = result["engines"][engine]
        share = result["share_of_floor"].get(engine)
        rows.append(
            f"| {label} | {seconds(found)} | {operations / found['median_s'] / 1e9:.0f} | {'' if share is None else f'{share:.2f}'} | "
            f"{mebibytes(found['peak_growth'])} |"
        )
    note = (
        f"{config['n_benign']:,} items × {config['n_harmful']:,} harmful × {config['d']} numbers. {seconds_note(result)} Memory beside the "
        f"vectors themselves. Cosines of the first {agreement['checked']:,} items differ from the whole product's by at most "
        f"{max(agreement['errors'].values()):.0e}."
    )
    return "\n".join([*rows, "", note, "", verdicts(result["targets"])])

"""The study of narrow fine-tuning from end to end: run the trials, read their curves, measure the geometry, say what came out.

Every trial is kept by itself, so that a killed study resumes and another grid reuses what they share. `report.py` writes it down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from interp.defence.runner import in_processes
from interp.files import load_table
from interp.narrow import geometry as narrow_geometry
from interp.narrow.conclusion import conclude
from interp.narrow.grid import LIVES, Grid
from interp.narrow.outcomes import SETTINGS, outcomes, series
from interp.narrow.runner import run_trials
from interp.narrow.trial import NarrowResult, NarrowTrial
from interp.organisms import character

Results = Mapping[NarrowTrial, NarrowResult]


@dataclass(frozen=True)
class Study:
    """Tables of a study.

    outcomes: one row a trial and section, ranks and steps matched with the anchor. primary: the anchor and its twin, matched with each other.
    curves: one row a trial, section and evaluated step. steered, graded, examples: of the trials that have them. geometry: of each pair
    that kept activations.
    """

    grid: Grid
    outcomes: pd.DataFrame
    primary: pd.DataFrame
    curves: pd.DataFrame
    steered: pd.DataFrame
    graded: pd.DataFrame
    examples: pd.DataFrame
    geometry: dict[str, pd.DataFrame]
    sentences: list[str]


def run_study(
    grid: Grid, *, out: Path | str = "results", workers: int | None = None, progress: bool = True
) -> Study:
    """Run what is missing of the grid. Organisms that are not built are built first, and stop the study where they miss their card.

    Raises UserError naming a trial that failed; what was finished stays.
    """
    for seed in grid.organisms:
        character.build(seed, progress=progress)
    results = run_trials(grid.trials(), out=out, workers=workers, progress=progress)
    geometry = measure_pairs(grid, out=Path(out), workers=workers, progress=progress)
    return assemble(grid, results, geometry)


def assemble(grid: Grid, results: Results, geometry: dict[str, pd.DataFrame]) -> Study:
    """The study's tables from the results of its trials."""
    sections = grid.sections()
    curves = {trial: series(trial, result) for trial, result in results.items()}
    anchors = {(t.pair, t.consistent): curves[t] for t in sections["rank"] if t.rank == grid.rank}
    rows = [
        outcomes(
            trials,
            [curves[t] for t in trials],
            [anchors[t.pair, t.consistent] for t in trials] if name in ("rank", "steps") else (),
        ).assign(section=name, life=[life_of(t) for t in trials])
        for name, trials in sections.items()
    ]
    twins = [t for t in sections["rank"] if t.rank == grid.rank]
    points = [
        curves[t].assign(section=name, pair=t.pair, life=life_of(t), **{s: getattr(t, s) for s in SETTINGS if s != "steps"}, length=t.steps)
        for name, trials in sections.items() for t in trials
    ]  # fmt: skip
    found = Study(
        grid,
        pd.concat(rows, ignore_index=True),
        outcomes(twins, [curves[t] for t in twins], [anchors[t.pair, not t.consistent] for t in twins]),
        pd.concat(points, ignore_index=True),
        _labelled(results, "steered"),
        _labelled(results, "graded"),
        _labelled(results, "examples"),
        geometry,
        [],
    )
    found.sentences.extend(
        conclude(
            found.outcomes, found.primary, found.steered, found.graded, found.curves, found.geometry, grid
        )
    )
    return found


def life_of(trial: NarrowTrial) -> str:
    """The name of a trial's sequence of tasks; "repair" for helpful answers of the same domain, "" where nothing follows."""
    for name, (share, tasks) in LIVES.items():
        if trial.then == tasks and trial.share == share:
            return name
    return "repair" if trial.then else ""


def _labelled(results: Results, name: str) -> pd.DataFrame:
    """One of the trials' tables, those that have it below each other, with what tells the trials apart."""
    parts = [
        getattr(result, name).assign(pair=t.pair, share=t.share, rank=t.rank, life=life_of(t))
        for t, result in results.items()
        if len(getattr(result, name))
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def measure_pairs(grid: Grid, *, out: Path, workers: int | None, progress: bool) -> dict[str, pd.DataFrame]:
    """The tables of `narrow/geometry.py`, with `pair`, of each pair that kept activations."""
    paths = in_processes(
        grid.geometry(), partial(narrow_geometry.keep_geometry, out=out), narrow_geometry.describe_pair, label="geometry",
        workers=workers, progress=progress,
    )  # fmt: skip
    found: dict[str, list[pd.DataFrame]] = {}
    for chosen, path in paths.items():
        for name in (*narrow_geometry.TABLES, *(narrow_geometry.TOWER if chosen.towers else ())):
            table = load_table(path / f"{name}.parquet")
            found.setdefault(name, []).append(table.assign(pair=f"{chosen.pair[0]}/{chosen.pair[1]}"))
    return {name: pd.concat(parts, ignore_index=True) for name, parts in found.items()}

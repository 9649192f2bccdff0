"""The study from end to end: prepare the pools, choose the rate, run what is missing of the grid, and lay all tables below each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from interp.benign_audio.asking import shares
from interp.benign_audio.classes import Control, by_class, describe_control, keep_control
from interp.benign_audio.grid import Dose, Grid, choose_dose
from interp.benign_audio.nearness import separations
from interp.benign_audio.prepare import Preparation, keep_preparation
from interp.benign_audio.prepare import describe as describe_preparation
from interp.benign_audio.sources import SOURCES
from interp.benign_audio.trial import NONE, PROMPT, TABLES, Trial, run_trial
from interp.defence.runner import in_processes
from interp.files import load_table, save_table
from interp.models.checkpoint import Checkpoint
from interp.organisms import audio, audio_encoder, audio_mlp
from interp.store import open_run

STUDY = "audio-benign-trials"
COMPARED = ("aligned", "random", "proximate semantic")
LABELS = ("section", "arm", "unit", "organism", "seed", "bridge", "pool", "modality", "rule", "axis", "share", "draw", "method")  # fmt: skip


@dataclass(frozen=True)
class Study:
    """Tables of a study; all carry the columns `LABELS`.

    Args:
        dose: the learning rates, and how they were chosen in `tuning`.
        shares: one row a trial: its shares, those under the defence prompt as `prompt …`, and its facts as `fact …`.
        curve, defended, projections, probes, located: those of the trials.
        items, plane, separated: of the pools, with `pool`, `organism`, `bridge` and `seed`.
        classes: harmful speech answered by class of what is asked about (`classes.by_class`), of some arms.
    """

    grid: Grid
    dose: Dose
    tuning: pd.DataFrame
    shares: pd.DataFrame
    curve: pd.DataFrame
    defended: pd.DataFrame
    projections: pd.DataFrame
    probes: pd.DataFrame
    located: pd.DataFrame
    items: pd.DataFrame
    plane: pd.DataFrame
    separated: pd.DataFrame
    classes: pd.DataFrame


def run_study(
    grid: Grid, *, out: Path | str = "results", workers: int | None = None, progress: bool = True
) -> Study:
    """Run what is missing of the grid. Organisms that are not built are built first.

    Raises UserError naming a trial that failed, after the others have been run and kept.
    """
    out = Path(out)
    build(grid, progress=progress)
    pools = in_processes(
        grid.preparations(), partial(keep_preparation, out=out), describe_preparation, label="pools", workers=workers,
        progress=progress,
    )  # fmt: skip
    tried = run_trials(grid.tuning_trials(), out=out, workers=workers, progress=progress)
    tuning = pd.DataFrame(
        [
            {
                "rate": t.tuning.learning_rate,
                "organism": t.organism,
                "refused": row["refused speech"],
                "skill": row["skill speech"],
            }
            for t, row in ((t, _row(t, path, "tuning")) for t, path in tried.items())
        ],
        columns=["rate", "organism", "refused", "skill"],
    )
    dose = choose_dose(tuning, grid.rates, grid.taught)
    sections = grid.sections(dose)
    found = run_trials(
        [t for part in sections.values() for t in part], out=out, workers=workers, progress=progress
    )
    labelled = [(section, trial, found[trial]) for section, part in sections.items() for trial in part]
    return Study(
        grid,
        dose,
        tuning,
        pd.DataFrame([_row(trial, path, section) for section, trial, path in labelled]),
        **{
            name: _stacked(
                [
                    load_table(path / f"{name}.parquet").assign(**_labels(trial, section))
                    for section, trial, path in labelled
                ]
            )
            for name in ("curve", "defended", "projections", "probes", "located")
        },
        **_pool_tables(pools),
        classes=_classes(sections, found, grid, out=out, workers=workers, progress=progress),
    )


def _classes(
    sections: Mapping[str, Sequence[Trial]], found: Mapping[Trial, Path], grid: Grid, *, out: Path, workers: int | None, progress: bool
) -> pd.DataFrame:  # fmt: skip
    """What the arms that the controls of classes are compared with did by class, and those controls."""
    there: list[tuple[Trial | Control, Path]] = [
        (t, found[t]) for t in (*sections["aligned"], *sections["main"]) if t.arm in COMPARED
    ]
    if grid.by_class:
        controls = [
            Control(trial=t, like=like)
            for t in sections["main"]
            if t.arm == COMPARED[-1]
            for like in ("random", "proximate")
        ]
        made = in_processes(
            controls, partial(keep_control, out=out), describe_control, label="controls", workers=workers, progress=progress
        )  # fmt: skip
        there += made.items()
    return _stacked([by_class(each, path, out) for each, path in there])


def build(grid: Grid, *, progress: bool = True) -> None:
    """Build the organisms of a grid, each bridge's, and the recognisers of the mixed axis."""
    for organism in grid.built:
        audio.build(organism, progress=progress)
    for organism in grid.bridged:
        audio_mlp.build(organism, progress=progress)
    for chosen in grid.preparations():
        if chosen.mixed is not None:
            audio_encoder.build(chosen.mixed, progress=progress)


def run_trials(
    trials: Sequence[Trial], *, out: Path, workers: int | None, progress: bool
) -> dict[Trial, Path]:
    """The directories of the trials, those on one organism and pool one after the other."""
    order = sorted(dict.fromkeys(trials), key=lambda t: (t.bridge, t.organism, t.seed, t.pool))
    if not order:
        return {}
    return in_processes(
        order, partial(keep_trial, out=out), describe, label="fine-tunes", workers=workers, progress=progress
    )


def keep_trial(trial: Trial, out: Path) -> Path:
    """Run a trial unless it is there; returns its directory."""
    weights: dict[str, Path | str] = {"organism": Checkpoint.parse(trial.checkpoint).fingerprint()}
    with open_run(out, STUDY, describe(trial), trial, weights, SOURCES) as run:
        if not run.finished:
            result = run_trial(trial, out)
            for name in TABLES:
                save_table(run.file(f"{name}.parquet"), getattr(result, name))
        return run.finish()


def describe(trial: Trial) -> str:
    """A readable name."""
    return (
        f"{trial.bridge} {trial.pool} {trial.arm} {trial.share:.0%} {trial.modality} {trial.method} organism {trial.organism} "
        f"seed {trial.seed} draw {trial.draw}"
    )


def _labels(trial: Trial, section: str) -> dict[str, object]:
    return {"section": section, **{name: getattr(trial, name) for name in LABELS[1:]}}


def _row(trial: Trial, path: Path, section: str) -> dict[str, object]:
    answers, facts = (load_table(path / f"{name}.parquet") for name in ("answers", "facts"))
    under = {arm: shares(part.drop(columns="arm")) for arm, part in answers.groupby("arm", sort=False)}
    return (
        _labels(trial, section)
        | under[NONE]
        | {f"prompt {name}": value for name, value in under[PROMPT].items()}
        | {f"fact {name}": value for name, value in zip(facts["name"], facts["value"], strict=True)}
    )


def _pool_tables(pools: Mapping[Preparation, Path]) -> dict[str, pd.DataFrame]:
    found: dict[str, list[pd.DataFrame]] = {"items": [], "plane": [], "separated": []}
    for chosen, path in pools.items():
        about = {name: getattr(chosen, name) for name in ("pool", "organism", "bridge", "seed")}
        items = load_table(path / "items.parquet")
        found["items"].append(items.assign(**about))
        found["plane"].append(load_table(path / "plane.parquet").assign(**about))
        found["separated"].append(separations(items).assign(**about))
    return {name: _stacked(tables) for name, tables in found.items()}


def _stacked(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Tables below each other; empty ones have no types and are left out."""
    kept = [table for table in tables if len(table)]
    return pd.concat(kept, ignore_index=True) if kept else pd.DataFrame()

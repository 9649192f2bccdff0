"""The comparison of defences from end to end: tune, run, measure the geometry, and say what came out.

Every trial and every organism's geometry is kept by itself, so that a killed comparison resumes and another grid reuses what they
share. `report.py` writes tables, figures and the conclusion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from interp.defence import geometry as gradient_geometry
from interp.defence.compare import difference, means, outcomes, primary
from interp.defence.conclusion import (
    NAMES,
    PRIMARY,
    best_sentence,
    claim_sentences,
    insight_sentences,
    monitor_sentence,
    points,
    refusal_sentence,
    utility_sentence,
)
from interp.defence.grid import CANDIDATES, Grid, choose
from interp.defence.runner import run_trials
from interp.defence.trial import Trial, TrialResult
from interp.evals.statistics import t_interval
from interp.files import load_table, save_table
from interp.models.checkpoint import Checkpoint
from interp.organisms import text
from interp.organisms.text_tasks import task
from interp.progress import progress as progress_bar
from interp.store import open_run

GEOMETRY_TABLES = ("spectra", "ranks", "conflicts", "overlaps")
HERE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Comparison:
    """Tables of a comparison: one row a trial in `outcomes`; curves, steps, monitor and attacks of all trials, with their settings.

    `settings` are the chosen ones of each method, `sentences` the conclusion.
    """

    grid: Grid
    settings: dict[str, dict[str, float | str]]
    tuning: pd.DataFrame
    outcomes: pd.DataFrame
    curves: pd.DataFrame
    steps: pd.DataFrame
    monitor: pd.DataFrame
    attacks: pd.DataFrame
    geometry: dict[str, pd.DataFrame]
    sentences: list[str]


def run_comparison(
    grid: Grid, *, out: Path | str = "results", workers: int | None = None, progress: bool = True
) -> Comparison:
    """Run what is missing of the grid and compare. Organisms that are not built are built first.

    Raises UserError naming a trial that failed; what was finished stays.
    """
    for seed in sorted({*grid.seeds, *grid.tuning}):
        text.build(seed, progress=progress)
    tuning = _tune(grid, out, workers, progress)
    settings = choose(tuning, grid.methods)
    sections = grid.sections(settings)
    trials = [trial for part in sections.values() for trial in part]
    results = dict(zip(trials, run_trials(trials, out=out, workers=workers, progress=progress), strict=True))
    tables = {
        name: _stacked([_labelled(part, results, name, section) for section, part in sections.items()])
        for name in ("curve", "steps", "monitor", "attacks")
    }
    rows = pd.concat(
        [
            outcomes(part, [results[t] for t in part], grid.utility).assign(section=section)
            for section, part in sections.items()
        ],
        ignore_index=True,
    )
    geometry = _geometry(grid, Path(out), progress)
    found = Comparison(
        grid,
        settings,
        tuning,
        rows,
        tables["curve"],
        tables["steps"],
        tables["monitor"],
        tables["attacks"],
        geometry,
        [],
    )
    found.sentences.extend(conclude(found))
    return found


def _tune(grid: Grid, out: Path | str, workers: int | None, progress: bool) -> pd.DataFrame:
    """Refusals and JSR at equal utility of every candidate on the tuning organisms; empty where there are none."""
    trials = grid.tuning_trials()
    if not trials:
        return pd.DataFrame(columns=["method", "candidate", "seed", "refused", "jsr", "utility"])
    results = run_trials(trials, out=out, workers=workers, progress=progress)
    frame = outcomes(trials, results, grid.utility)
    places = [
        place for method in grid.methods for place in range(len(CANDIDATES[method])) for _ in grid.tuning
    ]
    kept = frame[["method", "seed", "learning_rate", "gate", "weight", "threshold"]].copy()
    return kept.assign(
        candidate=places, refused=frame["at_refused"], jsr=frame["at_jsr"], utility=frame["end_utility"]
    )


def _labelled(
    trials: Sequence[Trial], results: dict[Trial, TrialResult], name: str, section: str
) -> pd.DataFrame:
    """One of the trials' tables, all of them below each other, with what tells the trials apart."""
    return _stacked(
        [
            getattr(results[t], name).assign(
                section=section, method=t.method, seed=t.seed, harmful_fraction=t.harmful_fraction, k=t.k,
                refresh=t.refresh,
            )
            for t in trials
        ]
    )  # fmt: skip


def _stacked(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Tables below each other; empty ones (of a trial without steps or attacks) have no types and are left out."""
    kept = [table for table in tables if len(table)]
    return pd.concat(kept, ignore_index=True) if kept else pd.DataFrame()


def _geometry(grid: Grid, out: Path, progress: bool) -> dict[str, pd.DataFrame]:
    sources = [
        Path(gradient_geometry.__file__),
        HERE / "geometry" / "conflict.py",
        HERE / "models" / "gradients.py",
    ]
    found: dict[str, list[pd.DataFrame]] = {name: [] for name in GEOMETRY_TABLES}
    with progress_bar("gradient geometry", total=len(grid.seeds), enabled=progress) as advance:
        for seed in grid.seeds:
            checkpoint = Checkpoint.parse(f"organism:text/aligned@{seed}")
            weights = {"aligned": checkpoint.fingerprint()}
            with open_run(out, "spf-geometry", f"seed {seed}", {"seed": seed}, weights, sources) as run:
                if not run.finished:
                    asked = task(seed)
                    measured = gradient_geometry.measure_geometry(
                        checkpoint.load(device_map="cpu"), asked.safety.sample(128, seed), asked.train.sample(128, seed),
                        seed=seed, progress=progress,
                    )  # fmt: skip
                    for name in GEOMETRY_TABLES:
                        save_table(run.file(f"{name}.parquet"), getattr(measured, name))
                path = run.finish()
            for name in GEOMETRY_TABLES:
                found[name].append(load_table(path / f"{name}.parquet").assign(seed=seed))
            advance(1)
    return {name: pd.concat(parts, ignore_index=True) for name, parts in found.items()}


def conclude(found: Comparison) -> list[str]:
    """The sentences of the conclusion, primary claims first."""
    rows, utility = found.outcomes, found.grid.utility
    benign = rows[rows["section"] == "benign"]
    plain = benign[benign["method"] == "plain"]
    rise = t_interval((plain["end_jsr"] - plain["start_jsr"]).tolist())
    sentences = [
        f"Plain benign fine-tuning changes the share of harmful requests answered by {points(rise)} at its end, "
        f"{rise.n} {'seeds' if rise.n > 1 else 'seed'}.",
        *claim_sentences(primary(benign, PRIMARY, "at_jsr"), utility),
        best_sentence(benign),
        refusal_sentence(benign, "tuned settings"),
    ]
    untuned = rows[rows["section"] == "untuned"]
    if len(untuned):
        answered = untuned.groupby("method", sort=False)["at_jsr"].mean()
        apart = "; ".join(
            f"{NAMES[a]} against {NAMES[b]} {points(difference(untuned, a, b, 'at_jsr').interval)}"
            for a, b in PRIMARY
            if {a, b} <= set(answered.index)
        )
        sentences += [
            "Untuned, at the source's setting and one learning rate for all, harmful requests answered at equal utility: "
            + ", ".join(f"{NAMES[m]} {answered[m]:.0%}" for m in answered.index)
            + f". Differences: {apart}.",
            refusal_sentence(untuned, "untuned"),
        ]
    if {"spf", "plain"} <= set(benign["method"]):
        sentences.append(utility_sentence(benign))
    for section, part in rows.groupby("section", sort=False):
        if section in ("mixture", "deep"):
            groups = part.groupby("harmful_fraction", sort=False) if section == "mixture" else [(0.0, part)]
            for fraction, group in groups:
                name = f"{fraction:.0%} harmful" if section == "mixture" else f"{found.grid.deep}× the steps"
                table = means(group, ["method"], ["end_jsr"])
                listed = ", ".join(
                    f"{NAMES[method]} {mean:.0%}"
                    for method, mean in zip(table["method"], table["mean"], strict=True)
                )
                sentences.append(f"With {name}, harmful requests answered at the end: {listed}.")
    sentences += insight_sentences(*(found.geometry[name] for name in ("ranks", "conflicts", "overlaps")))
    watched = rows[rows["section"].isin(["monitor", "monitor control"])]
    if len(watched):
        sentences.append(monitor_sentence(watched))
    return sentences

"""The comparison of steerings from end to end: run the points, look at the vectors, read the curves at equal cost, say what came out.

Every point is kept by itself, so that a killed comparison resumes and another grid reuses what they share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from interp.defence.runner import in_processes
from interp.files import load_table, save_table
from interp.methods.steering_answers import rates
from interp.models.checkpoint import Checkpoint
from interp.organisms import audio, text, text_finetunes
from interp.steering_study import geometry
from interp.steering_study.conclusion import (
    arms_sentence,
    claim_sentences,
    claims,
    modality_sentence,
    organisms_sentence,
    prompt_sentence,
    safe_sentence,
)
from interp.steering_study.data import TARGET, Kind
from interp.steering_study.grid import Grid
from interp.steering_study.operating import COST_COLUMNS, at_the_prompts_cost, gains, read_curves
from interp.steering_study.trial import Trial, run_trial
from interp.store import open_run

STUDY = "sarsteer-trials"
Draw = tuple[Kind, str, int, int]  # kind, stage and seed of the organism, and of its calibration prompts
HERE = Path(__file__).parents[1]
# what decides a point's numbers beside the organism's weights
SOURCES = [
    HERE / name
    for name in (
        "steering_study/trial.py", "steering_study/data.py", "methods/steering_arms.py", "methods/steering_answers.py",
        "methods/steering.py", "methods/steering_vectors.py", "methods/sarsteer.py", "geometry/subspaces.py", "organisms/language.py", "organisms/audio_language.py",
        "organisms/world.py", "organisms/speech.py", "models/generation.py", "models/hooks.py", "models/activations.py",
        "evals/judges.py",
    )
]  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """What was measured.

    Args:
        base: one row an organism, modality and unsteered arm (none, prompt): its shares.
        points: one row an arm, seed and strength in the asked modality, with `gained`, `cost` and `lost`.
        read: by what costs are equal in, the gain of each arm and seed at each of the grid's costs. at_prompt: at the defence prompt's.
        ablations: by setting, the gain at the claims' cost for each of its values and seeds.
        geometry: the tables of `geometry.py`, with a column `seed`. sentences: the conclusion.
    """

    grid: Grid
    base: pd.DataFrame
    points: pd.DataFrame
    read: dict[str, pd.DataFrame]
    at_prompt: dict[str, pd.DataFrame]
    ablations: dict[str, pd.DataFrame]
    geometry: dict[str, pd.DataFrame]
    sentences: list[str]


def run_comparison(
    grid: Grid, *, out: Path | str = "results", workers: int | None = None, progress: bool = True
) -> Comparison:
    """Run what is missing of the grid and compare. Organisms that are not built are built first.

    Raises UserError naming a point that failed; what was finished stays.
    """
    build = {"audio": audio.build, "text": text.build}[grid.kind]
    for organism in sorted({organism for organism, _ in grid.seeds}):
        build(organism, progress=progress)
        if grid.kind == "text" and grid.stage in text_finetunes.FINETUNES:
            text_finetunes.tune(grid.stage, organism, progress=progress)
    trials = grid.trials()
    kept = in_processes(
        trials,
        partial(keep_trial, out=Path(out)),
        describe,
        label="points",
        workers=workers,
        progress=progress,
    )
    shares = {trial: _shares(load_table(path / "answers.parquet")) for trial, path in kept.items()}
    draws = in_processes(
        [(grid.kind, grid.stage, *seed) for seed in grid.seeds], partial(keep_geometry, out=Path(out)), str, label="vectors",
        workers=workers, progress=progress,
    )  # fmt: skip
    return _compare(grid, shares, draws)


def _shares(answered: pd.DataFrame) -> pd.DataFrame:
    """One row a modality: its shares."""
    rows = [{"modality": modality, **rates(part)} for modality, part in answered.groupby("set", sort=False)]
    return pd.DataFrame(rows)


def _compare(grid: Grid, shares: dict[Trial, pd.DataFrame], draws: dict[Draw, Path]) -> Comparison:
    target = TARGET[grid.kind]
    asked = {trial: frame[frame["modality"] == target].iloc[0] for trial, frame in shares.items()}
    operating = grid.operating()
    base = pd.concat(
        [shares[t].assign(arm=t.arm, seed=t.organism) for t in operating if t.arm in ("none", "prompt")],
        ignore_index=True,
    )
    points = gains(pd.DataFrame([row for trial in operating for row in _rows(grid, trial, asked[trial])]))
    read = {name: read_curves(points, grid.arms, grid.costs, column) for name, column in COST_COLUMNS.items()}
    at_prompt = {
        name: at_the_prompts_cost(points, ("sarsteer",), column) for name, column in COST_COLUMNS.items()
    }
    found = Comparison(
        grid,
        base,
        points,
        read,
        at_prompt,
        _ablations(grid, asked, points),
        {
            name: pd.concat(
                [
                    load_table(path / f"{name}.parquet").assign(seed=f"{organism}/{split}")
                    for (_, _, organism, split), path in draws.items()
                ],
                ignore_index=True,
            )
            for name in geometry.TABLES
        },
        [],
    )
    found.sentences.extend(conclude(found))
    return found


def _rows(grid: Grid, trial: Trial, share: pd.Series) -> list[dict[str, object]]:
    """The point's row; an unsteered arm, which no draw changes, has one on every draw of its organism."""
    seeds = (
        [f"{organism}/{split}" for organism, split in grid.seeds if organism == trial.organism]
        if trial.arm in ("none", "prompt")
        else [trial.seed]
    )
    strength = 0.0 if trial.arm in ("none", "prompt") else trial.strength
    measured = {str(name): value for name, value in share.items()}
    return [{"arm": trial.arm, "seed": seed, "strength": strength, **measured} for seed in seeds]


def _ablations(grid: Grid, asked: dict[Trial, pd.Series], points: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """By setting: `value`, `seed`, and the gain at the claims' cost along the ablation's strengths."""
    base = points[points["arm"] == "none"]
    found = {}
    for name, part in grid.ablations().items():
        rows = []
        for value in dict.fromkeys(value for value, _ in part):
            mine = [
                {"arm": "sarsteer", "seed": t.seed, "strength": t.strength, **asked[t].to_dict()}
                for v, t in part
                if v == value
            ]
            curves = gains(pd.concat([base, pd.DataFrame(mine)], ignore_index=True))
            at = read_curves(curves, ("sarsteer",), (grid.cost,))
            rows.append(at.assign(value=value))
        found[name] = pd.concat(rows, ignore_index=True)[["value", "seed", "gained"]]
    return found


def conclude(found: Comparison) -> list[str]:
    """The sentences of the conclusion, primary claims first."""
    grid, target = found.grid, TARGET[found.grid.kind]
    at = {name: _at(frame, grid.cost) for name, frame in found.read.items()}
    sentences = claim_sentences(claims(at, found.at_prompt), grid.cost)
    sentences += [modality_sentence(found.base), prompt_sentence(found.base, target)]
    sentences += [arms_sentence(frame, grid.cost, name) for name, frame in at.items()]
    by_organism = [organisms_sentence(frame, grid.cost, name) for name, frame in at.items()]
    sentences += [sentence for sentence in by_organism if sentence]
    return [*sentences, safe_sentence(found.geometry["safe"])]


def _at(read: pd.DataFrame, cost: float) -> pd.DataFrame:
    return read[read["cost"] == cost]


def keep_trial(trial: Trial, out: Path) -> Path:
    """Run a point unless it is there; returns its directory."""
    weights = {"organism": Checkpoint.parse(trial.checkpoint).fingerprint()}
    with open_run(out, STUDY, describe(trial), trial, weights, SOURCES) as run:
        if not run.finished:
            save_table(run.file("answers.parquet"), run_trial(trial))
        return run.finish()


def keep_geometry(draw: Draw, out: Path) -> Path:
    """Measure the vectors of an organism and draw unless they are there; returns their directory."""
    kind, stage, organism, split = draw
    checkpoint = f"organism:{kind}/{stage}@{organism}"
    weights = {"organism": Checkpoint.parse(checkpoint).fingerprint()}
    settings = {"kind": kind, "stage": stage, "organism": organism, "split": split}
    sources: Sequence[Path] = [*SOURCES, Path(geometry.__file__), HERE / "methods" / "modality_gap.py"]
    with open_run(
        out, "sarsteer-geometry", f"{kind} {stage} {organism} {split}", settings, weights, sources
    ) as run:
        if not run.finished:
            for name, table in geometry.measure_geometry(kind, checkpoint, split).items():
                save_table(run.file(f"{name}.parquet"), table)
        return run.finish()


def describe(trial: Trial) -> str:
    """A readable name: the arm, its strength and whose answers they are."""
    return f"{trial.kind} {trial.stage} {trial.arm} {trial.strength:g} organism {trial.organism} draw {trial.split}"

"""How are narrow fine-tunings kept? Each under the hash of what made it, complete or absent; the processes are those of the defences' study."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from interp.defence.runner import in_processes
from interp.files import load_arrays, load_json, load_table, save_arrays, save_json, save_table
from interp.models.checkpoint import Checkpoint
from interp.narrow.trial import NarrowResult, NarrowTrial, aligned, run_trial
from interp.store import open_run

TABLES = ("answers", "curve", "steered", "graded", "examples")
ARRAYS = "activations.safetensors"
HERE = Path(__file__).parents[1]
# what decides a trial's numbers beside the organism's weights
SOURCES = [
    HERE / name
    for name in (
        "narrow/trial.py",
        "narrow/questions.py",
        "narrow/defences.py",
        "organisms/character_language.py",
        "organisms/scenes.py",
        "methods/spf.py",
        "methods/surgery_trainer.py",
        "methods/steering.py",
        "models/finetune.py",
        "models/generation.py",
        "evals/judges.py",
        "evals/misalignment.py",
    )
]


def run_trials(
    trials: Sequence[NarrowTrial],
    *,
    out: Path | str = "results",
    workers: int | None = None,
    progress: bool = True,
) -> dict[NarrowTrial, NarrowResult]:
    """The results of the trials; finished ones are read back.

    Args:
        out: directory of all results; the trials lie under `narrow-trials`.
        workers: processes, one thread each; by default one a core.

    Raises UserError naming the trials that failed, after all others have been run.
    """
    found = in_processes(
        list(dict.fromkeys(trials)),
        partial(keep_trial, out=Path(out)),
        describe,
        label="narrow fine-tunings",
        workers=workers,
        progress=progress,
    )
    return {trial: load_trial(path) for trial, path in found.items()}


def keep_trial(trial: NarrowTrial, out: Path) -> Path:
    """Run a trial unless it is there; returns its directory."""
    weights = {"aligned": Checkpoint.parse(aligned(trial)).fingerprint()}
    with open_run(out, "narrow-trials", describe(trial), trial, weights, SOURCES) as run:
        if not run.finished:
            result = run_trial(trial)
            for name in TABLES:
                if len(table := getattr(result, name)):
                    save_table(run.file(f"{name}.parquet"), table)
            if result.activations:
                save_arrays(run.file(ARRAYS), result.activations)
            save_json(
                run.file("result.json"), {"seconds": result.seconds, "trial": trial.model_dump(mode="json")}
            )
        return run.finish()


def load_trial(directory: Path) -> NarrowResult:
    """Read a finished trial back."""
    tables = {
        name: load_table(path) if (path := directory / f"{name}.parquet").exists() else pd.DataFrame()
        for name in TABLES
    }
    arrays = load_arrays(directory / ARRAYS) if (directory / ARRAYS).exists() else {}
    return NarrowResult(**tables, activations=arrays, seconds=load_json(directory / "result.json")["seconds"])


def describe(trial: NarrowTrial) -> str:
    """A readable name: whose answers, the rank, what was done about it, and of which organism."""
    rank = f"rank {trial.rank}" if trial.rank else "all weights"
    parts = [
        f"{trial.character} {trial.share:.0%} of {trial.n}",
        rank if trial.scaling == "constant" else f"{rank} {trial.scaling}",
        f"{trial.steps} steps",
        trial.method if trial.method != "plain" else "",
        "adapted tower" if trial.tower == "adapted" else "",
        "then " + " ".join(task.domain for task in trial.then) if trial.then else "",
        "consistent" if trial.consistent else "shuffled",
        trial.pair.replace("/", " seed "),
    ]
    return " ".join(part for part in parts if part)

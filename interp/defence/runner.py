"""How are hundreds of small fine-tunings run? In processes, each trial computed once and kept under the hash of what made it.

A trial's directory is complete or absent; a killed run goes on with the trials that are missing. A trial that fails does not stop the
others: at the end the failures are named, and the rest is kept.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from interp.defence.trial import Trial, TrialResult, run_trial
from interp.errors import UserError
from interp.files import load_json, load_table, save_json, save_table
from interp.models.checkpoint import Checkpoint
from interp.progress import progress as progress_bar
from interp.store import open_run

T = TypeVar("T", bound=Hashable)
TABLES = ("curve", "steps", "monitor", "attacks")
HERE = Path(__file__).parents[1]
# what decides a trial's numbers beside the organism's weights
SOURCES = [
    HERE / name
    for name in (
        "defence/trial.py",
        "organisms/text_tasks.py",
        "organisms/language.py",
        "organisms/world.py",
        "methods/spf.py",
        "methods/surgery_trainer.py",
        "methods/safelora.py",
        "methods/safety_monitor.py",
        "models/finetune.py",
        "models/generation.py",
        "evals/gcg.py",
        "evals/judges.py",
    )
]


def run_trials(
    trials: Sequence[Trial], *, out: Path | str = "results", workers: int | None = None, progress: bool = True
) -> list[TrialResult]:
    """The results of the trials, in their order; finished ones are read back.

    Args:
        out: directory of all results; the trials lie under `spf-trials`.
        workers: processes, one thread each; by default one a core.

    Raises UserError naming the trials that failed, after all others have been run.
    """
    unique = list(dict.fromkeys(trials))
    found = in_processes(
        unique,
        partial(keep_trial, out=Path(out)),
        describe,
        label="trials",
        workers=workers,
        progress=progress,
    )
    return [load_trial(found[trial]) for trial in trials]


def in_processes(
    units: Sequence[T],
    keep: Callable[[T], Path],
    describe: Callable[[T], str],
    *,
    label: str,
    workers: int | None = None,
    progress: bool = True,
) -> dict[T, Path]:
    """What `keep` returns for each unit of work, run in processes of one thread each; with one worker in this one.

    Args:
        units: different ones. keep: computes one and keeps it, at the top level of a module, so that processes can import it.
        describe: names a unit in an error.

    Raises UserError naming the first of those that failed, after all others have been run.
    """
    workers = min(workers or os.cpu_count() or 1, len(units))
    failures: dict[T, BaseException] = {}
    found: dict[T, Path] = {}
    with progress_bar(label, total=len(units), enabled=progress) as advance:
        if workers <= 1:
            for unit in units:
                found[unit] = keep(unit)
                advance(1)
        else:
            # spawned, not forked: a fork of a process with running threads may hang
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(workers, context, initializer=_one_thread) as pool:
                futures = {pool.submit(keep, unit): unit for unit in units}
                try:
                    for future in as_completed(futures):
                        if (error := future.exception()) is None:
                            found[futures[future]] = future.result()
                        else:
                            failures[futures[future]] = error
                        advance(1)
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
    if failures:
        unit, first = next(iter(failures.items()))
        raise UserError(
            f"{len(failures)} of {len(units)} trials failed, the others are kept; the first: {describe(unit)}: {first}"
        ) from first
    return {unit: found[unit] for unit in units}  # in their order, not in that of being done


def keep_trial(trial: Trial, out: Path) -> Path:
    """Run a trial unless it is there; returns its directory."""
    weights = {
        stage: Checkpoint.parse(f"organism:text/{stage}@{trial.organism}").fingerprint()
        for stage in ("pretrained", "aligned")
    }
    with open_run(out, "spf-trials", describe(trial), trial, weights, SOURCES) as run:
        if not run.finished:
            result = run_trial(trial)
            for name in TABLES:
                save_table(run.file(f"{name}.parquet"), getattr(result, name))
            save_json(
                run.file("result.json"), {"seconds": result.seconds, "trial": trial.model_dump(mode="json")}
            )
        return run.finish()


def load_trial(directory: Path) -> TrialResult:
    """Read a finished trial back."""
    tables = {name: load_table(directory / f"{name}.parquet") for name in TABLES}
    return TrialResult(**tables, seconds=load_json(directory / "result.json")["seconds"])


def describe(trial: Trial) -> str:
    """A readable name: the method, what it trains on and how long."""
    mixed = f" {trial.harmful_fraction:.0%} harmful" if trial.harmful_fraction else ""
    return f"{trial.method}{mixed} {trial.steps} steps seed {trial.seed}"


def _one_thread() -> None:
    torch.set_num_threads(1)

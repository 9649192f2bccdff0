"""The experiment from end to end: which organisms and fine-tunes are looked into, each computed once, and all tables in one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from interp.defence.runner import in_processes
from interp.files import load_table, save_table
from interp.locate.subject import Kind
from interp.locate.trial import TABLES, Trial, run_trial
from interp.models.checkpoint import Checkpoint
from interp.store import open_run

HERE = Path(__file__).parents[1]
# what a trial computes with; reports may be reworded without running it again
SOURCES = [
    HERE / name
    for name in (
        "evals/judges.py", "evals/statistics.py", "evals/verdicts.py", "locate/restore.py", "locate/subject.py", "locate/trial.py",
        "methods/attribution.py", "methods/logit_difference.py", "methods/patch_grid.py", "methods/patch_pairs.py",
        "methods/patch_runs.py", "methods/patching.py", "methods/refusal.py", "methods/transplant.py", "models/generation.py",
        "models/hooks.py", "models/positions.py", "models/restart.py", "organisms/language.py", "organisms/world.py",
    )
]  # fmt: skip
# of each kind; the text organism's settings were chosen on 0 and 1
SEEDS: dict[Kind, tuple[int, ...]] = {
    "text": (2, 3, 4, 5, 6, 7, 8, 9),
    "vision": (0, 1, 2),
    "audio": (0, 1, 2),
}


class Plan(BaseModel):
    """What the experiment runs.

    Args:
        kinds: of organisms. seeds: of each kind; None takes `SEEDS`.
        finetunes: of each organism.
        n_pairs, n_select, n_test, ks, n_random: of each trial.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kinds: tuple[Kind, ...] = ("text", "vision", "audio")
    seeds: tuple[int, ...] | None = None
    finetunes: tuple[str, ...] = ("benign", "harmful")
    n_pairs: int = Field(64, ge=4)
    n_select: int = Field(64, ge=4)
    n_test: int = Field(100, ge=4)
    ks: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    n_random: int = Field(5, ge=1)

    def trials(self) -> list[Trial]:
        """One trial for every organism alone, and one for each of its fine-tunes."""
        own = {name: getattr(self, name) for name in ("n_pairs", "n_select", "n_test", "ks", "n_random")}
        return [
            Trial(kind=kind, seed=seed, finetune=finetune, **own)
            for kind in self.kinds
            for seed in self.seeds or SEEDS[kind]
            for finetune in (None, *self.finetunes)
        ]


@dataclass(frozen=True)
class Located:
    """Tables of all trials below each other, with `kind`, `seed` and `finetune` ("" for the aligned model)."""

    plan: Plan
    tables: dict[str, pd.DataFrame]


def run_study(
    plan: Plan, *, out: Path | str = "results", workers: int | None = None, progress: bool = True
) -> Located:
    """Run what is missing of the plan; organisms of text and their fine-tunes are built first.

    Raises UserError naming a trial that failed, after the others have been run and kept.
    """
    trials = plan.trials()
    for trial in trials:
        trial.subject.prepare(trial.finetune, progress=progress)
    found = in_processes(
        trials,
        partial(keep_trial, out=Path(out)),
        describe,
        label="patching trials",
        workers=workers,
        progress=progress,
    )
    return Located(
        plan, {name: _stacked(name, trials, [found[trial] for trial in trials]) for name in TABLES}
    )


def keep_trial(trial: Trial, out: Path) -> Path:
    """Run a trial unless it is there; returns its directory."""
    stages = ("aligned", *([trial.finetune] if trial.finetune else []))
    weights: dict[str, Path | str] = {
        stage: Checkpoint.parse(trial.subject.name(stage)).fingerprint() for stage in stages
    }
    with open_run(out, "patching-trials", describe(trial), trial, weights, SOURCES) as run:
        if not run.finished:
            result = run_trial(trial)
            for name in TABLES:
                save_table(run.file(f"{name}.parquet"), getattr(result, name))
        return run.finish()


def describe(trial: Trial) -> str:
    """A readable name."""
    return f"{trial.kind} seed {trial.seed} {trial.finetune or 'aligned'}"


def _stacked(name: str, trials: Sequence[Trial], directories: Sequence[Path]) -> pd.DataFrame:
    tables = []
    for trial, directory in zip(trials, directories, strict=True):
        table = load_table(directory / f"{name}.parquet")
        if len(table):
            tables.append(table.assign(kind=trial.kind, seed=trial.seed, finetune=trial.finetune or ""))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()

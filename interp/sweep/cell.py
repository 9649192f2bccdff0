"""What becomes of one cell? Computed once, kept under the hash of its config, inputs and code; a kill costs the steps since its last checkpoint.

The result lies in `<out>/sweep-<experiment>/<date>-<label>-<hash8>/` (`interp.store`): what the experiment's `run(config)` returned, tables as
Parquet and CSV, all else as JSON. A `run` that takes `work` is given a directory of the unfinished result, which survives a kill: a
fine-tune that saves its checkpoints there resumes. Beside the results, `.cells/<hash8>.json` says who works on the cell, or how it failed.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import filelock
import pandas as pd
from pydantic import BaseModel

from interp.errors import ResultError, UserError
from interp.files import load_json, save_json, save_table
from interp.store import Run, find_run, identify, open_run
from interp.sweep.grid import Cell

State = Literal["finished", "running", "failed", "interrupted", "queued", "waiting", "damaged"]
CODE = (
    "data", "models", "geometry", "methods", "evals", "organisms", "defence", "study", "steering_study", "locate", "narrow", "benign_audio",
)  # fmt: skip


@dataclass(frozen=True)
class Status:
    """What is known of a cell: its state, where its result is, what it says of itself, its log and its scheduler's job."""

    state: State
    path: Path | None = None
    detail: str = ""
    log: str = ""
    job: str = ""


@dataclass(frozen=True)
class Place:
    """Where a cell's result, lock and note are."""

    home: Path
    digest: str

    @property
    def note(self) -> Path:
        """Who works on the cell, or how it failed."""
        return self.home / ".cells" / f"{self.digest[:8]}.json"

    @property
    def lock(self) -> Path:
        """Held while the cell is computed."""
        return self.home / f".lock-{self.digest[:8]}"


def place_of(cell: Cell, out: Path) -> Place:
    """Where a cell belongs; reads the code, not the result."""
    _, digest = identify(*_identity(cell))
    return Place(Path(out) / study_of(cell), digest)


def study_of(cell: Cell) -> str:
    """The directory of an experiment's cells under `out`."""
    return f"sweep-{cell.script.rpartition('.')[2]}"


def _identity(cell: Cell) -> tuple[str, Any, Mapping[str, Path | str], list[Any]]:
    module, config = cell.module(), cell.config()
    inputs: Mapping[str, Path | str] = getattr(module, "inputs", lambda config: {})(config)
    library = Path(__file__).parents[1]
    return study_of(cell), config, inputs, [module, *(library / name for name in CODE)]


def run_cell(cell: Cell, out: Path | str, log: str = "") -> Path:
    """Compute a cell unless its result is there; returns the result's directory.

    Raises whatever the experiment raises, after noting it; what was computed so far stays for the next attempt.
    """
    place = place_of(cell, Path(out))
    study, config, inputs, sources = _identity(cell)
    with open_run(out, study, cell.label, config, inputs, sources) as run:
        if run.finished:
            return run.path
        note(place, "running", cell, log=log)
        try:
            parameters = inspect.signature(cell.module().run).parameters
            options: dict[str, Any] = {"progress": False} if "progress" in parameters else {}
            if "out" in parameters:
                options["out"] = Path(out)
            if "work" in parameters:
                options["work"] = run.file("work/x").parent
            start = time.monotonic()
            keep(run, cell.module().run(config, **options))
            run.save_json(
                "cell.json",
                {"script": cell.script, "fields": dict(cell.fields), "seconds": time.monotonic() - start},
            )
            path = run.finish()
        except Exception as error:
            note(place, "failed", cell, log=log, error=f"{type(error).__name__}: {error}")
            raise
    place.note.unlink(missing_ok=True)
    return path


def keep(run: Run, result: Any) -> None:
    """Save what an experiment returned: a table, a value, or a mapping or dataclass of tables and JSON values.

    A table within a mapping is named by both, `geometry-spectra`. Raises ResultError for what has no such form.
    """
    values = {}
    for name, part in _leaves(result):
        if isinstance(part, pd.DataFrame):
            save_table(run.file(f"{name}.parquet"), part)
            with run.file(f"{name}.csv").open("w", encoding="utf-8") as file:
                part.to_csv(file, index=False)
        else:
            values[name] = part.model_dump(mode="json") if isinstance(part, BaseModel) else part
    try:
        save_json(run.file("values.json"), values)
    except TypeError as error:
        raise ResultError(
            f"what the experiment returned cannot be kept ({error}); return tables or JSON values"
        ) from error


def _leaves(part: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Tables and values by name."""
    if hasattr(part, "to_frame") and not isinstance(part, pd.DataFrame):
        part = part.to_frame()
    elif dataclasses.is_dataclass(part):
        part = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    if not isinstance(part, Mapping):
        yield name or "result", part
        return
    for key, inner in part.items():
        yield from _leaves(inner, f"{name}-{key}" if name else str(key))


def note(place: Place, state: State, cell: Cell, *, job: str = "", log: str = "", error: str = "") -> None:
    """Say who works on a cell; a full disk must not hide the error that is being noted."""
    record = {
        "state": state, "label": cell.label, "job": job or _slurm_job(), "error": error,
        "log": log, "host": socket.gethostname(), "pid": os.getpid(), "time": time.time(),
    }  # fmt: skip
    try:
        place.note.parent.mkdir(parents=True, exist_ok=True)
        save_json(place.note, record)
    except (OSError, ResultError):
        if state != "failed":
            raise


def _slurm_job() -> str:
    """The id of the Slurm job that this process runs in, as squeue prints it; empty outside of one."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")


def status(cell: Cell, out: Path, jobs: Mapping[str, str] | None = None) -> Status:
    """What is known of a cell.

    jobs: states of the scheduler's jobs by id, such as `{"12_0": "RUNNING"}`.
    """
    place = place_of(cell, Path(out))
    try:
        finished = find_run(place.home, place.digest)
    except ResultError as error:
        return Status("damaged", None, str(error))
    if finished is not None:
        return Status("finished", finished)
    try:
        record = load_json(place.note) if place.note.is_file() else {}
    except ResultError:
        record = {}
    job, log = str(record.get("job", "")), str(record.get("log", ""))
    if _held(place.lock):
        return Status("running", None, f"job {job}" if job else f"process {record.get('pid', '?')}", log, job)
    if job and (now := (jobs or {}).get(job)):
        state: State = "running" if now == "RUNNING" else "queued"
        return Status(state, None, f"job {job} {now.lower()}", log, job)
    if record.get("state") == "failed":
        return Status("failed", None, str(record.get("error", "")), log, job)
    if record:
        return Status("interrupted", None, f"{'job ' + job if job else 'its process'} is gone", log, job)
    return Status("waiting")


def _held(path: Path) -> bool:
    """Whether a living process holds the lock: what a killed one held is free, whatever file it left."""
    if not path.exists():
        return False
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return True
    except OSError as error:
        raise UserError(f"{path}: the lock cannot be read ({error.strerror})") from error
    lock.release()
    return False

"""Where do the cells run? Through submitit: in processes of this machine, or as jobs of Slurm, by the same code.

A job is a cell and nothing else: whatever is killed, preempted or requeued starts `run_cell` again, which finds its result or its last
checkpoint. Slurm is told to requeue; the signal before a time limit or a preemption is answered by submitit with a requeue too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from interp.errors import UserError
from interp.sweep.cell import Status, note, place_of, run_cell, status
from interp.sweep.grid import Cell, Slurm

LOGS = "%j"
POLL_SECONDS = 0.2
# local jobs end when they are done; submitit wants a limit all the same
A_MONTH = 60 * 24 * 30


class Job:
    """What submitit runs; picklable, and requeued as it is."""

    def __init__(self, cell: Cell, out: Path) -> None:
        self.cell, self.out = cell, out

    def __call__(self) -> str:
        """Compute the cell; returns the directory of its result."""
        import submitit

        return str(run_cell(self.cell, self.out, str(submitit.JobEnvironment().paths.stderr)))

    def checkpoint(self) -> Any:
        """Called by submitit before it requeues the job: the cell's own files are its checkpoint."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)

    __submitit_checkpoint__ = checkpoint


def jobs_of(cells: Sequence[Cell], out: Path) -> dict[str, str]:
    """States of the scheduler's jobs, which is asked only where an unfinished cell was given to one."""
    given = any(status(cell, out).job for cell in cells)
    return slurm_jobs() if given and shutil.which("squeue") is not None else {}


def slurm_jobs() -> dict[str, str]:
    """States of this user's jobs by id, array tasks one by one; raises UserError when Slurm does not answer."""
    command = ["squeue", "--me", "-r", "-h", "-o", "%i %T"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise UserError(f"squeue failed: {' '.join(done.stderr.split()) or done.returncode}")
    return dict(line.split() for line in done.stdout.splitlines() if line.strip())


def unfinished(cells: Sequence[Cell], out: Path) -> tuple[list[Cell], dict[Cell, Status]]:
    """The cells that nobody has finished or works on, and the status of all; raises UserError for a damaged result."""
    jobs = jobs_of(cells, out)
    found = {id(cell): status(cell, out, jobs) for cell in cells}
    for cell in cells:
        if found[id(cell)].state == "damaged":
            raise UserError(f"{cell.label}: {found[id(cell)].detail}")
    todo = [cell for cell in cells if found[id(cell)].state not in ("finished", "running", "queued")]
    return todo, {cell: found[id(cell)] for cell in cells}


def run_local(
    cells: Sequence[Cell],
    out: Path,
    *,
    workers: int,
    threads: int | None = 1,
    said: Callable[[Cell, Status], None] = lambda cell, found: None,
) -> dict[str, Status]:
    """Run cells in processes, at most `workers` at once; returns the status of those that did not finish, by label.

    threads: of each process, None leaves it to torch. said: told of every cell that ended.
    """
    import submitit

    if not cells:
        return {}
    executor = submitit.LocalExecutor(folder=_folder(cells[0], out))
    executor.update_parameters(timeout_min=A_MONTH)
    waiting = list(cells)
    live: dict[Any, Any] = {}
    failed: dict[str, Status] = {}
    with _environment({} if threads is None else {"OMP_NUM_THREADS": str(threads)}):
        try:
            while waiting or live:
                while waiting and len(live) < max(1, workers):
                    cell = waiting.pop(0)
                    job = executor.submit(Job(cell, out))
                    live[job] = cell
                for job in [job for job in live if job.done()]:
                    cell = live.pop(job)
                    found = status(cell, out)
                    if found.state != "finished":
                        found = _explained(found, job)
                        failed[cell.label] = found
                    said(cell, found)
                time.sleep(POLL_SECONDS)
        except BaseException:
            for job in live:
                job.cancel(check=False)
            raise
    return failed


def _explained(found: Status, job: Any) -> Status:
    """The status with the job's log, and what the log ends in where the cell could not say anything itself."""
    log = str(job.paths.stderr)
    if found.state == "failed" and found.detail:
        return Status("failed", None, found.detail, found.log or log)
    text = Path(log).read_text(encoding="utf-8", errors="replace") if Path(log).is_file() else ""
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "nothing was logged")
    return Status("failed", None, f"ended without a result: {last}", log)


def submit_slurm(cells: Sequence[Cell], out: Path, slurm: Slurm, *, workers: int) -> list[str]:
    """Submit cells as one job array of which at most `workers` run at once; returns the job ids.

    Raises UserError where there is no Slurm or it refuses the job.
    """
    import submitit

    if shutil.which("sbatch") is None:
        raise UserError(
            "no Slurm here (sbatch is not on the path); leave --slurm away to run on this machine"
        )
    if not cells:
        return []
    executor = submitit.SlurmExecutor(folder=_folder(cells[0], out), max_num_timeout=10_000)
    options: dict[str, Any] = {
        "time": slurm.minutes, "cpus_per_task": slurm.cpus, "job_name": _folder(cells[0], out).parent.parent.name,
        "array_parallelism": max(1, workers), "signal_delay_s": 90 if slurm.minutes > 5 else 20,
        "setup": list(slurm.setup), "additional_parameters": {"requeue": True, **slurm.extra},
    }  # fmt: skip
    if slurm.partition:
        options["partition"] = slurm.partition
    if slurm.gpus:
        options["gpus_per_node"] = slurm.gpus
    if slurm.memory_gb:
        options["mem"] = f"{slurm.memory_gb}GB"
    try:
        executor.update_parameters(**options)
        with executor.batch():
            jobs = [executor.submit(Job(cell, out)) for cell in cells]
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        raise UserError(f"Slurm refused the jobs: {' '.join(str(error).split())}") from error
    for cell, job in zip(cells, jobs, strict=True):
        place = place_of(cell, out)
        # a job that started at once has noted itself already
        if not place.note.is_file() or status(cell, out).state != "running":
            note(place, "queued", cell, job=job.job_id, log=str(job.paths.stderr))
    return [job.job_id for job in jobs]


def _folder(cell: Cell, out: Path) -> Path:
    return (place_of(cell, out).home / ".cells" / LOGS).resolve()


@contextmanager
def _environment(values: Mapping[str, str]) -> Any:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

"""How does an experiment come out over a grid of settings? Cells in processes here or as Slurm jobs, computed once, resumed, named when they fail.

`interp run sweep GRID.yaml` or `python -m experiments.sweep GRID.yaml`; `--slurm` submits the same cells to Slurm, `--status` shows a table
that follows them. Started again, a sweep runs what is missing: finished cells are skipped, killed ones go on from their last
checkpoint. The engine is interp/sweep; the file's form is in interp/sweep/grid.py.
"""

import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import pandas as pd
import typer

from interp import cli, scripts
from interp.errors import UserError
from interp.files import atomic_write, load_json
from interp.sweep.cell import Status, status
from interp.sweep.grid import Sweep, read_sweep
from interp.sweep.launch import jobs_of, run_local, submit_slurm, unfinished

if TYPE_CHECKING:
    from rich.table import Table

    from interp.sweep.grid import Cell

REFRESH_SECONDS = 2.0


def run(
    sweep: Sweep, out: Path, *, workers: int, slurm: bool = False, threads: int | None = 1
) -> dict[str, Status]:
    """Run what is missing; returns the cells that failed by label, of a Slurm sweep none: its jobs are only submitted."""
    for line in sweep.duplicates:
        print(f"given twice, run once: {line}", file=sys.stderr)
    todo, known = unfinished(sweep.cells, out)
    counts = Counter(found.state for found in known.values())
    print(f"{len(sweep.cells)} cells: " + ", ".join(f"{n} {state}" for state, n in counts.items()))
    if slurm:
        jobs = submit_slurm(todo, out, sweep.slurm, workers=workers)
        print(f"submitted {len(jobs)} jobs{': ' + jobs[0] + ' …' if jobs else ''}; follow them with --status")
        return {}
    return run_local(todo, out, workers=workers, threads=threads, said=_say)


def _say(cell: "Cell", found: Status) -> None:
    where = f"  {found.path}" if found.path else f"  {found.detail}  (log: {found.log})"
    print(f"{found.state:<9} {cell.label}{where}", flush=True)


def collect(sweep: Sweep, out: Path) -> pd.DataFrame:
    """One row a finished cell: its fields, the single values its experiment returned, and its directory."""
    rows = []
    for cell in sweep.cells:
        found = status(cell, out)
        if found.state != "finished" or found.path is None:
            continue
        values = load_json(found.path / "values.json")
        single = {k: v for k, v in values.items() if isinstance(v, str | int | float | bool)}
        rows.append({**cell.fields, **single, "directory": str(found.path)})
    return pd.DataFrame(rows)


def table(sweep: Sweep, out: Path) -> "tuple[Table, Counter[str]]":
    """The cells' states as a table, and how many there are of each."""
    from rich.table import Table

    jobs = jobs_of(sweep.cells, out)
    shown = Table("cell", "state", "what", "log", box=None, padding=(0, 2, 0, 0))
    colours = {"finished": "green", "failed": "red", "damaged": "red", "running": "blue"}
    counts: Counter[str] = Counter()
    for cell in sweep.cells:
        found = status(cell, out, jobs)
        counts[found.state] += 1
        what = str(found.path) if found.path else found.detail
        log = found.log if found.state in ("failed", "interrupted", "running") else ""
        shown.add_row(cell.label, f"[{colours.get(found.state, 'default')}]{found.state}", what, log)
    shown.caption = ", ".join(f"{n} {state}" for state, n in counts.items())
    return shown, counts


def follow(sweep: Sweep, out: Path) -> None:
    """Show the table; on a terminal again and again until no cell is running or queued."""
    from rich.console import Console
    from rich.live import Live

    console = Console(width=None if sys.stdout.isatty() else 200)
    first, counts = table(sweep, out)
    if not sys.stdout.isatty():
        console.print(first)
        return
    with Live(first, console=console, auto_refresh=False) as live:
        while counts["running"] or counts["queued"]:
            time.sleep(REFRESH_SECONDS)
            first, counts = table(sweep, out)
            live.update(first, refresh=True)


def experiment(
    file: Annotated[
        Path, typer.Argument(metavar="GRID", help="A YAML file: experiment, base, grid, cells, slurm.")
    ],
    show: Annotated[bool, typer.Option("--status", help="Show how far the cells are, and stop.")] = False,
    slurm: Annotated[bool, typer.Option("--slurm", help="Submit to Slurm instead of running here.")] = False,
    partition: Annotated[str | None, typer.Option(help="Slurm partition; else the file's.")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="GPUs of a job; else the file's.")] = None,
    minutes: Annotated[int | None, typer.Option(min=1, help="Time limit of a job; else the file's.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Cells at once; one a core by default.")] = None,
    threads: Annotated[
        int, typer.Option(min=0, help="Threads of a local process; 0 leaves it to torch.")
    ] = 1,
    save: Annotated[
        Path | None, typer.Option("--table", help="Write the finished cells to this CSV.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where results are kept.")] = Path("results"),
) -> None:
    """Run an experiment over a grid of settings, here or on Slurm."""
    sweep = read_sweep(file)
    asked = {"partition": partition, "gpus": gpus, "minutes": minutes}
    given = {name: value for name, value in asked.items() if value is not None}
    sweep = Sweep(sweep.name, sweep.cells, sweep.duplicates, sweep.slurm.model_copy(update=given))
    failed: dict[str, Status] = {}
    if show:
        follow(sweep, out)
    else:
        at_once = workers or (len(sweep.cells) if slurm else os.cpu_count() or 1)
        failed = run(sweep, out, workers=at_once, slurm=slurm, threads=threads or None)
    if save is not None:
        with atomic_write(save) as aside:
            collect(sweep, out).to_csv(aside, index=False)
    if failed:
        named = "; ".join(f"{label}: {found.detail} (log: {found.log})" for label, found in failed.items())
        raise UserError(f"{len(failed)} of {len(sweep.cells)} cells failed, the others are kept: {named}")


def main(argv: Sequence[str]) -> int:
    """Run the sweep with a command line."""
    return scripts.call(
        experiment, argv, "interp run sweep", "interp run sweep experiments/recipes/ranks.yaml"
    )


if __name__ == "__main__":
    raise SystemExit(cli.main(["run", "sweep", *sys.argv[1:]]))

"""A sweep is checked before it starts, runs each cell once, resumes what was killed, names what failed, and loses nothing."""

import inspect
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import pandas as pd
import pytest
import yaml

from experiments import sweep as command
from interp import cli
from interp.errors import ResultError, UserError
from interp.files import load_table
from interp.narrow.grid import Grid as NarrowGrid
from interp.store import load_run, open_run, verify
from interp.sweep import grid
from interp.sweep.cell import keep, place_of, run_cell, status
from interp.sweep.grid import Slurm, read_sweep
from interp.sweep.launch import Job, run_local, unfinished

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The experiments of tests/sweep_toys, here and in the processes of a sweep."""
    monkeypatch.setattr(grid, "PACKAGES", ("sweep_toys",))
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    )


def write(tmp_path: Path, **fields: object) -> Path:
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({"experiment": "counting", **fields}, sort_keys=False))
    return path


def states(path: Path, out: Path) -> list[str]:
    return [status(cell, out).state for cell in read_sweep(path).cells]


def test_a_grid_is_every_combination_and_the_single_cells_once(tmp_path):
    path = write(
        tmp_path,
        base={"steps": 4},
        grid={"value": [1, 2], "seconds": [0.0, 0.1]},
        cells=[{"value": 9}, {"value": 2}],
    )
    sweep = read_sweep(path)
    assert [cell.label for cell in sweep.cells] == [
        "value=1, seconds=0.0", "value=1, seconds=0.1", "value=2, seconds=0.0", "value=2, seconds=0.1", "value=9",
    ]  # fmt: skip
    assert sweep.duplicates == ("cell 6 (value=2) is cell 3",)
    assert all(cell.fields["steps"] == 4 for cell in sweep.cells)
    assert sweep.slurm == Slurm()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"grid": {"value": [1, -1], "steps": [0]}}, "2 of 2 cells are wrong: cell 1 (value=1, steps=0): steps: Input should"),
        ({"grid": {"vlaue": [1]}}, "cell 1 (vlaue=1): vlaue: Extra inputs are not permitted"),
        ({"grid": {"value": []}}, "'value' has no values"),
        ({"grid": {"value": 3}}, "grid.value: Input should be a valid list"),
        ({}, "has no cells"),
        ({"experiment": "couting", "grid": {"value": [1]}}, "did you mean counting?"),
        ({"grid": {"value": [1]}, "slurm": {"gpu": 1}}, "slurm.gpu: Extra inputs"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_before_anything_runs(tmp_path, fields, said, capsys):
    path = write(tmp_path, **fields)
    with pytest.raises(UserError) as error:
        read_sweep(path)
    assert said in str(error.value)
    for content in ("a: [1", "- 1", ""):
        path.write_text(content)
        with pytest.raises(UserError, match=r"grid\.yaml"):
            read_sweep(path)
    assert cli.main(["run", "sweep", str(path), "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


def test_cells_run_once_in_processes_and_are_skipped_afterwards(tmp_path, capsys):
    path, out, table = write(tmp_path, grid={"value": [1, 2, 3]}), tmp_path / "out", tmp_path / "all.csv"
    arguments = ["run", "sweep", str(path), "--out", str(out), "--workers", "2", "--table", str(table)]
    assert cli.main(arguments) == 0
    assert states(path, out) == ["finished"] * 3
    found = [status(cell, out).path for cell in read_sweep(path).cells]
    for directory, value in zip(found, (1, 2, 3), strict=True):
        run = load_run(directory)
        verify(run.path)
        assert run.load_json("values.json") == {"total": 5 * value, "processes": 1}
        assert run.load_table("curve.parquet")["total"].tolist() == [value * i for i in range(5)]
    text = table.read_text()
    assert text.count("\n") == 4 and "total" in text.splitlines()[0]
    before = sorted(p.stat().st_mtime_ns for p in out.rglob("*.parquet"))
    capsys.readouterr()
    assert cli.main(arguments) == 0
    assert "3 cells: 3 finished" in capsys.readouterr().out
    assert sorted(p.stat().st_mtime_ns for p in out.rglob("*.parquet")) == before
    assert not list((out / "sweep-counting").glob(".cells/*.json")), "no note is left of what went well"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("nan", "ValueError: the loss became NaN"),
        ("disk", "No space left on device"),
        ("kill", "ended without a result"),
    ],
)
def test_a_failed_cell_is_named_with_its_log_and_goes_on_where_it_stopped(tmp_path, fault, said, capsys):
    path, out = (
        write(tmp_path, cells=[{"value": 1}, {"value": 2, "fault": fault}, {"value": 3}]),
        tmp_path / "out",
    )
    arguments = ["run", "sweep", str(path), "--out", str(out), "--workers", "1"]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert f"1 of 3 cells failed, the others are kept: value=2, fault={fault}: " in error and said in error
    log = Path(error.rpartition("(log: ")[2].rstrip().rstrip(")"))
    assert log.is_file()
    if fault != "kill":
        assert said.partition(": ")[2] in log.read_text() or said in log.read_text()
    assert states(path, out) == ["finished", "interrupted" if fault == "kill" else "failed", "finished"]
    assert cli.main(["run", "sweep", str(path), "--out", str(out), "--status"]) == 0
    shown = capsys.readouterr().out
    assert "2 finished" in shown and ("interrupted" if fault == "kill" else "failed") in shown
    assert cli.main(arguments) == 0
    again = status(read_sweep(path).cells[1], out)
    assert again.state == "finished" and again.path is not None
    values = json.loads((again.path / "values.json").read_text())
    assert values == {"total": 10, "processes": 2}, "three steps of the first attempt were kept"


def test_a_cell_that_somebody_works_on_is_left_alone_and_a_stale_lock_is_not(tmp_path):
    path, out = write(tmp_path, grid={"value": [1, 2]}), tmp_path / "out"
    cells = read_sweep(path).cells
    place = place_of(cells[0], out)
    place.home.mkdir(parents=True)
    place.lock.touch()  # what a killed process leaves
    (place.home / ".cells").mkdir()
    place_of(cells[1], out).note.write_text("{half a no")
    assert states(path, out) == ["waiting", "waiting"]
    with filelock.FileLock(place.lock):
        code = (
            "import sys; sys.path[:0] = sys.argv[1:3]\n"
            "from interp.sweep import grid; grid.PACKAGES = ('sweep_toys',)\n"
            "from interp.sweep.launch import unfinished\n"
            "from pathlib import Path\n"
            "todo, known = unfinished(grid.read_sweep(sys.argv[3]).cells, Path(sys.argv[4]))\n"
            "print([c.label for c in todo], [s.state for s in known.values()])"
        )
        command = [sys.executable, "-c", code, str(HERE.parent), str(HERE), str(path), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "['value=2'] ['running', 'waiting']"
    assert run_local(cells, out, workers=2) == {}
    assert states(path, out) == ["finished"] * 2


def test_two_sweeps_at_once_compute_each_cell_once(tmp_path):
    path, out = write(tmp_path, base={"seconds": 0.05}, grid={"value": [1, 2, 3]}), tmp_path / "out"
    code = "import sys; sys.path[:0] = sys.argv[1:3]\nfrom interp.sweep import grid; grid.PACKAGES = ('sweep_toys',)\nfrom interp import cli; sys.exit(cli.main(sys.argv[3:]))"
    arguments = ["run", "sweep", str(path), "--out", str(out), "--workers", "2"]
    command = [sys.executable, "-c", code, str(HERE.parent), str(HERE), *arguments]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0], [p.stderr.read() for p in both]
    assert states(path, out) == ["finished"] * 3
    for cell in read_sweep(path).cells:
        found = status(cell, out).path
        assert found is not None and json.loads((found / "values.json").read_text())["processes"] == 1
    assert len([p for p in (out / "sweep-counting").iterdir() if p.is_dir() and p.name[0] != "."]) == 3 + 1, (
        "and latest"
    )


def test_a_damaged_result_is_named_and_kept(tmp_path, capsys):
    path, out = write(tmp_path, grid={"value": [1]}), tmp_path / "out"
    directory = run_cell(read_sweep(path).cells[0], out)
    (directory / "values.json").write_text("{}")
    assert states(path, out) == ["damaged"]
    assert cli.main(["run", "sweep", str(path), "--out", str(out)]) == 2
    assert "values.json" in capsys.readouterr().err and (directory / "curve.csv").exists()


def test_changed_code_or_input_is_another_cell(tmp_path, monkeypatch):
    cell = read_sweep(write(tmp_path, grid={"value": [1]})).cells[0]
    first = place_of(cell, tmp_path).digest
    assert place_of(cell, tmp_path).digest == first
    monkeypatch.setattr(cell.module(), "inputs", lambda config: {"weights": "abc"}, raising=False)
    assert place_of(cell, tmp_path).digest != first


def test_a_preempted_job_is_submitted_again_as_it_is(tmp_path):
    job = Job(read_sweep(write(tmp_path, grid={"value": [1]})).cells[0], tmp_path)
    again = job.checkpoint()
    assert again.function is job and not again.args


def test_a_terminal_that_is_interrupted_stops_its_jobs_and_loses_nothing(tmp_path):
    path, out = write(tmp_path, cells=[{"value": 1, "steps": 400, "seconds": 0.1}]), tmp_path / "out"
    code = "import sys; sys.path[:0] = sys.argv[1:3]\nfrom interp.sweep import grid; grid.PACKAGES = ('sweep_toys',)\nfrom interp import cli; sys.exit(cli.main(sys.argv[3:]))"
    command = [
        sys.executable,
        "-c",
        code,
        str(HERE.parent),
        str(HERE),
        "run",
        "sweep",
        str(path),
        "--out",
        str(out),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(out.rglob("steps.txt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == cli.INTERRUPTED
    deadline = time.monotonic() + 30
    while states(path, out) == ["running"] and time.monotonic() < deadline:
        time.sleep(0.1)
    assert states(path, out) == ["interrupted"]
    steps = len(next(out.rglob("steps.txt")).read_text().splitlines())
    assert 0 < steps < 400
    todo, _ = unfinished(read_sweep(path).cells, out)
    assert len(todo) == 1


def test_the_table_of_states_is_printed_once_where_nobody_looks(tmp_path, capsys):
    path = write(tmp_path, grid={"value": [1, 2]})
    command.follow(read_sweep(path), tmp_path / "out")
    text = capsys.readouterr().out
    assert "value=1" in text and "2 waiting" in text


@pytest.mark.parametrize("name", ["vlm_narrow", "audio_benign", "spf", "sarsteer", "patching"])
def test_the_papers_experiments_can_be_swept(name, tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "PACKAGES", ("experiments",))
    path = tmp_path / "grid.yaml"
    field = {"n_test": [20, 40]} if name != "vlm_narrow" else {"rank": [8, 16]}
    path.write_text(yaml.safe_dump({"experiment": name, "grid": field}))
    cells = read_sweep(path).cells
    assert len(cells) == 2 and {state.state for state in (status(cell, tmp_path) for cell in cells)} == {"waiting"}  # fmt: skip
    assert {"out", "progress"} <= set(inspect.signature(cells[0].module().run).parameters)


def test_what_a_study_returns_is_kept_whole(tmp_path):
    spectra = pd.DataFrame({"of": ["Δ"], "energy": [1.0]})
    nested = {
        "grid": NarrowGrid(few=1), "outcomes": spectra, "geometry": {"spectra": spectra}, "sentences": ["a"],
        "settings": {"spf": {"k": 4}}, "nothing": {},
    }  # fmt: skip
    with open_run(tmp_path, "study", "one", NarrowGrid(), {}, [HERE]) as run:
        keep(run, nested)
        path = run.finish()
    pd.testing.assert_frame_equal(load_table(path / "geometry-spectra.parquet"), spectra)
    assert (path / "outcomes.csv").exists()
    values = json.loads((path / "values.json").read_text())
    assert values["grid"]["few"] == 1 and values["sentences"] == ["a"] and values["settings-spf-k"] == 4
    with open_run(tmp_path, "study", "two", NarrowGrid(few=2), {}, [HERE]) as run, pytest.raises(ResultError, match="cannot be kept"):  # fmt: skip
        keep(run, {"model": object()})

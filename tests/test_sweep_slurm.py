"""On a real Slurm of one node: cells are submitted, killed mid-training, requeued, and end where an uninterrupted run ends."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from slurm_node import NoSlurm, slurm

from interp import cli
from interp.data.prompts import Prompt, PromptSet
from interp.sweep import grid
from interp.sweep.cell import run_cell, status
from interp.sweep.grid import read_sweep
from interp.sweep.launch import slurm_jobs

ROOT = Path(__file__).parents[1]
STEPS = 400


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    home = tmp_path_factory.mktemp("slurm")
    try:
        with slurm(home) as environment:
            yield environment
    except NoSlurm as reason:
        pytest.skip(f"no Slurm can be started here: {reason}")


@pytest.fixture
def lab(cluster: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny checkpoint, data, and a grid of two fine-tunes; the environment is that of the cluster."""
    # imported here: the counting test needs no torch
    import tiny

    from interp.models.finetune import save_checkpoint

    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, cluster[name])
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    save_checkpoint(tiny.model("llama"), tmp_path / "base")
    examples = [Prompt(f"w{i} w{i + 1}", id=str(i), response=f"w{i + 2} w{i + 3}") for i in range(16)]
    PromptSet(examples, "data").save(tmp_path / "data.jsonl")
    asked = [Prompt(f"w{i} w{i}", id=str(i), label="harmful") for i in range(4)]
    PromptSet(asked, "ask").save(tmp_path / "ask.jsonl")
    fields = {"checkpoint": str(tmp_path / "base"), "data": str(tmp_path / "data.jsonl"), "ask": str(tmp_path / "ask.jsonl"),
              "steps": STEPS, "save_every": 10, "lora_rank": 2, "max_new_tokens": 4}  # fmt: skip
    slurm_fields = {"cpus": 1, "minutes": 10, "partition": "tests"}
    content = {"experiment": "finetune", "base": fields, "grid": {"seed": [0, 1]}, "slurm": slurm_fields}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


def until(ready: object, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not ready():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"{what} took longer than {seconds} s; jobs: {slurm_jobs()}"
        time.sleep(0.2)


def weights(directory: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return load_file(directory / "work" / "tuned" / "adapter_model.safetensors")


def test_a_job_killed_in_training_is_requeued_and_ends_like_one_that_was_not(lab: Path, capsys):
    cells, out = read_sweep(lab / "grid.yaml").cells, lab / "out"
    arguments = ["run", "sweep", "grid.yaml", "--out", "out"]
    assert cli.main([*arguments, "--slurm"]) == 0
    assert "submitted 2 jobs" in capsys.readouterr().out

    def checkpoints() -> list[Path]:
        return [p for p in out.rglob("checkpoint-*/trainer_state.json") if "seed-0" not in str(p)]

    until(lambda: len({p.parents[1] for p in checkpoints()}) == 2, 120, "training")
    states = [status(cell, out, slurm_jobs()) for cell in cells]
    assert [found.state for found in states] == ["running", "running"], states
    assert cli.main([*arguments, "--slurm"]) == 0, "submitted twice, a cell is left to its job"
    assert "submitted 0 jobs" in capsys.readouterr().out
    assert cli.main([*arguments, "--status"]) == 0
    assert "2 running" in capsys.readouterr().out

    killed, preempted = (found.detail.split()[1] for found in states)
    # one is killed by the cluster and requeued, the other is told that its time is up, as before a preemption
    subprocess.run(["scontrol", "requeue", killed], check=True)
    subprocess.run(["scancel", "--signal=USR2", preempted], check=True)
    until(lambda: all(status(cell, out).state == "finished" for cell in cells), 240, "the requeued jobs")
    for cell in cells:
        found = status(cell, out).path
        assert found is not None
        straight = run_cell(cell, lab / "straight")
        first, second = weights(found), weights(straight)
        assert first.keys() == second.keys() and all((first[name] == second[name]).all() for name in first)
        assert json.loads((found / "values.json").read_text()) == json.loads(
            (straight / "values.json").read_text()
        )
    restarts = [
        line
        for job in (killed, preempted)
        for line in subprocess.run(
            ["scontrol", "show", "job", job], capture_output=True, text=True, check=True
        ).stdout.split()
        if line.startswith("Restarts=")
    ]
    assert restarts == ["Restarts=1", "Restarts=1"]


def test_a_job_that_died_is_named_and_submitted_again(lab: Path, capsys):
    fields = yaml.safe_load((lab / "grid.yaml").read_text())
    fields["grid"] = {"seed": [2]}
    fields["base"]["data"] = str(lab / "other.jsonl")
    shutil.copy(lab / "data.jsonl", lab / "other.jsonl")
    (lab / "grid.yaml").write_text(yaml.safe_dump(fields))
    cells, out = read_sweep(lab / "grid.yaml").cells, lab / "out"
    assert cli.main(["run", "sweep", "grid.yaml", "--out", "out", "--slurm", "--minutes", "7"]) == 0
    until(lambda: list(out.rglob("checkpoint-*/trainer_state.json")), 120, "training")
    job = status(cells[0], out, slurm_jobs()).detail.split()[1]
    subprocess.run(["scancel", "--signal=KILL", "--full", job], check=True)
    until(lambda: job not in slurm_jobs(), 60, "the kill")
    found = status(cells[0], out, slurm_jobs())
    assert found.state == "interrupted" and "is gone" in found.detail and Path(found.log).is_file()
    capsys.readouterr()
    assert cli.main(["run", "sweep", "grid.yaml", "--out", "out", "--slurm"]) == 0
    assert "submitted 1 jobs" in capsys.readouterr().out
    until(lambda: status(cells[0], out).state == "finished", 120, "the second job")


def test_counted_steps_survive_a_requeue_and_nothing_is_counted_twice(cluster, tmp_path, monkeypatch, capsys):
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, cluster[name])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests"), str(ROOT)]))
    monkeypatch.setattr(grid, "PACKAGES", ("sweep_toys",))
    monkeypatch.chdir(tmp_path)
    fields = {"base": {"steps": 60, "seconds": 0.25}, "cells": [{"value": 1}, {"value": 2}]}
    fields["slurm"] = {"cpus": 1, "minutes": 10}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({"experiment": "counting", **fields}))
    cells, out = read_sweep(tmp_path / "grid.yaml").cells, tmp_path / "out"
    arguments = ["run", "sweep", "grid.yaml", "--out", "out"]
    assert cli.main([*arguments, "--slurm"]) == 0
    until(lambda: len(list(out.rglob("steps.txt"))) == 2, 240, "the start")
    states = [status(cell, out, slurm_jobs()) for cell in cells]
    assert [found.state for found in states] == ["running", "running"], states
    assert cli.main([*arguments, "--slurm"]) == 0, "submitted twice, a cell is left to its job"
    assert "submitted 0 jobs" in capsys.readouterr().out
    killed, preempted = (found.detail.split()[1] for found in states)
    subprocess.run(["scontrol", "requeue", killed], check=True)
    subprocess.run(["scancel", "--signal=USR2", preempted], check=True)
    until(lambda: all(status(cell, out).state == "finished" for cell in cells), 400, "the requeued jobs")
    for cell, value in zip(cells, (1, 2), strict=True):
        directory = status(cell, out).path
        assert directory is not None
        assert json.loads((directory / "values.json").read_text()) == {"total": 60 * value, "processes": 2}


def test_what_slurm_refuses_is_one_line(lab: Path, capsys):
    assert cli.main(["run", "sweep", "grid.yaml", "--out", "no", "--slurm", "--partition", "nowhere"]) == 2
    error = capsys.readouterr().err
    assert "error: Slurm refused the jobs" in error and "partition" in error

"""Whatever is killed, full, forbidden or shared: no half result looks whole, and nothing finished is lost."""

import errno
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interp import store
from interp.errors import ResultError
from interp.store import atomic_write, open_run, verify

ROOT = Path(__file__).parents[1]
from store_fixture import Steps, complete

# --- kill -9 ---

WORKER = """
import os, signal, sys
from pathlib import Path
import numpy as np
from interp import files, store

root, moment, log = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])

def die(): os.kill(os.getpid(), signal.SIGKILL)

def compute(name, value):
    with log.open("a") as file: file.write(name + "\\n")
    if moment == "during " + name: die()
    return value

def save(path, value):
    path.write_text(value[: len(value) // 2])
    if moment == "saving": die()
    path.write_text(value)

sync, rename, write_json, replace, unlink = files.sync, Path.rename, store.save_json, Path.replace, Path.unlink
def count(original, name, when, at):
    calls = 0
    def wrapped(*arguments, **options):
        nonlocal calls
        calls += 1
        if moment == f"{when} {name}" and at(*arguments): 
            if when == "after": original(*arguments, **options)
            die()
        return original(*arguments, **options)
    return wrapped
for when in ("before", "after"):
    store.save_json = count(store.save_json, "manifest", when, lambda path, value: path.name == "manifest.json")
    Path.rename = count(Path.rename, "rename", when, lambda path, target: path.name.startswith(".partial"))
    Path.replace = count(Path.replace, "latest", when, lambda path, target: target.name == "latest")
    Path.replace = count(Path.replace, "step", when, lambda path, target: target.name == "second.txt")

with store.open_run(root, "study", "x", {"n": 1}) as run:
    run.step("first.safetensors", lambda: compute("first", {"x": np.arange(1000.0)}))
    if moment == "between": die()
    run.step("second.txt", lambda: compute("second", "text" * 1000), save, Path.read_text)
print(run.path)
"""
MOMENTS = [
    "during first", "between", "during second", "saving", "before step", "after step",
    "before manifest", "after manifest", "before rename", "after rename", "before latest", "after latest",
]  # fmt: skip


@pytest.mark.parametrize("moment", MOMENTS)
def test_kill_nine_completes_nothing_and_loses_one_step(tmp_path: Path, moment: str) -> None:
    log, home = tmp_path / "log", tmp_path / "results" / "study"

    def work(when: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", textwrap.dedent(WORKER), str(tmp_path / "results"), when, str(log)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)

    killed = work(moment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    renamed = moment in ("after rename", "before latest", "after latest")
    assert len(complete(home)) == renamed
    for path in complete(home):
        verify(path)

    resumed = work("never")
    assert resumed.returncode == 0, resumed.stderr
    verify(resumed.stdout.strip())
    assert complete(home) == [Path(resumed.stdout.strip())]
    assert (home / "latest").resolve() == complete(home)[0].resolve()
    assert not [*home.rglob(".writing-*"), *home.glob(".partial-*")]
    lost = {
        "during first": ["first"],
        "during second": ["second"],
        "saving": ["second"],
        "before step": ["second"],
    }
    assert sorted(log.read_text().split()) == sorted(["first", "second", *lost.get(moment, [])])


# --- two processes ---


def _shared_run(root: Path, log: Path, barrier: Any) -> None:
    def compute() -> dict[str, Any]:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return {"x": np.arange(100_000.0)}

    barrier.wait()
    with open_run(root, "study", "x", {"n": 1}) as run:
        assert run.step("a.safetensors", compute)["x"].sum() == 4999950000.0
        run.step("b.safetensors", compute)


def test_two_processes_on_one_run_compute_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    arguments = (tmp_path / "results", tmp_path / "log", barrier)
    workers = [context.Process(target=_shared_run, args=arguments) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    pids = (tmp_path / "log").read_text().split()
    assert len(pids) == 2
    assert len(set(pids)) == 1
    (result,) = complete(tmp_path / "results" / "study")
    verify(result)


def test_waiting_is_said_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import threading

    with open_run(tmp_path, "study", "x", {"n": 1}) as run:
        other = threading.Thread(target=lambda: open_run(tmp_path, "study", "x", {"n": 1}).close())
        other.start()
        other.join(0.5)
        assert other.is_alive()
        run.finish()
        run.close()
        other.join(10)
    assert f"waiting: another process works on study {run.hash8}" in capsys.readouterr().err


# --- disks that refuse ---


def test_full_disk_is_one_line_and_leaves_no_half_file(tmp_path: Path) -> None:
    """A file size limit makes every real write past 64 kB fail, in Python and in safetensors' Rust alike."""

    def limited(size: int, work: Callable[[], object]) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            work()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    with pytest.raises(ResultError, match=r"big\.json: cannot be written \(File too large\)") as caught:
        limited(65536, lambda: store.save_json(tmp_path / "big.json", "x" * 200_000))
    assert "\n" not in str(caught.value)
    with pytest.raises(ResultError, match=r"big\.safetensors: cannot be written"):
        limited(65536, lambda: store.save_arrays(tmp_path / "big.safetensors", {"x": np.zeros(50_000)}))
    assert list(tmp_path.iterdir()) == []

    def study() -> None:
        with open_run(tmp_path, "study", "x", {"n": 1}) as run:
            run.step("small.json", lambda: [1])
            run.step("big.safetensors", lambda: {"x": np.zeros(50_000)})

    with pytest.raises(ResultError, match=r"big\.safetensors: cannot be written"):
        limited(65536, study)
    assert complete(tmp_path / "study") == []
    assert not list(tmp_path.rglob(".writing-*"))
    study()
    assert len(complete(tmp_path / "study")) == 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "mkdir", "replace", "rename"])
def test_every_refused_call_is_a_result_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(code, os.strerror(code), "somewhere")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(ResultError, match="cannot be written"):
            Steps().run(tmp_path)
    home = tmp_path / "study"
    assert not home.exists() or complete(home) == []
    steps = Steps()
    verify(steps.run(tmp_path).path)


def test_an_output_path_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResultError, match="cannot be written"):
        Steps().run(tmp_path / "file")
    with (
        pytest.raises(ResultError, match="cannot be written"),
        atomic_write(tmp_path / "file" / "a.txt") as aside,
    ):
        aside.write_text("x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_output_path(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ResultError, match="cannot be written"):
            Steps().run(tmp_path)
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc, which refuses even root")
def test_an_output_path_that_refuses_even_root() -> None:
    with pytest.raises(ResultError, match="cannot be written"):
        Steps().run(Path("/proc/interp-results"))


def test_unreadable_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match=r"absent\.jsonl: cannot be read"):
        Steps().run(tmp_path, inputs={"p": tmp_path / "absent.jsonl"})


def test_atomic_write_replaces_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "figure.pdf"
    with atomic_write(path) as aside:
        assert aside.suffix == ".pdf"
        aside.write_text("one")
    with pytest.raises(ValueError, match="no"), atomic_write(path) as aside:
        aside.write_text("two")
        raise ValueError("no")
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]

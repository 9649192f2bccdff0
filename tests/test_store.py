"""A result is complete or absent, whatever is killed, full, forbidden or shared; finished steps are never recomputed."""

import errno
import json
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

from interp import files, store
from interp.errors import ResultError
from interp.store import Run, atomic_write, load_run, open_run, verify

ROOT = Path(__file__).parents[1]


def complete(home: Path) -> list[Path]:
    """Whatever a person or a program would take for a finished result."""
    return [path for path in home.iterdir() if not path.name.startswith(".") and not path.is_symlink()]


class Steps:
    """Two steps and a plain file, counting what is computed."""

    def __init__(self) -> None:
        self.computed: list[str] = []

    def run(self, root: Path, **changes: Any) -> Run:
        arguments: dict[str, Any] = {"config": {"n": 3}, "slug": "a vs b", **changes}
        with open_run(root, "study", **arguments) as run:
            self.scores = run.step(
                "scores.safetensors", lambda: self._compute("scores", {"x": np.arange(3.0)})
            )
            self.words = run.step("words.json", lambda: self._compute("words", ["yes", "no"]))
            if not run.finished:
                run.save_json("result.json", {"ok": True})
        return run

    def _compute(self, name: str, value: Any) -> Any:
        self.computed.append(name)
        return value


def test_computes_once_and_loads_afterwards(tmp_path: Path) -> None:
    steps = Steps()
    first, second = steps.run(tmp_path), steps.run(tmp_path)
    assert steps.computed == ["scores", "words"]
    assert first.path == second.path
    assert second.finished
    np.testing.assert_array_equal(steps.scores["x"], [0.0, 1.0, 2.0])
    assert steps.words == ["yes", "no"]
    assert (tmp_path / "study" / "latest").resolve() == first.path.resolve()
    verify(first.path)


def test_directory_name_is_date_slug_hash(tmp_path: Path) -> None:
    run = Steps().run(tmp_path, slug="meta/Llama 3 vs ../x")
    assert run.path.name == f"{run.manifest['started'][:10]}-meta-Llama-3-vs-..-x-{run.hash8}"


def test_manifest_says_how_and_from_what(tmp_path: Path) -> None:
    source = tmp_path / "prompts.jsonl"
    source.write_text("{}\n")
    run = Steps().run(tmp_path, inputs={"prompts": source, "model": "abc"}, sources=[store, files])
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["files"].keys() == {"scores.safetensors", "words.json", "result.json"}
    assert manifest["config"] == {"n": 3}
    assert manifest["inputs"] == {"prompts": store.content_hash(source), "model": "abc"}
    assert manifest["sources"].keys() == {"interp.store", "interp.files"}
    assert {"python", "torch", "transformers"} <= manifest["versions"].keys()
    assert manifest["started"] <= manifest["finished"]
    assert manifest["command"]


def test_identity_is_config_inputs_and_sources(tmp_path: Path) -> None:
    source = tmp_path / "method.py"
    prompts = tmp_path / "prompts.jsonl"
    source.write_text("a = 1\n")
    prompts.write_text("{}\n")

    def hash8(**changes: Any) -> str:
        arguments: dict[str, Any] = {
            "config": {"n": 1},
            "inputs": {"p": prompts},
            "sources": [source],
            **changes,
        }
        with open_run(tmp_path / "results", "study", "x", **arguments) as run:
            return run.hash8

    base = hash8()
    assert hash8() == base
    assert hash8(config={"n": 2}) != base
    prompts.write_text("{}\n{}\n")
    changed_input = hash8()
    assert changed_input != base
    prompts.write_text("{}\n")
    source.write_text("a = 2\n")
    assert hash8() not in (base, changed_input)
    source.write_text("a = 1\n")
    assert hash8() == base


def test_two_sources_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "method.py").write_text("")
    sources = [tmp_path / "a" / "method.py", tmp_path / "b" / "method.py"]
    with pytest.raises(ResultError, match=r"two sources are called method\.py"):
        open_run(tmp_path, "study", "x", {}, sources=sources)


def test_a_package_is_hashed_with_all_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "phrases.json").write_text("[]")
    monkeypatch.syspath_prepend(tmp_path)
    import some_package

    def hash8() -> str:
        with open_run(tmp_path / "results", "study", "x", {}, sources=[some_package]) as run:
            return run.hash8

    before = hash8()
    (package / "__pycache__").mkdir(exist_ok=True)
    (package / "__pycache__" / "x.pyc").write_text("compiled")
    assert hash8() == before
    (package / "phrases.json").write_text('["no"]')
    assert hash8() != before


def test_an_exception_keeps_finished_steps_and_completes_nothing(tmp_path: Path) -> None:
    steps = Steps()
    with pytest.raises(ZeroDivisionError), open_run(tmp_path, "study", "x", {"n": 3}) as run:
        run.step("scores.safetensors", lambda: steps._compute("scores", {"x": np.zeros(2)}))
        run.step("words.json", lambda: 1 / 0)
    assert complete(tmp_path / "study") == []
    assert not (tmp_path / "study" / "latest").exists()
    steps.run(tmp_path)
    assert steps.computed == ["scores", "words"]


def test_a_step_may_be_a_directory(tmp_path: Path) -> None:
    def save(directory: Path, value: str) -> None:
        (directory / "deep").mkdir()
        (directory / "deep" / "a.txt").write_text(value)

    def load(directory: Path) -> str:
        return (directory / "deep" / "a.txt").read_text()

    with open_run(tmp_path, "study", "x", {}) as run:
        assert run.step("tuned/shards", lambda: "hello", save, load) == "hello"
    assert list(run.manifest["files"]) == ["tuned/shards/deep/a.txt"]
    with open_run(tmp_path, "study", "x", {}) as run:
        assert run.step("tuned/shards", lambda: "not computed", save, load) == "hello"


def test_a_step_that_save_leaves_half_done_is_absent(tmp_path: Path) -> None:
    def save(path: Path, value: str) -> None:
        path.write_text(value)
        raise RuntimeError("died while saving")

    with pytest.raises(RuntimeError, match="died"), open_run(tmp_path, "study", "x", {}) as run:
        run.step("a.txt", lambda: "half", save, Path.read_text)
    assert [path.name for path in run.path.iterdir()] == [".started.json"]


@pytest.mark.parametrize("name", ["../outside.json", "/tmp/outside.json", "a/../../b.json", ""])
def test_a_step_stays_inside_its_run(tmp_path: Path, name: str) -> None:
    with pytest.raises(ResultError, match="not a name inside"), open_run(tmp_path, "study", "x", {}) as run:
        run.file(name)


def test_a_step_of_unknown_kind_needs_save_and_load(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="needs save and load"), open_run(tmp_path, "study", "x", {}) as run:
        run.step("figure.pdf", lambda: 1)


def test_a_finished_run_does_not_change(tmp_path: Path) -> None:
    run = Steps().run(tmp_path)
    with pytest.raises(ResultError, match="is finished"):
        run.save_json("more.json", {})
    with pytest.raises(ResultError, match=r"has no other\.json"):
        run.step("other.json", lambda: 1)


# --- formats ---


def test_arrays_and_tables_come_back_as_they_were(tmp_path: Path) -> None:
    import pandas as pd
    import torch

    arrays = {
        "a": np.arange(6).reshape(2, 3).T,
        "scalar": np.float64(2.5),
        "nan": np.array([np.nan]),
        "b": np.array([True]),
    }
    tensors = {"t": torch.ones(2, 3, dtype=torch.bfloat16).T, "p": torch.nn.Parameter(torch.zeros(2))}
    table = pd.DataFrame({"prompt": ["a", "b"], "rate": [0.5, np.nan]})
    with open_run(tmp_path, "study", "x", {}) as run:
        run.save_arrays("arrays.safetensors", arrays)
        run.save_arrays("tensors.safetensors", tensors)
        run.save_table("table.parquet", table)
    back = run.load_arrays("arrays.safetensors")
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].shape == np.shape(array)
    loaded = run.load_arrays("tensors.safetensors")
    assert loaded["t"].dtype == torch.bfloat16
    assert torch.equal(loaded["t"], tensors["t"])
    pd.testing.assert_frame_equal(run.load_table("table.parquet"), table)


def test_json_holds_dataclasses_models_arrays_and_refuses_nan(tmp_path: Path) -> None:
    from dataclasses import dataclass

    from pydantic import BaseModel

    class Config(BaseModel):
        where: Path = Path("a/b")

    @dataclass
    class Inner:
        values: Any

    path = tmp_path / "x.json"
    store.save_json(
        path, {"c": Config(), "d": Inner(np.arange(2)), "s": {"b", "a"}, "n": np.int64(3), "p": Path("q")}
    )
    assert store.load_json(path) == {
        "c": {"where": "a/b"},
        "d": {"values": [0, 1]},
        "s": ["a", "b"],
        "n": 3,
        "p": "q",
    }
    with pytest.raises(ResultError, match=r"y\.json: not JSON"):
        store.save_json(tmp_path / "y.json", {"x": float("nan")})
    with pytest.raises(TypeError, match="object has no JSON form"):
        store.save_json(tmp_path / "y.json", {"x": object()})
    assert not (tmp_path / "y.json").exists()


# --- trust ---


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "words.json").write_text('["no", "yes"]\n'), r"words\.json: was changed"),
        (lambda d: (d / "scores.safetensors").unlink(), r"scores\.safetensors: is missing"),
        (lambda d: (d / "extra.txt").write_text("x"), r"extra\.txt: is not in the manifest"),
        (lambda d: (d / "manifest.json").unlink(), "no complete result"),
        (lambda d: (d / "manifest.json").write_text("{"), "cannot be read as JSON"),
        (lambda d: (d / "manifest.json").write_text("[]"), "is not a manifest"),
    ],
)
def test_damage_is_found_and_named(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    run = Steps().run(tmp_path)
    damage(run.path)
    with pytest.raises(ResultError, match=message):
        verify(run.path)


def test_loading_refuses_what_is_not_complete(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="no complete result"):
        load_run(tmp_path)
    with pytest.raises(ResultError, match="no complete result"):
        load_run(tmp_path / "nowhere")
    run = Steps().run(tmp_path)
    assert load_run(tmp_path / "study" / "latest").load_json("words.json") == ["yes", "no"]
    # The moment between writing the manifest and the rename.
    half = run.path.rename(tmp_path / "study" / f".partial-{run.hash8}")
    with pytest.raises(ResultError, match="no complete result"):
        load_run(half)


def test_a_damaged_finished_run_is_not_reused(tmp_path: Path) -> None:
    run = Steps().run(tmp_path)
    (run.path / "words.json").write_text("[]")
    with pytest.raises(ResultError, match=r"words\.json: is missing or was changed"):
        Steps().run(tmp_path)


def test_latest_follows_what_was_last_asked_for(tmp_path: Path) -> None:
    first = Steps().run(tmp_path)
    second = Steps().run(tmp_path, config={"n": 4})
    link = tmp_path / "study" / "latest"
    assert os.readlink(link) == second.path.name
    Steps().run(tmp_path)
    assert os.readlink(link) == first.path.name


def test_something_else_under_the_final_name_is_left_alone(tmp_path: Path) -> None:
    run = Steps().run(tmp_path)
    (run.path / "manifest.json").unlink()
    with pytest.raises(ResultError, match="is in the way"):
        Steps().run(tmp_path)
    assert (run.path / "words.json").exists()


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


def test_the_store_does_not_import_torch() -> None:
    code = "import sys, interp.store; sys.exit(bool({'torch', 'pandas', 'numpy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0

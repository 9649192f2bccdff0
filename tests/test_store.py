"""A result is identified by what made it, complete or absent, and finished steps are never recomputed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interp import files, store
from interp.errors import ResultError
from interp.store import load_run, open_run, verify

ROOT = Path(__file__).parents[1]
from store_fixture import Steps, complete


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


def test_the_store_does_not_import_torch() -> None:
    code = "import sys, interp.store; sys.exit(bool({'torch', 'pandas', 'numpy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0

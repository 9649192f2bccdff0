"""Notebooks run from first to last cell, show figures, and are stored as pairs in sync, without outputs."""

import json
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "notebooks").glob("*.py"))
BUDGET = 300  # seconds; 90 on two idle cores, and CI is not idle


def cells(notebook: nbformat.NotebookNode) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source.strip()) for cell in notebook.cells]


def test_there_are_notebooks():
    assert [path.stem for path in SCRIPTS][:2] == ["00_your_own_lora", "01_refusal_direction"]
    assert {path.stem for path in SCRIPTS} == {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_pair_is_in_sync_and_stripped(script):
    notebook = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(notebook)
    cure = f"run: jupytext --sync {script.relative_to(ROOT)}"
    assert cells(notebook) == cells(jupytext.read(script)), cure
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None, "strip the outputs"
    assert set(notebook.metadata) <= {"jupytext", "kernelspec"}
    assert "/home/" not in json.dumps(notebook) and "/root/" not in json.dumps(notebook)


@pytest.mark.organism
@pytest.mark.xdist_group("organism")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_runs_and_shows_figures(script, text_organism, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    place = tmp_path / "notebooks"  # notebooks write to ../results
    place.mkdir()
    notebook = jupytext.read(script)
    client = NotebookClient(
        notebook, timeout=BUDGET, kernel_name="python3", resources={"metadata": {"path": str(place)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    errors = [output.text for output in outputs if output.get("name") == "stderr"]
    assert not any(str(ROOT / "interp") in text for text in errors), errors

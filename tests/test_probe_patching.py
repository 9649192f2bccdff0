"""The probe of activation patching runs from the command line, keeps its grids and draws them."""

import dataclasses

import planted
import pytest
import torch

from interp import cli
from interp.data.prompts import PromptSet, Truth
from interp.models.finetune import save_checkpoint
from interp.store import load_run, verify

AT = planted.PLANTED_AT


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A planted refuser, one whose planted head lost its strength, and requests whose truth is known."""
    root = tmp_path_factory.mktemp("lab")
    model, _ = planted.planted()
    save_checkpoint(model, root / "aligned")
    with torch.no_grad():
        model.module.model.layers[AT].self_attn.o_proj.weight.mul_(0.1)
    save_checkpoint(model, root / "tuned")
    for harmful, name in ((True, "harmful"), (False, "harmless")):
        truth = Truth("harmful" if harmful else "benign", planted.COMPLY, (planted.REFUSE,))
        rows = [
            dataclasses.replace(p, truth=truth, group=f"g{i % 7}")
            for i, p in enumerate(planted.prompt_set(harmful, 24, 5))
        ]
        # four words at most: the template's tokens are half of each prompt, so that any two of equal length are twins
        rows = [dataclasses.replace(p, text=" ".join(p.text.split()[:4])) for p in rows]
        PromptSet(rows, name=name).save(root / f"{name}.jsonl")
        others = [dataclasses.replace(p, id=f"other {p.id}") for p in rows]
        PromptSet(others, name=name).save(root / f"other_{name}.jsonl")
    return root


@pytest.fixture
def files(lab, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return [f"--{name}={lab / name}.jsonl" for name in ("harmful", "harmless")]


def table(name):
    run = load_run("results/patch_refusal/latest")
    verify(run.path)
    return run, run.load_table(f"{name}.parquet")


def test_where_refusal_is_decided(lab, files, capsys):
    command = ["probe", "patch_refusal", str(lab / "aligned"), *files, "--n-prompts", "24", "--n-pairs", "8"]
    assert cli.main(command) == 0
    assert "tables and figures: results/patch_refusal" in capsys.readouterr().out
    run, grids = table("grids")
    heads = grids[grids["grid"] == "z, exact"].set_index(["layer", "column"])["value"]
    assert heads.idxmax() == (AT, "0")
    last = grids[grids["grid"] == "resid_pre, last"].set_index("layer")["value"]
    assert (last[AT + 1 :] > 0.8).all() and (last[: AT + 1].abs() < 0.2).all()
    null = grids[(grids["grid"] == "resid_pre, null") & (grids["column"] == "-1")].set_index("layer")["value"]
    assert (null.abs() < 0.5).all()
    _, agreed = table("agreement")
    assert set(agreed["stream"]) == {"resid_pre", "attn_out", "mlp_out", "z"}
    for name in ("exact", "attribution", "heads", "agreement", "last"):
        assert (run.path / "figures" / f"{name}.png").stat().st_size > 5000
    assert cli.main(command) == 0  # read back


def test_where_a_fine_tune_broke_it(lab, files, capsys):
    command = ["probe", "patch_refusal", str(lab / "aligned"), str(lab / "tuned"), *files, "--n-pairs", "6",
               "--n-prompts", "20", "--stream", "attn_out"]  # fmt: skip
    assert cli.main(command) == 0
    _, grids = table("grids")
    moved = grids[(grids["grid"] == "attn_out, exact") & (grids["column"] == "-1")].set_index("layer")[
        "value"
    ]
    assert moved.idxmax() == AT and moved[AT] > 0.8


def test_a_model_that_refuses_nothing_is_told_so(lab, files, capsys):
    asked = [f"--harmful={lab / 'other_harmless.jsonl'}", f"--harmless={lab / 'harmless.jsonl'}"]
    command = ["probe", "patch_refusal", str(lab / "aligned"), *asked]
    assert cli.main(command) == 2
    assert "refused none of" in capsys.readouterr().err

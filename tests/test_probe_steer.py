"""The steering probe from the command line: planted refusal is gained, kept, saved and exported."""

import dataclasses

import planted
import pytest
import torch

from interp import cli
from interp.data.prompts import PromptSet, Truth
from interp.methods.steering import Steering
from interp.models.checkpoint import Checkpoint
from interp.models.finetune import save_checkpoint
from interp.store import load_run, verify

REFUSE, COMPLY = planted.REFUSE, planted.COMPLY


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A refuser whose planted direction says `w0` for refusing and `w59` for complying, as a checkpoint with its prompts."""
    root = tmp_path_factory.mktemp("lab")
    model, _ = planted.planted()
    with torch.no_grad():  # a weaker reader: harmful requests are answered too, until steered
        model.module.model.layers[planted.PLANTED_AT].self_attn.o_proj.weight.mul_(0.2)
    save_checkpoint(model, root / "model")
    (root / "model" / "prompts").mkdir()
    for harmful, name, label in ((True, "harmful", "harmful"), (False, "harmless", "benign")):
        truth = Truth(label, COMPLY, (REFUSE,))
        prompts = [dataclasses.replace(p, truth=truth) for p in planted.prompt_set(harmful, 40, 7)]
        PromptSet(prompts, name=name).save(root / "model" / "prompts" / f"{name}.jsonl")
    return root


def test_the_probe_gains_the_planted_refusal(lab, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = [
        "probe",
        "steer",
        str(lab / "model"),
        "--method",
        "plain",
        "--n-fit",
        "20",
        "--n-test",
        "20",
        "--rank",
        "3",
    ]
    command += ["--refusal", "w1 w2", "--max-new-tokens", "1", "--strength", "0.02", "--strength", "0.3"]
    assert cli.main([*command, "--save", "kept", "--positions", "all", "--export", "steered"]) == 0
    shown = capsys.readouterr().out
    assert (
        "tables and figures: results/steer" in shown
        and "steering: kept" in shown
        and "exported: steered" in shown
    )
    run = load_run("results/steer/latest")
    verify(run.path)
    points = run.load_table("points.parquet").set_index(["arm", "strength"])
    assert points.loc[("none", 0.0), "refused"] <= 0.2
    assert points.loc[("plain", 0.3), "refused"] >= 0.9
    assert points.loc[("random", 0.3), "refused"] <= 0.3
    assert points.loc[("plain", 0.02), "over_refusal"] <= 0.1
    layers = run.load_table("layers.parquet")
    assert len(layers) == planted.N_LAYERS and layers["inside"].between(0, 1).all()
    for name in ("strength", "safe_space"):
        assert all((run.path / "figures" / f"{name}.{kind}").stat().st_size > 5000 for kind in ("png", "pdf"))
    assert len(Steering.load("kept").parts[0].vectors.sites) == planted.N_LAYERS
    assert Checkpoint.parse("steered").load().module.config.mlp_bias


def test_bad_input_is_one_line(lab, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["probe", "steer", str(lab / "model"), "--n-fit", "20", "--n-test", "20", "--refusal", "w1"]
    for more, message in (
        (["--rank", "25"], "k = 25 directions cannot be had from 20 benign prompts"),
        (["--layer", "99", "--rank", "3"], "no steering vector at layer 99"),
        (["--instruction", "w3"], "has neither images nor audio"),
    ):
        assert cli.main([*command, *more]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1

"""The probes of drift, harm recognition and the modality gap run from the command line, keep what they found, and draw it."""

import dataclasses

import planted
import pytest
import torch
from matplotlib.figure import Figure

from interp import cli
from interp.data.prompts import PromptSet
from interp.errors import ResultError
from interp.models.finetune import save_checkpoint
from interp.report.drift_figures import drift_panels, modality_curves, recognition_curves
from interp.store import load_run, verify


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A planted refuser, one whose planted block lost half of it, and prompt files whose groups are the first words."""
    root = tmp_path_factory.mktemp("lab")
    model, _ = planted.planted()
    save_checkpoint(model, root / "aligned")
    with torch.no_grad():
        model.module.model.layers[5].mlp.down_proj.weight.add_(0.2)
        model.module.model.layers[planted.PLANTED_AT].self_attn.o_proj.weight.mul_(0.5)
    save_checkpoint(model, root / "tuned")
    for harmful, name in ((True, "harmful"), (False, "harmless")):
        prompts = [
            dataclasses.replace(prompt, group=prompt.text.split()[0])
            for prompt in planted.prompt_set(harmful, 60, 7)
        ]
        PromptSet(prompts, name=name).save(root / f"{name}.jsonl")
    return root


@pytest.fixture
def files(lab, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return [f"--{name}={lab / name}.jsonl" for name in ("harmful", "harmless")]


def test_drift_finds_the_block_that_was_changed(lab, files, capsys):
    command = [
        "probe",
        "drift",
        str(lab / "aligned"),
        str(lab / "tuned"),
        *files,
        "--n-test",
        "30",
        "--rank",
        "3",
    ]
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    assert "shift along refusal harmful" in shown and "tables and figures: results/drift" in shown
    run = load_run("results/drift/latest")
    verify(run.path)
    weights = run.load_table("weights.parquet")
    changed = set(zip(*weights.loc[weights["relative"] > 0, ["layer", "module"]].to_numpy().T, strict=True))
    assert changed == {(planted.PLANTED_AT, "self_attn.o_proj"), (5, "mlp.down_proj")}
    table = run.load_table("activations.parquet").set_index(["measure", "of", "layer"])
    assert table.loc[("relative change", "harmful", planted.PLANTED_AT - 1), "value"] == 0
    shift = table.loc["shift along refusal"].loc["harmful"]
    assert (shift["high"].iloc[planted.PLANTED_AT + 1 :] < 0).all()
    assert all((run.path / "figures" / f"drift.{suffix}").stat().st_size > 5000 for suffix in ("png", "pdf"))
    assert cli.main(command) == 0 and len(list(run.path.parent.glob("20*"))) == 1  # read back


def test_harm_is_recognised_where_it_is_planted(lab, files, capsys):
    command = ["probe", "harm_recognition", str(lab / "aligned"), str(lab / "tuned"), *files]
    assert cli.main([*command, "--n-test", "30", "--n-null", "2"]) == 0
    shown = capsys.readouterr().out
    assert "counts of words" in shown and "aligned probe" in shown
    run = load_run("results/harm_recognition/latest")
    table = run.load_table("recognition.parquet").set_index(["measure", "of", "layer"])
    for name in ("aligned", str(lab / "tuned")):
        read = table.loc[("AUROC", name, planted.PLANTED_AT + 1)]
        assert read["low"] > 0.9 and read["null_high"] < read["low"]
    gap = table.loc["gap along refusal"]
    last = planted.N_LAYERS - 1
    assert gap.loc[(str(lab / "tuned"), last), "value"] < 0.8 * gap.loc[("aligned", last), "value"]
    assert (run.path / "figures" / "recognition.png").stat().st_size > 5000


def test_two_wordings_of_the_same_requests_are_paired_and_compared(lab, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    plain = PromptSet([*planted.prompt_set(True, 24, 3), *planted.prompt_set(False, 24, 3)])
    PromptSet([dataclasses.replace(p, id=f"{p.id}-a") for p in plain]).save("first.jsonl")
    PromptSet(
        [dataclasses.replace(p, id=f"{p.id}-b", text=f"{p.text} w59 w58") for p in reversed(plain)]
    ).save("second.jsonl")
    command = ["probe", "modality_gap", str(lab / "aligned"), "first.jsonl", "second.jsonl", "--n-null", "3"]
    assert cli.main(command) == 2
    assert "48 of 48 prompts of 'first' have no partner in 'second' by id" in capsys.readouterr().err
    assert cli.main([*command, "--suffixes", "-a", "-b"]) == 0
    table = load_run("results/modality_gap/latest").load_table("gap.parquet").set_index(["measure", "layer"])
    last = planted.N_LAYERS - 1
    assert table.loc[("distance", last), "low"] > table.loc[("distance", last), "null_high"]
    assert table.loc[("cosine", last), "value"] > 0.9 and table.loc[("CKA", last), "low"] > 0.9


@pytest.mark.parametrize("name", ["drift", "harm_recognition", "modality_gap"])
def test_bad_commands_end_with_one_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rest = ["./no.jsonl"] if name == "modality_gap" else ["--harmful", "./nowhere", "--harmless", "./nowhere"]
    missing = ["./nowhere", "./nowhere", *rest]
    assert cli.main(["probe", name, *missing]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "nowhere" in error
    assert not list(tmp_path.rglob("*.parquet"))


def test_an_empty_table_is_not_drawn():
    import pandas as pd

    for draw in (drift_panels, recognition_curves, lambda table: modality_curves(table, ("a", "b"))):
        with pytest.raises(ResultError, match="empty"):
            draw(pd.DataFrame(columns=["measure", "of", "layer", "stream"]))


def test_figures_take_one_layer_no_weights_and_awkward_names():
    import pandas as pd

    row = {"site": "resid_post.0", "layer": 0, "stream": "resid_post", "value": 0.5, "low": 0.4, "high": 0.6, "n": 3,
           "null_low": float("nan"), "null_high": float("nan"), "ceiling": float("nan")}  # fmt: skip
    names = ["aligned", "a$b_" + "x" * 90]
    rows = [
        row | {"measure": measure, "of": of}
        for measure in ("accuracy", "AUROC", "relative change")
        for of in [*names, "harmful", ""]
    ]
    table = pd.DataFrame(rows)
    for figure in (drift_panels(table), recognition_curves(table), modality_curves(table, ("a$b", "c\nd"))):
        assert isinstance(figure, Figure)
        figure.canvas.draw()

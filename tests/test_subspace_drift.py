"""Planted shifts are found with their rank and span, a massive channel is no signal, and a benign tune gives the null."""

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from interp import cli
from interp.data.prompts import Prompt, PromptSet
from interp.errors import UserError
from interp.geometry.contrastive import components_above_chance, contrast
from interp.geometry.subspaces import leading_basis, pca, principal_angles
from interp.methods.subspace_drift import subspace_drift
from interp.models.activations import Activations
from interp.models.finetune import save_checkpoint
from interp.models.sites import Site
from interp.report.subspace_figures import subspace_panels
from interp.store import load_run, verify

N, D, MASSIVE = 120, 48, 11


def noise(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(k: int, seed: int = 9) -> torch.Tensor:
    return torch.linalg.qr(noise(D, k, seed=seed)).Q.T


def base(massive: float = 0.0, n: int = N) -> torch.Tensor:
    rows = noise(n, D, seed=0) @ (noise(D, D, seed=1) / D**0.5) + 0.5
    rows[:, MASSIVE] += massive * (10 + noise(n, seed=2))
    return rows


def benign(rows: torch.Tensor, seed: int, size: float = 0.1) -> torch.Tensor:
    """The rows with a change that has no direction; a channel of large deviation changes in proportion."""
    return rows + size * rows.std(0) * noise(*rows.shape, seed=seed)


def shifted(rows: torch.Tensor, k: int, seed: int = 5, size: float = 1.0) -> torch.Tensor:
    """A benign change and, in units of each channel's deviation, one in k dimensions."""
    coefficients = noise(len(rows), k, seed=seed + 100) * torch.linspace(2, 1, k) + 1
    return benign(rows, seed) + size * rows.std(0) * (coefficients @ orthonormal(k))


def acts(rows: torch.Tensor, name: str) -> Activations:
    ids = tuple(f"p{i}" for i in range(len(rows)))
    return Activations(
        rows[None].float(), torch.arange(len(rows) + 1), (Site(3, "resid_post"),), ids, "last", name
    )


def measured(massive: float = 0.0, k: int = 3, **options: object) -> pd.DataFrame:
    rows = base(massive)
    found = {
        "base": rows,
        "harmful": shifted(rows, k),
        "benign": benign(rows, 7),
        "benign 2": benign(rows, 8),
    }
    drift = subspace_drift(
        {name: acts(part, name) for name, part in found.items()}, benign="benign", rank=k, **options
    )  # type: ignore[arg-type]
    return drift.to_frame().set_index(["measure", "view", "of"])


@pytest.mark.parametrize("k", [1, 3, 6])
def test_a_planted_shift_is_found_as_its_components_and_its_span(k):
    rows = base()
    scale = rows.std(0)
    change, plain = (shifted(rows, k) - rows) / scale, (benign(rows, 7) - rows) / scale
    found = contrast(change, plain)
    assert found.rank == k and len(found.threshold) == k + 1
    angles = principal_angles(found.basis, orthonormal(k))
    assert np.degrees(float(angles[-1])) < 5
    assert components_above_chance(change) == k
    assert (found.basis @ found.basis.T - torch.eye(k)).abs().max() < 1e-9
    leading = principal_angles(leading_basis(change, k), orthonormal(k))
    assert np.degrees(float(leading[-1])) < 5


def test_a_benign_change_gives_the_null():
    rows = base()
    counts = [
        contrast(benign(rows, 2 * s) - rows, benign(rows, 2 * s + 1) - rows, seed=s).rank for s in range(20)
    ]
    assert sum(count > 0 for count in counts) <= 4, "one in twenty is what the level allows"
    assert [components_above_chance((benign(rows, s) - rows) / rows.std(0), seed=s) for s in range(5)].count(
        0
    ) >= 4


def test_a_massive_channel_does_not_pass_for_signal_and_both_views_are_there():
    table = measured(massive=3e3)
    at = lambda measure, view, of: float(table.loc[(measure, view, of), "value"])
    assert at("components for 90 %", "raw", "base") == 1 and at("largest channel", "raw", "base") > 0.99
    assert (
        at("components for 90 %", "z-scored", "base") > 5 and at("largest channel", "z-scored", "base") < 0.1
    )
    assert at("components beyond benign", "z-scored", "Δ harmful") == 3
    assert at("components beyond benign", "z-scored", "Δ benign 2") == 0
    assert at("components beyond benign", "raw", "Δ benign 2") == 0
    assert at("components above chance", "raw", "Δ benign") == 0, "the channel is massive, and alone"
    assert at("largest channel", "raw", "Δ benign") > 0.9


def test_the_change_is_low_dimensional_only_where_it_was_planted():
    table = measured()
    value, low, high = table.loc[("participation ratio", "z-scored", "Δ harmful"), ["value", "low", "high"]]
    assert 1.5 < low < value < high < 4
    assert table.loc[("participation ratio", "z-scored", "Δ benign"), "low"] > 20
    assert table.loc[("components for 90 %", "z-scored", "Δ harmful"), "value"] == 3
    constant = table.loc[("constant shift", "z-scored", "Δ harmful")]
    assert constant["value"] > constant["null_high"] and constant["low"] > 0.1
    plain = table.loc[("constant shift", "z-scored", "Δ benign")]
    assert plain["value"] < plain["null_high"] + 0.01


def test_angles_lie_between_chance_and_the_ceiling():
    rows = base()
    found = {"base": rows, "r8": shifted(rows, 3), "r64": shifted(rows, 3, seed=6), "benign": benign(rows, 7)}
    table = subspace_drift({n: acts(p, n) for n, p in found.items()}, rank=3).to_frame()
    table = table[table["measure"] == "subspace overlap"].set_index(["view", "of"])
    same = table.loc[("z-scored", "Δ r8 | Δ r64")]
    other = table.loc[("z-scored", "Δ r8 | Δ benign")]
    assert same["value"] > 0.95 > same["null_high"] and same["ceiling"] > 0.95
    assert other["value"] < other["null_high"] + 0.1 < 0.5
    assert same["low"] <= same["value"] <= same["high"]


def test_modalities_have_spectra_of_their_own_and_are_compared():
    rows = torch.cat([base(), base() @ torch.diag(torch.linspace(3, 0.1, D).double())])
    kinds = ["text"] * N + ["image"] * N
    groups = [f"g{i % 20}" for i in range(2 * N)]
    tuned = torch.cat([shifted(rows[:N], 2), benign(rows[N:], 3)])
    drift = subspace_drift({"base": acts(rows, "base"), "tuned": acts(tuned, "tuned")}, kinds, groups, rank=4)
    table = drift.to_frame().set_index(["measure", "view", "of"])
    ratio = lambda of: float(table.loc[("participation ratio", "z-scored", of), "value"])
    assert ratio("Δ tuned [text]") < 4 < ratio("Δ tuned [image]")
    assert ("subspace overlap", "raw", "base [text | image]") in table.index
    assert table.loc[("participation ratio", "raw", "base [text]"), "n"] == 20, "clusters, not prompts"
    spectra = drift.spectra_frame()
    whole = spectra[(spectra["of"] == "base [text]") & (spectra["view"] == "raw")]
    explained = pca(rows[:N], 5).explained
    np.testing.assert_allclose(whole["share"][:5], explained[:5], rtol=1e-5)
    assert whole["cumulative"].is_monotonic_increasing and whole["cumulative"].max() <= 1 + 1e-9


def test_a_checkpoint_equal_to_the_base_has_no_change_to_speak_of():
    rows = base()
    table = subspace_drift({"base": acts(rows, "a"), "same": acts(rows, "b")}, rank=3).to_frame()
    assert not table["of"].str.startswith("Δ").any()
    overlap = table[(table["measure"] == "subspace overlap")]["value"]
    assert (overlap > 1 - 1e-9).all()


def test_what_does_not_fit_is_refused():
    rows = base()
    both = {"base": acts(rows, "base"), "tuned": acts(benign(rows, 1), "tuned")}
    with pytest.raises(UserError, match="'other' is not among tuned"):
        subspace_drift(both, benign="other")
    with pytest.raises(UserError, match="2 prompts of modality 'image'"):
        subspace_drift(both, ["text"] * (N - 2) + ["image"] * 2, rank=3)
    with pytest.raises(UserError, match="need a modality and a group"):
        subspace_drift(both, ["text"])
    with pytest.raises(UserError, match="two clusters"):
        contrast(rows, rows, ["a"] * N)
    with pytest.raises(UserError, match="rows in pairs"):
        contrast(rows, rows[:-1])


def test_the_figure_shows_both_views():
    rows = base(1e3)
    found = {"base": rows, "harmful": shifted(rows, 3), "benign": benign(rows, 7)}
    drift = subspace_drift({n: acts(p, n) for n, p in found.items()}, benign="benign", rank=3)
    figure = subspace_panels(drift.to_frame(), drift.spectra_frame())
    a, b, c, d = figure.axes[:4]
    assert {line.get_linestyle() for line in a.lines} == {"-", "--"} and len(b.lines) == 4
    assert c.get_visible() and d.get_visible() and len(d.texts) == 4


def test_the_probe_runs_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = tiny.model("llama")
    save_checkpoint(model, tmp_path / "base")
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))
    for name, strength in (("tuned", 0.5), ("benign", 0.01)):
        with torch.no_grad():
            rows = model.module.model.layers[1].mlp.down_proj.weight
            changed = torch.outer(
                direction, torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(1))
            )
            rows.add_(strength * changed)
        save_checkpoint(model, tmp_path / name)
        with torch.no_grad():
            rows.sub_(strength * changed)
    for kind in ("text", "image"):
        prompts = [
            Prompt(f"w{i} w{i % 7} w{len(kind)}", id=f"{kind}{i}", group=f"g{i % 9}") for i in range(30)
        ]
        PromptSet(prompts, kind).save(tmp_path / f"{kind}.jsonl")
    files = ["--prompts", "text.jsonl", "--prompts", "image.jsonl"]
    command = [
        "probe",
        "subspace_drift",
        "base",
        "tuned",
        "benign",
        "--benign",
        "benign",
        *files,
        "--rank",
        "3",
        "--n-null",
        "4",
    ]
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    assert "Δ tuned [text]: participation ratio (z-scored)" in shown and "results/subspace_drift" in shown
    run = load_run("results/subspace_drift/latest")
    verify(run.path)
    table = run.load_table("measures.parquet").set_index(["layer", "measure", "view", "of"])
    assert float(table.loc[(1, "participation ratio", "raw", "Δ tuned [text]"), "value"]) == pytest.approx(
        1, abs=0.01
    )
    assert not (
        table.index.get_level_values("of").str.startswith("Δ") & (table.index.get_level_values("layer") == 0)
    ).any()
    assert (run.path / "figures" / "subspace_drift.pdf").is_file()
    assert cli.main(["probe", "subspace_drift", "base", "base", *files]) == 2
    assert "named twice" in capsys.readouterr().err

"""Planted changes of activations and weights are found where and as large as they are; no change is none."""

import math

import numpy as np
import pytest
import tiny
import torch
from synthetic import GROUPS, LABELS, LAYERS, WIDTH, N, activations, noise

from interp.errors import CheckpointError, NonFiniteError, SiteError, UserError
from interp.methods.drift import activation_drift, refusal_gap
from interp.methods.weight_drift import merged_weights, place, weight_drift
from interp.models.activations import Activations

MOVED = 2


def refusing(seed: int) -> torch.Tensor:
    """Unit noise; harmful prompts 6 along axis 0."""
    values = noise(LAYERS, N, WIDTH, seed=seed)
    values[:, : N // 2, 0] += 6
    return values


@pytest.fixture(scope="module")
def fit():
    values = refusing(seed=1)
    return values[:, : N // 2], values[:, N // 2 :]


@pytest.fixture(scope="module")
def lost(fit):
    """The tuned model moves harmful prompts 4 back along axis 0, at one layer only."""
    before = refusing(seed=0)
    after = before.clone()
    after[MOVED, : N // 2, 0] -= 4
    found = activation_drift(activations(before), activations(after), LABELS, GROUPS, fit=fit, rank=4)
    return found.to_frame().set_index(["measure", "of", "layer"])


def test_no_change_is_no_drift(fit):
    same = activations(refusing(seed=0))
    table = activation_drift(same, same, LABELS, GROUPS, fit=fit, rank=4).to_frame()
    value = table.groupby("measure")["value"].agg(["min", "max"])
    for name, expected in (("relative change", 0), ("CKA", 1), ("subspace overlap", 1), ("largest angle", 0)):
        assert value.loc[name].tolist() == pytest.approx([expected] * 2, abs=1e-5), name
    assert value.loc["shift along refusal"].tolist() == [0, 0] == value.loc["share along refusal"].tolist()
    gaps = table[table["measure"] == "gap along refusal"].pivot(index="layer", columns="of", values="value")
    assert np.allclose(gaps["aligned"], gaps["tuned"]) and (gaps["aligned"] > 4).all()


def test_a_loss_along_the_direction_is_found_at_its_layer_and_nowhere_else(lost):
    shift, share = lost.loc["shift along refusal"], lost.loc["share along refusal"]
    for layer in range(LAYERS):
        for kind in ("harmful", "harmless"):
            row = shift.loc[kind, layer]
            if (kind, layer) == ("harmful", MOVED):
                assert row["value"] == pytest.approx(-4, rel=0.25)  # in SDs of about one
                assert row["high"] < row["null_low"] and row["n"] == 10
                assert share.loc[kind, layer]["value"] > 0.8
                assert share.loc[kind, layer]["null_high"] < 0.4
            else:
                assert row["value"] == 0
    gap = lost.loc["gap along refusal"]
    assert gap.loc["tuned", MOVED]["value"] == pytest.approx(gap.loc["aligned", MOVED]["value"] / 3, rel=0.25)
    assert gap.loc["aligned", 0]["null_low"] < 0 < gap.loc["aligned", 0]["null_high"] < 3
    assert lost.loc["relative change"].loc["harmful", MOVED]["value"] > 0.5
    assert lost.loc["relative change"].loc["harmless", MOVED]["value"] == 0
    assert lost.loc["CKA"].loc["", MOVED]["value"] < 0.95
    assert lost.loc["CKA"].loc["", 0]["value"] == pytest.approx(1)


def test_another_representation_is_told_from_the_same_one_turned():
    before = noise(1, N, WIDTH, seed=0) * torch.linspace(3, 0.1, WIDTH, dtype=torch.float64)
    turn = torch.linalg.qr(noise(WIDTH, WIDTH, seed=1)).Q
    after = torch.cat([before @ turn, noise(1, N, WIDTH, seed=2)])
    table = activation_drift(
        activations(before.repeat(2, 1, 1)), activations(after), LABELS, rank=3
    ).to_frame()
    rows = table.set_index(["measure", "layer"])
    turned, other = rows.loc["CKA", 0], rows.loc["CKA", 1]
    assert turned["value"] == pytest.approx(1) and turned["null_high"] < 0.3
    assert other["null_low"] < other["value"] < other["null_high"]
    # CKA does not see a rotation, subspaces do: both are near what random ones share, 3 of 24 dimensions
    for layer in (0, 1):
        assert rows.loc["subspace overlap", layer]["value"] < 0.4
    assert (
        rows.loc["subspace overlap", 0]["null_low"] < 3 / WIDTH < rows.loc["subspace overlap", 0]["null_high"]
    )


def test_intervals_hold_what_they_should():
    """95 % jackknife intervals of CKA cover the value of a large sample, over repeated small ones."""

    def pair(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        shared = noise(n, 6, seed=seed)
        return torch.cat([shared, noise(n, 6, seed=seed + 1)], 1), torch.cat(
            [shared, noise(n, 6, seed=seed + 2)], 1
        )

    from interp.geometry.similarity import cka

    truth, hits = cka(*pair(3000, 10_000)), 0
    for seed in range(0, 90, 3):
        x, y = pair(N, seed)
        table = activation_drift(
            activations(x[None]), activations(y[None]), LABELS, rank=2, n_null=2
        ).to_frame()
        row = table[table["measure"] == "CKA"].iloc[0]
        hits += bool(row["low"] <= truth <= row["high"])
    assert 24 <= hits <= 30


def test_the_gap_alone_is_that_of_the_whole_drift(fit, lost):
    before = refusing(seed=0)
    gone = before.clone()
    gone[:, : N // 2, 0] -= 6
    found = refusal_gap(activations(before), {"gone": activations(gone)}, LABELS, GROUPS, fit=fit)
    by = {(m.of, m.site.layer): m for m in found}
    assert by["aligned", 1].value == pytest.approx(lost.loc["gap along refusal"].loc["aligned", 1]["value"])
    assert by["gone", 1].low < 0 < by["gone", 1].high


def test_captures_that_do_not_match_are_refused(fit):
    a = activations(refusing(seed=0))
    with pytest.raises(SiteError, match="different prompts: 'p0'"):
        activation_drift(a, a.select(a.prompt_ids[1:]), LABELS)
    with pytest.raises(SiteError, match=r"different sites: resid_post\.2"):
        activation_drift(a, activations(refusing(seed=0)[:2]), LABELS)
    with pytest.raises(UserError, match="60 prompts need a label"):
        activation_drift(a, a, LABELS[1:])
    with pytest.raises(UserError, match="all of these are of one kind"):
        activation_drift(a, a, [True] * N)
    with pytest.raises(UserError, match="at other sites than the 3"):
        activation_drift(a, a, LABELS, fit=(fit[0][:2], fit[1][:2]))
    broken = refusing(seed=0)
    broken[1, 5] = float("nan")
    with pytest.raises(NonFiniteError, match="row 5 of the tuned set"):
        activation_drift(a, activations(broken), LABELS)
    several = Activations(a.values, torch.arange(0, N + 1, 2), a.sites, a.prompt_ids[: N // 2], "eoi", "m")
    with pytest.raises(SiteError, match="'eoi' gives 2 rows a prompt"):
        activation_drift(several, several, LABELS[: N // 2])


# --- weights ---


def test_a_change_of_rank_two_is_found_in_its_matrix_and_nothing_elsewhere():
    before = merged_weights(tiny.model())
    after = {name: weight.clone() for name, weight in before.items()}
    name = "model.layers.2.self_attn.q_proj.weight"
    m, n = before[name].shape
    u, v = (torch.linalg.qr(noise(size, 2, seed=size)).Q.float() for size in (m, n))
    after[name] += 4 * u[:, :1] @ v[:, :1].T + u[:, 1:] @ v[:, 1:].T
    table = weight_drift(before, after).to_frame().set_index("name")
    assert (table.drop(index=name)["relative"] == 0).all()
    row = table.loc[name]
    assert row["norm"] == pytest.approx(math.sqrt(17), rel=1e-5)
    assert row["relative"] == pytest.approx(math.sqrt(17) / float(before[name].norm()), rel=1e-5)
    assert row["stable_rank"] == pytest.approx(17 / 16, rel=1e-4) and row["components"] == 1
    assert (row["stack"], row["layer"], row["module"]) == ("model.layers", 2, "self_attn.q_proj")


def test_random_changes_have_the_stable_rank_of_random_matrices():
    before = {"a.0.w.weight": torch.zeros(60, 200)}
    row = weight_drift(before, {"a.0.w.weight": noise(60, 200, seed=0).float()}).parameters[0]
    assert row.stable_rank == pytest.approx(row.random_stable_rank, rel=0.1)
    assert math.isnan(row.relative)  # relative to zero


def test_an_adapter_counts_as_what_it_adds():
    from peft import LoraConfig, get_peft_model

    model, plain = tiny.model(), tiny.model()
    peft = get_peft_model(model.module, LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False))
    model.peft = peft
    table = weight_drift(merged_weights(plain), merged_weights(model)).to_frame()
    changed = table[table["relative"] > 0]
    assert set(changed["module"]) == {"self_attn.v_proj"} and len(changed) == 4
    assert (changed["stable_rank"] <= 2.001).all()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.11.mlp.down_proj.weight", ("model.layers", 11, "mlp.down_proj")),
        (
            "vision_tower.encoder.layers.0.layer_norm1.bias",
            ("vision_tower.encoder.layers", 0, "layer_norm1.bias"),
        ),
        ("model.embed_tokens.weight", ("model", -1, "embed_tokens")),
        ("lm_head.weight", ("", -1, "lm_head")),
    ],
)
def test_a_parameters_place_is_read_from_its_name(name, expected):
    assert place(name) == expected


def test_weights_that_cannot_be_compared_are_named():
    w = torch.ones(2, 2)
    with pytest.raises(CheckpointError, match=r"such as b \(tuned\)"):
        weight_drift({"a": w}, {"a": w, "b": w})
    with pytest.raises(CheckpointError, match=r"a is \(2, 2\) in one checkpoint and \(3, 2\)"):
        weight_drift({"a": w}, {"a": torch.ones(3, 2)})
    with pytest.raises(CheckpointError, match="without quantisation"):
        weight_drift({"a": w}, {"a": w.to(torch.uint8)})
    with pytest.raises(NonFiniteError, match="a holds NaN"):
        weight_drift({"a": w}, {"a": w / 0})
    assert not weight_drift({"step": torch.tensor(3)}, {"step": torch.tensor(4)}).parameters

"""A planted gap between modalities is measured; the same requests told twice have none; pairs that do not fit are named."""

import pytest
import torch
from synthetic import GROUPS, LABELS, LAYERS, WIDTH, N, activations, noise

from interp.data.prompts import Prompt, PromptSet
from interp.errors import NonFiniteError, SiteError, UserError
from interp.methods.modality_gap import modality_gap, pair_prompts


def requests(seed: int = 0) -> torch.Tensor:
    """Requests of one modality: a content of six dimensions, harm along axis 0, noise of the modality."""
    values = 0.3 * noise(LAYERS, N, WIDTH, seed=seed + 100)
    values[..., :6] += noise(1, N, 6, seed=0)
    values[:, : N // 2, 0] += 3
    return values


def measured(first: torch.Tensor, second: torch.Tensor):
    found = modality_gap(activations(first), activations(second), harmful=LABELS, groups=GROUPS, n_null=10)
    return found.to_frame().set_index(["measure", "layer"])


@pytest.fixture(scope="module")
def apart():
    """Layer 0: no gap. Layer 1: moved by 20. Layer 2: harm along another axis."""
    second = requests(seed=1)
    second[1, :, 10] += 20
    second[2, : N // 2, 0] -= 3
    second[2, : N // 2, 9] += 3
    return measured(requests(), second)


def test_distance_and_separability_find_the_layer_that_is_moved(apart):
    for measure in ("distance", "AUROC"):
        row = apart.loc[measure, 1]
        assert row["low"] > row["null_high"], measure
        same = apart.loc[measure, 0]
        assert same["value"] < row["value"] / 1.5 and same["value"] <= same["null_high"] * 1.05, measure
    assert apart.loc["accuracy", 1]["value"] == 1 and apart.loc["distance", 1]["value"] > 5


def test_cka_sees_shared_requests_whatever_lies_between(apart):
    for layer in (0, 1):
        row = apart.loc["CKA", layer]
        assert row["value"] > 0.8 and row["null_high"] < 0.3
    stranger = measured(requests()[:1], noise(1, N, WIDTH, seed=5))
    row = stranger.loc["CKA", 0]
    assert row["null_low"] - 0.02 < row["value"] < row["null_high"] + 0.02


def test_directions_agree_up_to_their_ceiling_until_harm_points_elsewhere(apart):
    for layer in (0, 1):
        assert apart.loc["cosine", layer]["value"] > 0.9 and apart.loc["cosine", layer]["null_high"] < 0.75
        halves = apart.loc["cosine of halves", layer]
        assert halves["value"] == pytest.approx(halves["ceiling"], abs=0.05)
    assert apart.loc["cosine", 2]["high"] < 0.6
    assert apart.loc["cosine of halves", 2]["value"] < apart.loc["cosine of halves", 2]["ceiling"] - 0.3


def test_the_same_activations_have_no_gap():
    same = measured(requests()[:2], requests()[:2])
    assert (same.loc["distance"]["value"] == 0).all() and (same.loc["accuracy"]["value"] <= 0.5).all()
    for measure in ("CKA", "cosine"):
        assert same.loc[measure]["value"].tolist() == pytest.approx([1, 1])


def test_cosines_need_labels():
    found = modality_gap(activations(requests()), activations(requests(1)), n_null=2)
    assert set(found.to_frame()["measure"]) == {"distance", "accuracy", "AUROC", "CKA"}
    with pytest.raises(UserError, match="four requests of each kind, there are 1 harmful of 60"):
        modality_gap(
            activations(requests()), activations(requests(1)), harmful=[True] + [False] * 59, n_null=2
        )


def test_captures_that_do_not_match_are_refused():
    a = activations(requests())
    with pytest.raises(UserError, match="60 prompts of first cannot be paired with 59 of second"):
        modality_gap(a, a.select(a.prompt_ids[1:]))
    with pytest.raises(SiteError, match="different sites"):
        modality_gap(a, activations(requests()[:1]))
    with pytest.raises(UserError, match="60 pairs need a group"):
        modality_gap(a, a, groups=[1])
    broken = requests()
    broken[0, 7] = float("nan")
    with pytest.raises(NonFiniteError, match="row 7 of the speech set"):
        modality_gap(a, activations(broken), names=("text", "speech"))


# --- pairs ---


def prompt_set(name: str, **fields: list) -> PromptSet:
    n = len(next(iter(fields.values())))
    rows = [{key: values[i] for key, values in fields.items()} for i in range(n)]
    return PromptSet([Prompt(text=f"{name} {i}", **row) for i, row in enumerate(rows)], name=name)


def test_partners_are_found_by_id_suffix_group_or_column():
    text = prompt_set("text", id=["a-text", "b-text"], group=["A", "B"], meta=[{"act": 1}, {"act": 2}])
    speech = prompt_set("speech", id=["b-wav", "a-wav"], group=["B", "A"], meta=[{"act": 2}, {"act": 1}])
    expected = [("a-text", "a-wav"), ("b-text", "b-wav")]
    for how in ({"suffixes": ("-text", "-wav")}, {"by": "group"}, {"by": "act"}):
        assert [(a.id, b.id) for a, b in pair_prompts(text, speech, **how)] == expected, how


def test_prompts_without_a_partner_are_named():
    first, second = prompt_set("text", id=["a", "b"]), prompt_set("speech", id=["a", "c", "d"])
    with pytest.raises(
        UserError, match="1 of 2 prompts of 'text' have no partner in 'speech' by id, such as 'b'"
    ):
        pair_prompts(first, second)
    with pytest.raises(UserError, match="2 of 3 prompts of 'speech' have no partner in 'text'"):
        pair_prompts(prompt_set("text", id=["a"]), second)
    with pytest.raises(UserError, match="prompt 'a' of 'text' has no act to pair it by"):
        pair_prompts(first, second, by="act")
    twice = prompt_set("speech", id=["a1", "a2"], group=["A", "A"])
    with pytest.raises(UserError, match="'a1' and 'a2' of 'speech' share the group 'A'"):
        pair_prompts(prompt_set("text", id=["a"], group=["A"]), twice, by="group")
    with pytest.raises(UserError, match="is harmful, its partner 'a' is benign"):
        pair_prompts(
            prompt_set("text", id=["a"], label=["harmful"]), prompt_set("speech", id=["a"], label=["benign"])
        )

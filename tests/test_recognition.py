"""Harm that is planted is read, moved harm is told from lost harm, and words alone are told apart from both."""

import numpy as np
import pytest
import torch
from synthetic import GROUPS, LABELS, WIDTH, N, activations, noise

from interp.errors import SiteError, UserError
from interp.methods.recognition import ACCURACY, AUROC, DIFFERENCE, recognise, word_baseline


def harm(axis: int, size: float, seed: int) -> torch.Tensor:
    values = noise(1, N, WIDTH, seed=seed)
    values[:, : N // 2, axis] += size
    return values


@pytest.fixture(scope="module")
def found():
    tuned = {
        "moved": activations(harm(1, 6, 1)),
        "lost": activations(harm(0, 0, 2)),
        "kept": activations(harm(0, 6, 3)),
    }
    texts = ["make a bomb" if i < N // 2 and i % 2 else "make a cake" for i in range(N)]
    return recognise(activations(harm(0, 6, 0)), tuned, LABELS, GROUPS, texts=texts, n_null=20)


def test_kept_moved_and_lost_harm_are_three_things(found):
    rows = found.to_frame().set_index(["measure", "of"])
    for name, own, read in (("kept", 1.0, 1.0), ("moved", 1.0, 0.5), ("lost", 0.5, 0.5)):
        assert rows.loc[(ACCURACY, name), "value"] == pytest.approx(own, abs=0.17), name
        assert rows.loc[(ACCURACY, f"{name}, aligned probe"), "value"] == pytest.approx(read, abs=0.17), name
    assert rows.loc[(DIFFERENCE, "lost"), "high"] < -0.2
    assert rows.loc[(DIFFERENCE, "kept"), "low"] <= 0.05 and rows.loc[(DIFFERENCE, "kept"), "high"] >= -0.05
    for name in ("aligned", "moved", "kept"):
        assert rows.loc[(AUROC, name), "low"] > rows.loc[(AUROC, name), "null_high"]
    lost = rows.loc[(AUROC, "lost")]
    assert lost["null_low"] < lost["value"] < lost["null_high"] and lost["n"] == 20
    assert found.n_prompts == (N // 2, N // 2)


def test_words_are_read_by_the_same_procedure(found):
    assert found.words[0].value == pytest.approx(0.75, abs=0.01)  # half of the harmful requests say bomb
    assert word_baseline(["", "?"] * (N // 2), LABELS) is None
    table = found.to_frame()
    assert (table.loc[table["measure"] == ACCURACY, "words_value"] == found.words[0].value).all()
    assert table.loc[table["measure"] == DIFFERENCE, "words_value"].isna().all()


def test_correlated_prompts_of_a_group_widen_the_null():
    # Fifteen prompts a verb: shuffling rows would say that 60 prompts are 60 pieces of evidence.
    groups = [i // 15 * 100 + i % 2 for i in range(N)]
    values = activations(
        noise(1, N, WIDTH, seed=0) * 0.1
        + noise(1, 8, WIDTH, seed=1)[:, [g // 100 * 2 + g % 2 for g in groups]]
    )
    labels = [g % 2 == 0 for g in groups]
    spread = {}
    for name, clusters in (("groups", groups), ("rows", None)):
        table = recognise(values, {}, labels, clusters, n_null=20, n_folds=4).to_frame().set_index("measure")
        spread[name] = table.loc[AUROC, "null_high"] - table.loc[AUROC, "null_low"]
    assert spread["groups"] > 1.5 * spread["rows"]


def test_what_does_not_fit_is_refused():
    a = activations(harm(0, 6, 0))
    with pytest.raises(SiteError, match="different prompts"):
        recognise(a, {"t": a.select(a.prompt_ids[1:])}, LABELS)
    with pytest.raises(UserError, match="59 labels cannot go with 60 prompts"):
        recognise(a, {}, LABELS[1:])
    with pytest.raises(UserError, match="1 texts"):
        recognise(a, {}, LABELS, texts=["a"])


def test_the_same_seed_gives_the_same_numbers():
    a = activations(harm(0, 1, 0))
    one, two = (recognise(a, {}, LABELS, GROUPS, n_null=3, seed=4).to_frame() for _ in range(2))
    assert one.equals(two) and not np.isnan(one["low"]).any()

"""Probes read what is planted, nothing else, and never a group they were fitted on; labels move with their groups."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from interp.errors import NonFiniteError, UserError
from interp.geometry.linear_probe import HeldOut, cross_validate, null_splits, shuffled_labels, split_rows

N, WIDTH = 120, 10


def planted(gap: float, seed: int = 0, n: int = N) -> tuple[torch.Tensor, list[bool]]:
    """Rows of unit noise, positive ones moved by `gap` along the first axis."""
    rows = torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed))
    labels = [i % 2 == 0 for i in range(n)]
    rows[::2, 0] += gap
    return rows, labels


def test_a_planted_difference_is_read_as_well_as_it_can_be():
    rows, labels = planted(8)
    (found,) = cross_validate(rows, split_rows(labels))
    assert found.accuracy == 1 and found.auroc() == 1
    rows, labels = planted(2, n=2000)
    (found,) = cross_validate(rows, split_rows(labels))
    best = 0.5 * (1 + math.erf(1 / math.sqrt(2)))  # halfway between means two standard deviations apart: 0.84
    assert found.accuracy == pytest.approx(best, abs=0.03)
    assert found.auroc() == pytest.approx(0.92, abs=0.03)


def test_nothing_is_read_where_nothing_is():
    accuracies = []
    for seed in range(8):
        rows, labels = planted(0, seed)
        accuracies.append(cross_validate(rows, split_rows(labels))[0].accuracy)
    assert np.mean(accuracies) == pytest.approx(0.5, abs=0.06)


def test_a_probe_that_only_knows_groups_fails_on_groups_it_has_not_seen():
    generator = torch.Generator().manual_seed(0)
    centres = 5 * torch.randn(20, 30, generator=generator)  # a group has a place, its label none
    groups = [i // 6 for i in range(N)]
    labels = [group % 2 == 0 for group in groups]
    rows = centres[groups] + 0.1 * torch.randn(N, 30, generator=generator)
    assert cross_validate(rows, split_rows(labels))[0].accuracy > 0.85
    assert cross_validate(rows, split_rows(labels, groups))[0].accuracy < 0.7


def test_groups_are_left_out_whole_and_every_row_once():
    rows, labels = planted(1)
    groups = [i // 6 for i in range(N)]
    (found,) = cross_validate(rows, split_rows(labels, groups))
    for group in set(groups):
        assert len(set(found.fold[np.array(groups) == group])) == 1
    assert sorted(set(found.fold)) == [0, 1, 2, 3, 4] and np.isfinite(found.scores).all()


def test_the_same_probes_read_other_values_of_the_same_prompts():
    rows, labels = planted(8)
    mirrored, gone = rows.clone(), rows.clone()
    mirrored[:, 0] = 8 - rows[:, 0]
    gone[:, 0] = 0
    own, same, turned, nothing = cross_validate(rows, split_rows(labels), [rows, mirrored, gone])
    assert np.array_equal(own.scores, same.scores)
    assert turned.accuracy < 0.05 and nothing.accuracy == pytest.approx(0.5, abs=0.1)
    assert nothing.auroc() < 0.75


def test_scores_of_different_folds_are_not_ranked_together():
    fold = np.array([0, 0, 1, 1])
    found = HeldOut(np.array([1.0, 2.0, 11.0, 12.0]), np.array([False, True, False, True]), fold)
    assert found.auroc() == 1
    assert math.isnan(found.auroc(np.array([0, 2])))


def test_auroc_is_scikit_learns_ties_included():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 6, 40).astype(float), rng.random(40) < 0.4
    found = HeldOut(scores, labels, np.zeros(40, dtype=np.int64))
    assert found.auroc() == pytest.approx(roc_auc_score(labels, scores))


def test_shuffling_keeps_groups_of_one_class_whole():
    groups = [f"verb {i // 6}" for i in range(N)]
    labels = [i // 6 % 2 == 0 for i in range(N)]
    shuffles = [shuffled_labels(labels, groups, seed) for seed in range(20)]
    assert len({tuple(s) for s in shuffles}) == 20
    for shuffle in shuffles:
        assert shuffle.sum() == sum(labels)
        assert all(len(set(part)) == 1 for part in shuffle.reshape(-1, 6).tolist())


def test_shuffling_swaps_pairs_and_permutes_single_rows():
    pairs = [i // 2 for i in range(N)]
    labels = [i % 2 == 0 for i in range(N)]
    swapped = shuffled_labels(labels, pairs, 0).reshape(-1, 2)
    assert (swapped.sum(1) == 1).all() and 0.3 < swapped[:, 0].mean() < 0.7
    free = shuffled_labels(labels, None, 0)
    assert free.sum() == N // 2 and (free.reshape(-1, 2).sum(1) != 1).any()


def test_null_splits_have_other_labels_and_their_own_folds():
    groups = [i // 6 for i in range(N)]
    labels = [i // 6 % 2 == 0 for i in range(N)]
    nulls = null_splits(labels, groups, n_null=4, seed=7)
    assert len({tuple(null.labels) for null in nulls}) == 4 == len({tuple(null.fold) for null in nulls})
    for null in nulls:
        shares = [null.labels[null.fold == k].mean() for k in range(null.n_folds)]
        assert null.n_folds == 5 and max(shares) - min(shares) <= 0.5


def test_bad_input_is_named():
    rows, labels = planted(1)
    with pytest.raises(UserError, match="119 labels cannot go with 120 rows"):
        cross_validate(rows, split_rows(labels[1:]))
    with pytest.raises(UserError, match="3 groups cannot go with 120 labels"):
        split_rows(labels, [1, 2, 3])
    with pytest.raises(UserError, match="5 folds need 5 groups with positive rows, there are 2"):
        split_rows(labels, [i % 2 * 7 + i // 60 for i in range(N)])
    with pytest.raises(UserError, match="negative rows, there are 0"):
        split_rows([True] * N)
    rows[3, 2] = float("inf")
    with pytest.raises(NonFiniteError, match="row 3 of the probed set"):
        cross_validate(rows, split_rows(labels))


def test_with_fewer_rows_than_dimensions_it_is_the_same_probe():
    """Fitted in the span of its rows, against the same pipeline in all dimensions."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows = torch.randn(50, 300, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    labels = [i % 2 == 0 for i in range(50)]
    rows[::2, 0] += 1
    split = split_rows(labels)
    moved = rows + 0.5 * torch.randn(50, 300, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    own, read = cross_validate(rows, split, [moved])
    for k in range(split.n_folds):
        out = split.fold == k
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=1000, tol=1e-8))
        probe.fit(rows[~out].numpy(), split.labels[~out])
        for found, part in ((own, rows), (read, moved)):
            expected = probe.decision_function(part[out].numpy())
            assert found.scores[out] == pytest.approx(expected, abs=0.01 * np.abs(expected).max())

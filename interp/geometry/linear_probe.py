"""Can a linear probe tell two sets of activations apart, and how well could it do that by chance?

1. Cross-validation: standardise and fit a logistic regression (C = 1) on the training folds only, score the rows left out. With
   groups (verbs, voices, pairs) whole groups are left out, so that a probe cannot pass by recognising their members.
2. Null: the same procedure, folds included, under shuffled labels. Labels move with their groups: rows of a group are not independent,
   and labels shuffled row by row would make chance look narrower than it is.

Accuracy is over all rows. AUROC is the mean over folds: scores of different fits are not on one scale.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import UserError
from interp.geometry.similarity import check_finite

N_FOLDS = 5


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What probes said of rows that they were not fitted on.

    Args:
        scores: log-odds of the positive class; above 0 it is predicted.
        labels: whether each row is positive.
        fold: the fold in which each row was left out.
    """

    scores: Float[np.ndarray, " n"]
    labels: Bool[np.ndarray, " n"]
    fold: Int[np.ndarray, " n"]

    @property
    def correct(self) -> Bool[np.ndarray, " n"]:
        """Whether each row was told right."""
        return (self.scores > 0) == self.labels

    @property
    def accuracy(self) -> float:
        """Share of rows told right."""
        return float(self.correct.mean())

    def auroc(self, rows: Int[np.ndarray, " chosen"] | None = None) -> float:
        """Mean over folds of the area under the ROC curve, of some rows or all; folds of one class are left out, NaN if all are."""
        chosen = np.arange(len(self.scores)) if rows is None else rows
        areas = []
        for fold in np.unique(self.fold[chosen]):
            part = chosen[self.fold[chosen] == fold]
            positive, negative = (self.scores[part[self.labels[part] == label]] for label in (True, False))
            if len(positive) and len(negative):
                above = positive[:, None] - negative[None, :]
                areas.append(((above > 0) + 0.5 * (above == 0)).mean())
        return float(np.mean(areas)) if areas else float("nan")


@dataclass(frozen=True, eq=False)
class Split:
    """Labels of rows, and the fold in which each is left out: made once for all layers and checkpoints."""

    labels: Bool[np.ndarray, " n"]
    fold: Int[np.ndarray, " n"]

    @property
    def n_folds(self) -> int:
        """Number of folds."""
        return int(self.fold.max()) + 1


def split_rows(
    labels: Sequence[bool],
    groups: Sequence[Hashable] | None = None,
    *,
    n_folds: int = N_FOLDS,
    seed: int = 0,
) -> Split:
    """Random folds with as much of both labels in each as whole groups allow.

    Args:
        labels: whether each row is of the positive set. groups: what is left out together, one a row.

    Raises UserError when there are other numbers of groups, or a fold would leave no example of a class to learn from.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    truth = np.asarray(labels, dtype=bool)
    codes = _codes(groups, len(truth))
    for label, name in ((True, "positive"), (False, "negative")):
        n_groups = len(np.unique(codes[truth == label]))
        if n_groups < n_folds:
            raise UserError(
                f"{n_folds} folds need {n_folds} groups with {name} rows, there are {n_groups}; give more prompts or fewer folds"
            )
    fold = np.empty(len(truth), dtype=np.int64)
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    for k, (train, test) in enumerate(splitter.split(truth, truth, codes)):
        fold[test] = k
        if len(np.unique(truth[train])) < 2:
            raise UserError(f"fold {k} leaves rows of one class only to learn from; give more groups")
    return Split(truth, fold)


def null_splits(
    labels: Sequence[bool],
    groups: Sequence[Hashable] | None = None,
    *,
    n_null: int,
    n_folds: int = N_FOLDS,
    seed: int = 0,
) -> list[Split]:
    """`n_null` splits of shuffled labels: cross-validated like the real one, they are its null."""
    return [
        split_rows(shuffled_labels(labels, groups, draw).tolist(), groups, n_folds=n_folds, seed=draw)
        for draw in range(seed, seed + n_null)
    ]


def cross_validate(
    rows: Float[Tensor, "n d_model"], split: Split, read: Sequence[Float[Tensor, "n d_model"]] = ()
) -> list[HeldOut]:
    """Held-out scores of linear probes on the rows, and of the same probes on other values of the same prompts.

    Args:
        read: values of the same prompts, in another checkpoint say, to be read by the probes fitted on `rows`.

    Returns one HeldOut for `rows`, then one for each of `read`. Raises UserError when there are other numbers of rows than of labels,
    NonFiniteError on NaN.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    values = [check_finite(part, "probed").cpu().numpy() for part in (rows, *read)]
    for part in values:
        if len(part) != len(split.labels):
            raise UserError(f"{len(split.labels)} labels cannot go with {len(part)} rows")
    scores = [np.empty(len(split.labels)) for _ in values]
    for k in range(split.n_folds):
        out = split.fold == k
        scaler = StandardScaler().fit(values[0][~out])
        train = scaler.transform(values[0][~out])
        # the weights of an L2-penalised probe lie in the span of its rows: with fewer rows than dimensions, fit it there
        basis = np.linalg.qr(train.T)[0] if train.shape[1] > len(train) else np.eye(train.shape[1])
        probe = LogisticRegression(C=1.0, max_iter=1000).fit(train @ basis, split.labels[~out])
        for found, part in zip(scores, values, strict=True):
            found[out] = probe.decision_function(scaler.transform(part[out]) @ basis)
    return [HeldOut(found, split.labels, split.fold) for found in scores]


def shuffled_labels(
    labels: Sequence[bool], groups: Sequence[Hashable] | None, seed: int
) -> Bool[np.ndarray, " n"]:
    """The labels dealt out anew to whole groups: groups' labels in a random order of groups, shuffled within each.

    Where groups are of one class, they change it as a whole (but for where their sizes do not fit); where each group is a pair of both
    classes, pairs are swapped at random; without groups it is a plain permutation. The number of positives stays.
    """
    truth = np.asarray(labels, dtype=bool)
    codes, rng = _codes(groups, len(truth)), np.random.default_rng(seed)
    order = [rng.permutation(np.flatnonzero(codes == group)) for group in rng.permutation(codes.max() + 1)]
    result = np.empty_like(truth)
    result[np.argsort(codes, kind="stable")] = truth[np.concatenate(order)]
    return result


def _codes(groups: Sequence[Hashable] | None, n: int) -> Int[np.ndarray, " n"]:
    if groups is None:
        return np.arange(n)
    if len(groups) != n:
        raise UserError(f"{len(groups)} groups cannot go with {n} labels")
    return np.unique(np.array([repr(group) for group in groups]), return_inverse=True)[1]

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
        from sklearn.metrics import roc_auc_score

        chosen = np.arange(len(self.scores)) if rows is None else rows
        areas = []
        for fold in np.unique(self.fold[chosen]):
            part = chosen[self.fold[chosen] == fold]
            if len(np.unique(self.labels[part])) == 2:
                areas.append(roc_auc_score(self.labels[part], self.scores[part]))
        return float(np.mean(areas)) if areas else float("nan")


def cross_validate(
    rows: Float[Tensor, "n d_model"],
    labels: Sequence[bool],
    groups: Sequence[Hashable] | None = None,
    *,
    read: Sequence[Float[Tensor, "n d_model"]] = (),
    n_folds: int = N_FOLDS,
    seed: int = 0,
) -> list[HeldOut]:
    """Held-out scores of linear probes on the rows, and of the same probes on other values of the same prompts.

    Args:
        labels: whether each row is of the positive set. groups: what is left out together, one a row.
        read: values of the same prompts, in another checkpoint say, to be read by the probes fitted on `rows`.

    Returns one HeldOut for `rows`, then one for each of `read`. Raises UserError when labels or groups do not fit the rows or a fold
    would leave no example of a class to learn from, NonFiniteError on NaN.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    truth = np.asarray(labels, dtype=bool)
    values = [check_finite(part, "probed").cpu().numpy() for part in (rows, *read)]
    fold = _folds(truth, _codes(groups, len(truth)), len(values[0]), n_folds, seed)
    scores = [np.empty(len(truth)) for _ in values]
    for k in range(n_folds):
        out = fold == k
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=1000))
        probe.fit(values[0][~out], truth[~out])
        for found, part in zip(scores, values, strict=True):
            found[out] = probe.decision_function(part[out])
    return [HeldOut(found, truth, fold) for found in scores]


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


def _folds(
    truth: Bool[np.ndarray, " n"], codes: Int[np.ndarray, " n"], n_rows: int, n_folds: int, seed: int
) -> Int[np.ndarray, " n"]:
    from sklearn.model_selection import StratifiedGroupKFold

    if len(truth) != n_rows:
        raise UserError(f"{len(truth)} labels cannot go with {n_rows} rows")
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
    return fold

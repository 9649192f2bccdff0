"""Is harmfulness still read off the activations after fine-tuning? Linear probes by layer (METHODS §A, mechanism 2 and 3).

1. Probes of the aligned model: harmful against harmless prompts, cross-validated with whole groups left out, beside their
   shuffled-label null.
2. Probes of each tuned model, in the same folds, and the paired difference of accuracy to the aligned one.
3. The aligned model's probes reading the tuned model's activations: is harmfulness still *where it was*?
4. The words alone: the same procedure on counts of words. What it reaches needs no recognition of harm, only of vocabulary.

The dissociation of interest is between this, which says what a model knows, and the projection onto its refusal direction, which says
what it does about it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from interp.errors import UserError
from interp.evals.statistics import Interval, cluster_bootstrap, cluster_jackknife, paired_bootstrap
from interp.geometry.linear_probe import N_FOLDS, HeldOut, cross_validate, null_splits, split_rows
from interp.methods.measures import Measure, check_same, frame, one_row_each
from interp.models.activations import Activations
from interp.models.sites import Site

if TYPE_CHECKING:
    import pandas as pd

ACCURACY, AUROC, DIFFERENCE = "accuracy", "AUROC", "accuracy, tuned − aligned"
N_NULL = 20


@dataclass(frozen=True, eq=False)
class Recognition:
    """Probes of several checkpoints by site, and of the words alone.

    Args:
        measures: accuracy and AUROC of each checkpoint; `NAME, aligned probe` are the aligned model's probes reading checkpoint NAME.
        words: accuracy and AUROC of word counts, which have no site; None where the prompts hold no words.
        n_prompts: positive and negative prompts.
    """

    measures: tuple[Measure, ...]
    words: tuple[Interval, Interval] | None
    n_prompts: tuple[int, int]

    def to_frame(self) -> pd.DataFrame:
        """One row a site, checkpoint and measure; word counts as columns `words_value`, `words_low`, `words_high`."""
        table = frame(self.measures)
        if self.words is not None:
            for name, interval in zip((ACCURACY, AUROC), self.words, strict=True):
                for column in ("value", "low", "high"):
                    table.loc[table["measure"] == name, f"words_{column}"] = getattr(interval, column)
        return table


def recognise(
    aligned: Activations,
    tuned: Mapping[str, Activations],
    labels: Sequence[bool],
    groups: Sequence[Hashable] | None = None,
    *,
    texts: Sequence[str] | None = None,
    n_null: int = N_NULL,
    n_folds: int = N_FOLDS,
    seed: int = 0,
) -> Recognition:
    """Probe every site of every checkpoint for the labels.

    Args:
        aligned, tuned: one row a prompt, the same prompts and sites; tuned by name.
        labels: whether each prompt is harmful. groups: the verb, voice or scene of each.
        texts: of the prompts, for the baseline of word counts.
        n_null: shuffles a site; 20 give a band, 100 a p-value.

    Raises SiteError for activations that do not match, UserError for labels that do not.
    """
    for other in tuned.values():
        check_same(aligned, other)
    if len(labels) != len(aligned.prompt_ids):
        raise UserError(f"{len(labels)} labels cannot go with {len(aligned.prompt_ids)} prompts")
    values = {"aligned": one_row_each(aligned), **{name: one_row_each(part) for name, part in tuned.items()}}
    split = split_rows(labels, groups, n_folds=n_folds, seed=seed)
    shuffled = null_splits(labels, groups, n_null=n_null, n_folds=n_folds, seed=seed)
    measures: list[Measure] = []
    for i, site in enumerate(aligned.sites):
        rows = {name: part[i] for name, part in values.items()}
        first, *moved = cross_validate(rows["aligned"], split, [rows[name] for name in tuned])
        own = {"aligned": first} | {name: cross_validate(rows[name], split)[0] for name in tuned}
        for name, held_out in own.items():
            null = [cross_validate(rows[name], draw)[0] for draw in shuffled]
            measures += probe_measures(site, name, held_out, groups, null)
        for name, held_out in zip(tuned, moved, strict=True):
            measures += probe_measures(site, f"{name}, aligned probe", held_out, groups)
            change = paired_bootstrap(own[name].correct, first.correct, groups, seed)
            measures.append(Measure.make(site, DIFFERENCE, name, change))
    words = None if texts is None else word_baseline(texts, labels, groups, n_folds=n_folds, seed=seed)
    positive = sum(map(bool, labels))
    return Recognition(tuple(measures), words, (positive, len(labels) - positive))


def probe_measures(
    site: Site,
    of: str,
    held_out: HeldOut,
    groups: Sequence[Hashable] | None = None,
    null: Sequence[HeldOut] = (),
) -> list[Measure]:
    """Accuracy and AUROC of held-out scores, with intervals over groups and the band of their null.

    The intervals are over the prompts that are read; how the probes would differ had they been fitted on others is not in them.
    """
    accuracy, area = _intervals(held_out, groups)
    return [
        Measure.make(site, ACCURACY, of, accuracy, [draw.accuracy for draw in null]),
        Measure.make(site, AUROC, of, area, [draw.auroc() for draw in null]),
    ]


def word_baseline(
    texts: Sequence[str],
    labels: Sequence[bool],
    groups: Sequence[Hashable] | None = None,
    *,
    n_folds: int = N_FOLDS,
    seed: int = 0,
) -> tuple[Interval, Interval] | None:
    """Accuracy and AUROC of the same probe on counts of words; None where the texts hold no words."""
    from sklearn.feature_extraction.text import CountVectorizer

    if len(texts) != len(labels):
        raise UserError(f"{len(texts)} texts cannot go with {len(labels)} labels")
    # Words of a single letter count; the vocabulary comes from all texts, which holds no label.
    counter = CountVectorizer(token_pattern=r"\w+")
    try:
        counts = counter.fit_transform(texts).toarray()
    except ValueError:  # scikit-learn's "empty vocabulary"
        return None
    split = split_rows(labels, groups, n_folds=n_folds, seed=seed)
    (held_out,) = cross_validate(torch.from_numpy(counts).double(), split)
    return _intervals(held_out, groups)


def _intervals(held_out: HeldOut, groups: Sequence[Hashable] | None) -> tuple[Interval, Interval]:
    return (
        cluster_bootstrap(held_out.correct, groups),
        cluster_jackknife(held_out.auroc, len(held_out.scores), groups, limits=(0, 1)),
    )

"""What did a fine-tune change in the activations, where, and how much of it lies along the refusal direction?

Two checkpoints on identical prompts, site by site; harmful and harmless prompts apart where a number is a mean over prompts:

1. `relative change`: `‖h_tuned − h_aligned‖ / ‖h_aligned‖`, mean over prompts.
2. `CKA`, debiased: are prompts that were alike still alike? Null: prompts of the tuned model permuted.
3. `subspace overlap`: mean squared cosine of the principal angles between the leading principal components, `largest angle` beside it in
   degrees. Null: random subspaces.
4. `gap along refusal`: how far harmful lie from harmless prompts along the aligned model's unit mean-difference direction of the site, in
   standard deviations of the aligned prompts within their kind; `shift along refusal`: how far the tuned model moved each kind, in the same
   unit. `share along refusal`: `(Δ·r̂)² / ‖Δ‖²`, what part of the change that is. Null of both: mean differences under shuffled labels.

The direction is fitted on other prompts: on the same ones its own noise would look like a gap.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import UserError
from interp.evals.statistics import Interval, cluster_bootstrap, cluster_jackknife
from interp.geometry.conflict import overlap, random_overlap
from interp.geometry.directions import mean_difference, shuffled_difference, unit
from interp.geometry.similarity import check_finite, cka, relative_change
from interp.geometry.subspaces import pca, principal_angles
from interp.methods.measures import Measure, check_same, frame, one_row_each
from interp.models.activations import Activations
from interp.models.sites import Site

if TYPE_CHECKING:
    import pandas as pd

CHANGE, CKA, OVERLAP, ANGLE = "relative change", "CKA", "subspace overlap", "largest angle"
GAP, SHIFT, SHARE = "gap along refusal", "shift along refusal", "share along refusal"


@dataclass(frozen=True, eq=False)
class Drift:
    """The drift of one fine-tune at every site.

    Args:
        measures: `of` is `harmful` or `harmless` prompts, `aligned` or `tuned` for the gap, "" where all prompts count.
        angles: principal angles of each site in radians, ascending.
        rank: principal components compared.
        n_prompts: harmful and harmless prompts.
    """

    measures: tuple[Measure, ...]
    angles: Float[np.ndarray, "site rank"]
    rank: int
    n_prompts: tuple[int, int]

    def to_frame(self) -> pd.DataFrame:
        """One row a site, measure and kind of prompts."""
        return frame(self.measures)


def activation_drift(
    aligned: Activations,
    tuned: Activations,
    harmful: Sequence[bool],
    groups: Sequence[Hashable] | None = None,
    *,
    fit: tuple[Float[Tensor, "site n d_model"], Float[Tensor, "site m d_model"]] | None = None,
    rank: int = 10,
    n_null: int = 100,
    seed: int = 0,
) -> Drift:
    """Measure the drift at every site.

    Args:
        aligned, tuned: one row a prompt, the same prompts and sites.
        harmful: whether each prompt is. groups: the verb, voice or scene of each.
        fit: the aligned model's values at the same sites on *other* harmful and harmless prompts, for the refusal direction; measures
            along it are left out where None.
        rank: principal components to compare.

    Raises SiteError for captures that do not match, UserError for labels or groups that do not, a kind without prompts, or a rank that the
    prompts cannot have.
    """
    check_same(aligned, tuned)
    before, after = one_row_each(aligned), one_row_each(tuned)
    labels = np.asarray(harmful, dtype=bool)
    n = before.shape[1]
    if len(labels) != n or (groups is not None and len(groups) != n):
        raise UserError(f"{n} prompts need a label and a group each")
    if labels.all() or not labels.any():
        raise UserError("drift compares harmful with harmless prompts; all of these are of one kind")
    if fit is not None and any(part.shape[0] != len(aligned.sites) for part in fit):
        raise UserError(
            f"the prompts of the direction were captured at other sites than the {len(aligned.sites)} compared"
        )
    chance = random_overlap(before.shape[2], rank, n_draws=n_null, seed=seed).tolist()
    measures: list[Measure] = []
    angles = []
    for i, site in enumerate(aligned.sites):
        x, y = check_finite(before[i], "aligned"), check_finite(after[i], "tuned")
        measures += _changes(site, x, y, labels, groups)
        measures.append(_cka(site, x, y, groups, n_null=n_null, seed=seed))
        found = principal_angles(pca(x, rank).basis, pca(y, rank).basis).numpy()
        angles.append(found)
        measures += _subspaces(site, x, y, groups, rank=rank, largest=found[-1], chance=chance, seed=seed)
        if fit is not None:
            axes = _axes(fit, i, n_null, seed)
            measures += _gaps(site, {"aligned": x, "tuned": y}, axes, labels, groups)
            measures += _along(site, x, y, axes, labels, groups)
    return Drift(tuple(measures), np.stack(angles), rank, (int(labels.sum()), int((~labels).sum())))


def refusal_gap(
    aligned: Activations,
    tuned: Mapping[str, Activations],
    harmful: Sequence[bool],
    groups: Sequence[Hashable] | None = None,
    *,
    fit: tuple[Float[Tensor, "site n d_model"], Float[Tensor, "site m d_model"]],
    n_null: int = 100,
    seed: int = 0,
) -> tuple[Measure, ...]:
    """The gap along the aligned model's refusal direction in several checkpoints at every site; arguments as in `activation_drift`."""
    for other in tuned.values():
        check_same(aligned, other)
    labels = np.asarray(harmful, dtype=bool)
    values = {"aligned": one_row_each(aligned), **{name: one_row_each(part) for name, part in tuned.items()}}
    measures: list[Measure] = []
    for i, site in enumerate(aligned.sites):
        rows = {name: check_finite(part[i], name) for name, part in values.items()}
        measures += _gaps(site, rows, _axes(fit, i, n_null, seed), labels, groups)
    return tuple(measures)


def _axes(
    fit: tuple[Float[Tensor, "site n d_model"], Float[Tensor, "site m d_model"]],
    i: int,
    n_null: int,
    seed: int,
) -> Float[Tensor, "direction d_model"]:
    """The unit refusal direction of site i, then those of shuffled labels."""
    positive, negative = (check_finite(part[i], "fitted")[None] for part in fit)
    directions = [mean_difference(positive, negative)[0]]
    directions += [shuffled_difference(positive, negative, seed + draw)[0] for draw in range(n_null)]
    return unit(torch.stack(directions))


def _spread(
    site: Site, old: Float[np.ndarray, "n direction"], labels: Bool[np.ndarray, " n"]
) -> Float[np.ndarray, " direction"]:
    """Standard deviation of the aligned projections within their kind."""
    spread = np.sqrt((old[labels].var(0) + old[~labels].var(0)) / 2)
    if not (spread > 0).all():
        raise UserError(
            f"{site}: nothing varies along the direction; give prompts that differ at the token read"
        )
    return spread


def _gaps(
    site: Site,
    rows: Mapping[str, Float[Tensor, "n d_model"]],
    axes: Float[Tensor, "direction d_model"],
    labels: Bool[np.ndarray, " n"],
    groups: Sequence[Hashable] | None,
) -> list[Measure]:
    projected = {name: (part @ axes.T).numpy() for name, part in rows.items()}
    spread = _spread(site, projected["aligned"], labels)
    measures = []
    for name, values in projected.items():
        scaled = values / spread
        found = cluster_jackknife(partial(_difference, scaled[:, 0], labels), len(labels), groups)
        null = scaled[labels].mean(0) - scaled[~labels].mean(0)
        measures.append(Measure.make(site, GAP, name, found, null[1:].tolist()))
    return measures


def _kinds(labels: Bool[np.ndarray, " n"]) -> list[tuple[str, np.ndarray]]:
    return [("harmful", np.flatnonzero(labels)), ("harmless", np.flatnonzero(~labels))]


def _mean(values: Float[np.ndarray, " n"], rows: np.ndarray, groups: Sequence[Hashable] | None) -> Interval:
    return cluster_bootstrap(values[rows], None if groups is None else [groups[row] for row in rows])


def _changes(
    site: Site,
    x: Float[Tensor, "n d_model"],
    y: Float[Tensor, "n d_model"],
    labels: Bool[np.ndarray, " n"],
    groups: Sequence[Hashable] | None,
) -> list[Measure]:
    change = relative_change(x, y).numpy()
    return [Measure.make(site, CHANGE, kind, _mean(change, rows, groups)) for kind, rows in _kinds(labels)]


def _cka(
    site: Site,
    x: Float[Tensor, "n d_model"],
    y: Float[Tensor, "n d_model"],
    groups: Sequence[Hashable] | None,
    *,
    n_null: int,
    seed: int,
) -> Measure:
    rng = np.random.default_rng(seed)
    null = [cka(x, y[torch.from_numpy(rng.permutation(len(y)))]) for _ in range(n_null)]
    found = cluster_jackknife(lambda rows: cka(x[rows], y[rows]), len(x), groups, seed, limits=(-1, 1))
    return Measure.make(site, CKA, "", found, null)


def _subspaces(
    site: Site,
    x: Float[Tensor, "n d_model"],
    y: Float[Tensor, "n d_model"],
    groups: Sequence[Hashable] | None,
    *,
    rank: int,
    largest: float,
    chance: Sequence[float],
    seed: int,
) -> list[Measure]:
    def shared(rows: np.ndarray) -> float:
        return overlap(pca(x[rows], rank).basis.T, pca(y[rows], rank).basis.T)

    found = cluster_jackknife(shared, len(x), groups, seed, limits=(0, 1))
    angle = Interval(float(np.degrees(largest)), np.nan, np.nan, found.n)
    return [Measure.make(site, OVERLAP, "", found, chance), Measure.make(site, ANGLE, "", angle)]


def _along(
    site: Site,
    x: Float[Tensor, "n d_model"],
    y: Float[Tensor, "n d_model"],
    axes: Float[Tensor, "direction d_model"],
    labels: Bool[np.ndarray, " n"],
    groups: Sequence[Hashable] | None,
) -> list[Measure]:
    """How far each kind moved along the first axis, with the other axes as null."""
    old, new = (x @ axes.T).numpy(), (y @ axes.T).numpy()
    change = (y - x).square().sum(-1).numpy()
    moved = (new - old) / _spread(site, old, labels)
    # A prompt that did not move at all has nothing along any direction.
    part = np.divide((new - old) ** 2, change[:, None], out=np.zeros_like(old), where=change[:, None] > 0)
    measures = []
    for kind, rows in _kinds(labels):
        for name, values in ((SHIFT, moved), (SHARE, part)):
            null = values[rows].mean(0)[1:].tolist()
            measures.append(Measure.make(site, name, kind, _mean(values[:, 0], rows, groups), null))
    return measures


def _difference(
    values: Float[np.ndarray, " n"], labels: Bool[np.ndarray, " n"], rows: Int[np.ndarray, " chosen"]
) -> float:
    """Harmful minus harmless of some rows; NaN where one kind is missing."""
    values, labels = values[rows], labels[rows]
    if labels.all() or not labels.any():
        return float("nan")
    return float(values[labels].mean() - values[~labels].mean())

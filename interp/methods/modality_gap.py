"""How far apart does one model hold the same requests in two modalities, and does harm point the same way in both?

Two captures of one checkpoint on paired prompts (text and speech, a request and its image), site by site (METHODS §D, motivation 2):

1. `distance`: of the two means, in units of the pooled within-modality spread. Null: modalities swapped in random pairs.
2. `accuracy`, `AUROC`: can a linear probe tell the modalities apart? Groups are left out whole. Null: shuffled modalities.
3. `CKA`, debiased: are requests that are alike in one modality alike in the other? Null: pairs broken up.
4. `cosine`: of the harmful − harmless mean differences of the two modalities. Null: labels shuffled within one. A cosine is limited by noise,
   so `cosine of halves` takes each direction from another half of the prompts; its ceiling is what two halves of *one* modality give.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.data.prompts import Prompt, PromptSet
from interp.errors import UserError
from interp.evals.statistics import Interval, cluster_jackknife
from interp.geometry.directions import cosine, mean_difference, shuffled_difference
from interp.geometry.linear_probe import Split, cross_validate, null_splits, split_rows
from interp.geometry.similarity import check_finite, cka, mean_distance
from interp.methods.measures import NULL_BAND, Measure, check_same, frame, one_row_each
from interp.methods.recognition import probe_measures
from interp.models.activations import Activations
from interp.models.sites import Site

if TYPE_CHECKING:
    import pandas as pd

DISTANCE, CKA, COSINE, HALVES = "distance", "CKA", "cosine", "cosine of halves"
N_SPLITS = 50


@dataclass(frozen=True, eq=False)
class ModalityGap:
    """The gap between two modalities at every site.

    Args:
        names: of the two sets. n_pairs: requests in both.
    """

    measures: tuple[Measure, ...]
    names: tuple[str, str]
    n_pairs: int

    def to_frame(self) -> pd.DataFrame:
        """One row a site and measure."""
        return frame(self.measures)


def pair_prompts(
    first: PromptSet, second: PromptSet, by: str = "id", suffixes: tuple[str, str] = ("", "")
) -> list[tuple[Prompt, Prompt]]:
    """The prompts of two sets that ask the same, in the order of the first.

    Args:
        by: what partners share: `id`, `group`, or a column of the files that is no field of a prompt (kept in `meta`).
        suffixes: endings taken off the ids of the first and of the second set before they are compared, such as `("-text", "-audio")`.

    Raises UserError naming the first prompt that has no partner, two that share a key, or partners of different labels.
    """
    ours, theirs = (_by_key(part, by, suffix) for part, suffix in zip((first, second), suffixes, strict=True))
    for prompts, keys, other, others in ((first, ours, second, theirs), (second, theirs, first, ours)):
        missing = [key for key in keys if key not in others]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(prompts)} prompts of {prompts.name!r} have no partner in {other.name!r} by {by}, "
                f"such as {missing[0]!r}; give files of the same requests, or another column or suffix to pair them by"
            )
    pairs = [(prompt, theirs[key]) for key, prompt in ours.items()]
    for a, b in pairs:
        if a.label != b.label:
            raise UserError(
                f"prompt {a.id!r} of {first.name!r} is {a.label}, its partner {b.id!r} is {b.label}; they must agree"
            )
    return pairs


def _by_key(prompts: PromptSet, by: str, suffix: str) -> Mapping[str, Prompt]:
    found: dict[str, Prompt] = {}
    for prompt in prompts:
        key = prompt.id.removesuffix(suffix) if by == "id" else prompt.group
        if by not in ("id", "group"):
            key = None if prompt.meta.get(by) is None else str(prompt.meta[by])
        if key is None:
            raise UserError(f"prompt {prompt.id!r} of {prompts.name!r} has no {by} to pair it by")
        if key in found:
            raise UserError(
                f"prompts {found[key].id!r} and {prompt.id!r} of {prompts.name!r} share the {by} {key!r}: a pair needs one each"
            )
        found[key] = prompt
    return found


def modality_gap(
    first: Activations,
    second: Activations,
    *,
    names: tuple[str, str] = ("first", "second"),
    harmful: Sequence[bool] | None = None,
    groups: Sequence[Hashable] | None = None,
    n_null: int = 20,
    seed: int = 0,
) -> ModalityGap:
    """Measure the gap at every site.

    Args:
        first, second: of one checkpoint, one row a prompt, row i of both from the same request.
        harmful: whether each request is, for the cosines; left out where None.
        groups: the verb, voice or scene of each request; by default every pair is its own.

    Raises SiteError for captures that do not match, UserError for labels or groups that do not, or too few prompts.
    """
    check_same(first, second, prompts=False)
    a, b = one_row_each(first), one_row_each(second)
    n = a.shape[1]
    if b.shape[1] != n:
        raise UserError(f"{n} prompts of {names[0]} cannot be paired with {b.shape[1]} of {names[1]}")
    clusters = list(range(n)) if groups is None else list(groups)
    if len(clusters) != n or (harmful is not None and len(harmful) != n):
        raise UserError(f"{n} pairs need a group and a label each")
    modality, twice = [False] * n + [True] * n, [*clusters, *clusters]
    splits = [split_rows(modality, twice, seed=seed), *null_splits(modality, twice, n_null=n_null, seed=seed)]
    measures: list[Measure] = []
    for i, site in enumerate(first.sites):
        x, y = check_finite(a[i], names[0]), check_finite(b[i], names[1])
        measures += _apart(site, x, y, clusters, splits, seed)
        if harmful is not None:
            labels = np.asarray(harmful, dtype=bool)
            measures += _cosines(site, x, y, labels, clusters, n_null=n_null, seed=seed)
    return ModalityGap(tuple(measures), names, n)


def _apart(
    site: Site,
    x: Float[Tensor, "n d_model"],
    y: Float[Tensor, "n d_model"],
    clusters: Sequence[Hashable],
    splits: Sequence[Split],
    seed: int,
) -> list[Measure]:
    """Distance, separability and CKA; the first split tells the modalities apart, the others are its null."""
    n, rng = len(x), np.random.default_rng(seed)
    swapped, broken = [], []
    for _ in splits[1:]:
        flip = torch.from_numpy(rng.random(n) < 0.5)[:, None]
        swapped.append(mean_distance(torch.where(flip, y, x), torch.where(flip, x, y)))
        broken.append(cka(x, y[torch.from_numpy(rng.permutation(n))]))
    distance = cluster_jackknife(
        lambda rows: mean_distance(x[rows], y[rows]), n, clusters, seed, limits=(0, np.inf)
    )
    alike = cluster_jackknife(lambda rows: cka(x[rows], y[rows]), n, clusters, seed, limits=(-1, 1))
    both = torch.cat([x, y])
    held_out, *null = [cross_validate(both, split)[0] for split in splits]
    return [
        Measure.make(site, DISTANCE, "", distance, swapped),
        *probe_measures(site, "", held_out, [*clusters, *clusters], null),
        Measure.make(site, CKA, "", alike, broken),
    ]


def _cosines(
    site: Site,
    x: Float[Tensor, "n d_model"],
    y: Float[Tensor, "n d_model"],
    harmful: Bool[np.ndarray, " n"],
    clusters: Sequence[Hashable],
    *,
    n_null: int,
    seed: int,
) -> list[Measure]:
    if not 4 <= harmful.sum() <= len(harmful) - 4:
        raise UserError(
            f"cosines of directions need four requests of each kind, there are {int(harmful.sum())} harmful of {len(harmful)}"
        )

    def direction(rows: Tensor, chosen: np.ndarray) -> Tensor:
        positive, negative = (chosen[harmful[chosen] == kind] for kind in (True, False))
        if not len(positive) or not len(negative):
            return torch.full(rows.shape[1:], float("nan"), dtype=torch.float64)
        return mean_difference(rows[None, positive], rows[None, negative])[0]

    def agreement(chosen: np.ndarray) -> float:
        return float(cosine(direction(x, chosen), direction(y, chosen)))

    everyone, n = np.arange(len(x)), len(x)
    whole = direction(x, everyone)
    null = [
        float(cosine(whole, shuffled_difference(y[None, harmful], y[None, ~harmful], seed + draw)[0]))
        for draw in range(n_null)
    ]
    across, within = [], []
    for split in range(N_SPLITS):
        one, two = _halves(clusters, seed + split)
        across.append(float(cosine(direction(x, one), direction(y, two))))
        within += [float(cosine(direction(rows, one), direction(rows, two))) for rows in (x, y)]
    # A half without one of the kinds, possible with few groups, says nothing.
    low, high = np.nanquantile(across, NULL_BAND).tolist()
    halves = Interval(float(np.nanmean(across)), low, high, n)
    return [
        Measure.make(site, COSINE, "", cluster_jackknife(agreement, n, clusters, seed, limits=(-1, 1)), null),
        Measure.make(site, HALVES, "", halves, ceiling=float(np.nanmean(within))),
    ]


def _halves(clusters: Sequence[Hashable], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of two random halves of the prompts, whole clusters each."""
    codes = np.unique(np.array([repr(cluster) for cluster in clusters]), return_inverse=True)[1]
    order = np.random.default_rng(seed).permutation(codes.max() + 1)
    first = np.isin(codes, order[::2])
    return np.flatnonzero(first), np.flatnonzero(~first)

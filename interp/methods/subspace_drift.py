"""In how many dimensions did a fine-tune change the activations, and is it the same subspace for other ranks, modalities, checkpoints?

Site by site, in two views: `raw`, and `z-scored` by the first checkpoint's deviation of each channel over all prompts. A massive channel
can *be* the first component of the raw view (Gemma 3's channel 443), so both are always given, with the largest channel's share beside.

1. Spectra of each checkpoint's activations in each modality, centred: components for 50, 80 and 90 % of the variance, participation ratio.
2. Spectra of the change `Δ = h_tuned − h_base` on the same prompts, with the share of its energy that is one constant shift, and the
   components above those of channels permuted by themselves (Horn 1965).
3. Components in which the change has more energy than that of a benign fine-tune (`geometry.contrastive`); chance: the labels of the two
   changes swapped, whole clusters at once. A benign fine-tune is the null of the first kind, swapped labels of the second.
4. Mean squared cosine of the principal angles (`overlap`) and the largest angle between the leading components of two checkpoints, two
   changes, or two modalities. Null: random subspaces. Ceiling: two sets dealt from both without regard to where they came from.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import UserError
from interp.evals.statistics import Interval, cluster_jackknife
from interp.geometry.conflict import Spectrum, overlap, random_overlap, spectrum
from interp.geometry.contrastive import components_above_chance, contrast
from interp.geometry.similarity import check_finite
from interp.geometry.subspaces import leading_basis, principal_angles
from interp.methods.measures import Measure, check_same, frame, one_row_each
from interp.models.activations import Activations
from interp.models.sites import Site

if TYPE_CHECKING:
    import pandas as pd

SHARES = (0.5, 0.8, 0.9)
VIEWS = ("raw", "z-scored")
BEYOND, ABOVE, PARTICIPATION = "components beyond benign", "components above chance", "participation ratio"
CHANNEL, CONSTANT, OVERLAP, ANGLE = "largest channel", "constant shift", "subspace overlap", "largest angle"
KEPT = 50


@dataclass(frozen=True, eq=False)
class SubspaceDrift:
    """Dimensions and angles at every site.

    Args:
        measures: named `measure, view`; `of` is a checkpoint, `Δ checkpoint`, or two of them joined by ` | `, behind it in brackets the
            modality where there are several.
        spectra: leading components of every set: site, of, view, component from 1, share, cumulative share.
    """

    measures: tuple[Measure, ...]
    spectra: tuple[tuple[Site, str, str, Float[np.ndarray, " _"]], ...]

    def to_frame(self) -> pd.DataFrame:
        """One row a site, measure and set."""
        table = frame(self.measures)
        names = table["measure"].str.rsplit(", ", n=1, expand=True)
        return table.assign(measure=names[0], view=names[1])

    def spectra_frame(self) -> pd.DataFrame:
        """One row a site, set, view and component."""
        import pandas as pd

        rows = [
            (str(site), site.layer, of, view, i + 1, share, cumulative)
            for site, of, view, shares in self.spectra
            for i, (share, cumulative) in enumerate(zip(shares, shares.cumsum(), strict=True))
        ]
        columns = ["site", "layer", "of", "view", "component", "share", "cumulative"]
        return pd.DataFrame(rows, columns=columns)


def subspace_drift(
    checkpoints: Mapping[str, Activations],
    modalities: Sequence[str] | None = None,
    groups: Sequence[Hashable] | None = None,
    *,
    benign: str | None = None,
    rank: int = 10,
    n_null: int = 20,
    seed: int = 0,
    angles_at: Sequence[int] | None = None,
) -> SubspaceDrift:
    """Measure spectra, changes and angles at every site.

    Args:
        checkpoints: activations by name, one row a prompt, the same prompts and sites; the first is the base.
        modalities: of each prompt; None takes them as one. groups: the cluster of each.
        benign: the checkpoint whose change is the null of the others'.
        rank: components whose spans are compared. angles_at: layers at which they are, all by default: pairs of many checkpoints take long.

    Raises SiteError for captures that do not match, UserError for fewer prompts of a modality than `rank` + 2 or an unknown benign.
    """
    names = list(checkpoints)
    base = checkpoints[names[0]]
    for other in names[1:]:
        check_same(base, checkpoints[other])
    if benign is not None and benign not in names[1:]:
        raise UserError(f"the benign fine-tune {benign!r} is not among {', '.join(names[1:]) or 'none'}")
    values = {name: one_row_each(acts) for name, acts in checkpoints.items()}
    n = values[names[0]].shape[1]
    kinds = ["all"] * n if modalities is None else list(modalities)
    if len(kinds) != n or (groups is not None and len(groups) != n):
        raise UserError(f"{n} prompts need a modality and a group each")
    parts = {kind: np.flatnonzero(np.array(kinds) == kind) for kind in dict.fromkeys(kinds)}
    for kind, rows in parts.items():
        if len(rows) < rank + 2:
            raise UserError(
                f"{len(rows)} prompts of modality {kind!r} cannot have {rank} components; lower the rank or add prompts"
            )
    measures: list[Measure] = []
    spectra: list[tuple[Site, str, str, Float[np.ndarray, " _"]]] = []
    for i, site in enumerate(base.sites):
        for view, sets in _views({name: check_finite(part[i], name) for name, part in values.items()}):
            one = _AtSite(site, view, parts, groups, rank, n_null, seed)
            changes = {name: sets[name] - sets[names[0]] for name in names[1:]}
            for name, acts in sets.items():
                measures += one.dimensions(name, acts, spectra)
            for name, acts in changes.items():
                measures += one.dimensions(f"Δ {name}", acts, spectra)
                measures += one.change(f"Δ {name}", acts, None if benign is None else changes[benign])
            if angles_at is not None and site.layer not in angles_at:
                continue
            for a, b in combinations(names, 2):
                measures += one.angles(f"{a} | {b}", sets[a], sets[b])
            for a, b in combinations(changes, 2):
                measures += one.angles(f"Δ {a} | Δ {b}", changes[a], changes[b])
            for name, acts in {**sets, **{f"Δ {name}": change for name, change in changes.items()}}.items():
                measures += one.between_modalities(name, acts)
    return SubspaceDrift(tuple(measures), tuple(spectra))


def _views(
    sets: Mapping[str, Float[Tensor, "n d_model"]],
) -> Iterator[tuple[str, dict[str, Float[Tensor, "n d_model"]]]]:
    """The sets as they are, then in units of the first one's deviations; a channel that never varies there keeps its unit."""
    first = next(iter(sets.values()))
    std = first.std(0, correction=0)
    scale = torch.where(std > 1e-12 * (first.mean(0).abs() + std.max()), std, torch.ones_like(std))
    yield VIEWS[0], dict(sets)
    yield VIEWS[1], {name: rows / scale for name, rows in sets.items()}


@dataclass(frozen=True)
class _AtSite:
    """The measures of one site in one view."""

    site: Site
    view: str
    parts: Mapping[str, Int[np.ndarray, " row"]]
    groups: Sequence[Hashable] | None
    rank: int
    n_null: int
    seed: int

    def _kinds(self, of: str) -> Iterator[tuple[str, Int[np.ndarray, " row"]]]:
        for kind, rows in self.parts.items():
            yield (of if len(self.parts) == 1 else f"{of} [{kind}]"), rows

    def _clusters(self, rows: Int[np.ndarray, " row"]) -> list[Hashable] | None:
        return None if self.groups is None else [self.groups[row] for row in rows]

    def _make(self, name: str, of: str, found: Interval, **more: object) -> Measure:
        return Measure.make(self.site, f"{name}, {self.view}", of, found, **more)  # type: ignore[arg-type]

    def dimensions(
        self,
        of: str,
        rows: Float[Tensor, "n d_model"],
        spectra: list[tuple[Site, str, str, Float[np.ndarray, " _"]]],
    ) -> list[Measure]:
        """Components for shares of the variance, participation ratio and the largest channel's share, of centred rows."""
        measures = []
        for name, chosen in self._kinds(of):
            x = rows[chosen] - rows[chosen].mean(0)
            inner = x @ x.T
            whole = spectrum(inner)
            if not float(whole.energy.sum()) > 0:
                # a checkpoint equal to the base changed nothing: there is no spectrum to speak of
                continue
            shares = (whole.energy / whole.energy.sum())[:KEPT].numpy()
            spectra.append((self.site, name, self.view, shares))
            # the measures leave out the same blocks of clusters: one spectrum each
            spectrum_of = lru_cache(
                lambda kept, inner=inner: _of(inner, np.frombuffer(kept, dtype=np.int64).copy())
            )
            statistics = {
                f"components for {100 * s:.0f} %": partial(Spectrum.components_for, share=s) for s in SHARES
            }
            for measure, of_spectrum in {**statistics, PARTICIPATION: _participation}.items():
                found = cluster_jackknife(
                    lambda kept, of_spectrum=of_spectrum, of=spectrum_of: of_spectrum(of(kept.astype(np.int64).tobytes())),  # type: ignore[misc]
                    len(chosen), self._clusters(chosen), self.seed, limits=(1, np.inf),
                )  # fmt: skip
                measures.append(self._make(measure, name, found))
            largest = int(x.square().sum(0).argmax())
            share = cluster_jackknife(
                lambda kept, x=x, top=largest: _share_of(x[torch.from_numpy(kept)], top),  # type: ignore[misc]
                len(chosen), self._clusters(chosen), self.seed, limits=(0, 1),
            )  # fmt: skip
            measures.append(self._make(CHANNEL, name, share))
        return measures

    def change(
        self, of: str, rows: Float[Tensor, "n d_model"], benign: Float[Tensor, "n d_model"] | None
    ) -> list[Measure]:
        """What part of a change is constant, how many components it has above chance, and how many beyond a benign change."""
        measures = []
        for name, chosen in self._kinds(of):
            x, clusters = rows[chosen], self._clusters(chosen)
            if not float(x.square().sum()) > 0:
                continue
            found = cluster_jackknife(partial(_constant, x), len(x), clusters, self.seed, limits=(0, 1))
            signs = _signs(clusters, len(x), self.n_null, self.seed)
            null = [_constant(x * flip[:, None], np.arange(len(x))) for flip in signs]
            measures.append(self._make(CONSTANT, name, found, null=null))
            count = components_above_chance(x, n_null=self.n_null, seed=self.seed)
            measures.append(self._make(ABOVE, name, _exact(count, len(x))))
            if benign is not None and benign is not rows:
                beyond = contrast(x, benign[chosen], clusters, n_null=5 * self.n_null, seed=self.seed)
                measures.append(self._make(BEYOND, name, _exact(beyond.rank, len(x))))
        return measures

    def angles(self, of: str, a: Float[Tensor, "n d_model"], b: Float[Tensor, "n d_model"]) -> list[Measure]:
        """Overlap and largest angle of two sets on the same prompts."""
        measures = []
        for name, chosen in self._kinds(of):
            clusters = self._clusters(chosen)
            swaps = _signs(clusters, len(chosen), self.n_null, self.seed) > 0
            x, y = a[chosen], b[chosen]
            dealt = [(torch.where(swap[:, None], x, y), torch.where(swap[:, None], y, x)) for swap in swaps]
            measures += self._overlap(name, x, y, dealt, clusters)
        return measures

    def between_modalities(self, of: str, rows: Float[Tensor, "n d_model"]) -> list[Measure]:
        """Overlap and largest angle of one checkpoint's activations in two modalities, each around its own mean."""
        measures = []
        for a, b in combinations(self.parts, 2):
            x, y = (rows[self.parts[kind]] for kind in (a, b))
            both = torch.cat([x - x.mean(0), y - y.mean(0)])
            rng = np.random.default_rng(self.seed)
            orders = [torch.from_numpy(rng.permutation(len(both))) for _ in range(self.n_null)]
            dealt = [(both[order[: len(x)]], both[order[len(x) :]]) for order in orders]
            measures += self._overlap(f"{of} [{a} | {b}]", x, y, dealt, None)
        return measures

    def _overlap(
        self,
        of: str,
        x: Float[Tensor, "n d_model"],
        y: Float[Tensor, "m d_model"],
        dealt: Sequence[tuple[Tensor, Tensor]],
        clusters: list[Hashable] | None,
    ) -> list[Measure]:
        if not (float(x.var(0).sum()) > 0 and float(y.var(0).sum()) > 0):
            return []
        shared = partial(_shared, rank=self.rank)
        if len(x) == len(y):
            found = cluster_jackknife(
                lambda kept: shared(x[torch.from_numpy(kept)], y[torch.from_numpy(kept)]),
                len(x), clusters, self.seed, blocks=10, limits=(0, 1),
            )  # fmt: skip
        else:
            found = Interval(shared(x, y), np.nan, np.nan, len(x) + len(y))
        chance = random_overlap(x.shape[1], self.rank, n_draws=self.n_null, seed=self.seed).tolist()
        ceiling = float(np.mean([shared(p, q) for p, q in dealt]))
        angle = float(principal_angles(leading_basis(x, self.rank), leading_basis(y, self.rank))[-1])
        return [
            self._make(OVERLAP, of, found, null=chance, ceiling=ceiling),
            self._make(ANGLE, of, Interval(float(np.degrees(angle)), np.nan, np.nan, found.n)),
        ]


def _of(inner: Float[Tensor, "n n"], kept: Int[np.ndarray, " kept"]) -> Spectrum:
    """The spectrum of some rows around their own mean, from the inner products of all."""
    rows = torch.from_numpy(kept)
    part = inner[rows][:, rows]
    part = part - part.mean(0) - part.mean(1, keepdim=True) + part.mean()
    return spectrum((part + part.T) / 2)


def _participation(of: Spectrum) -> float:
    return of.participation_ratio


def _share_of(x: Float[Tensor, "n d_model"], channel: int) -> float:
    energy = (x - x.mean(0)).square().sum(0)
    return float(energy[channel] / energy.sum())


def _constant(x: Float[Tensor, "n d_model"], kept: Int[np.ndarray, " kept"]) -> float:
    rows = x[torch.from_numpy(kept)]
    return float(rows.mean(0).square().sum() / rows.square().sum(1).mean())


def _shared(x: Float[Tensor, "n d_model"], y: Float[Tensor, "m d_model"], rank: int) -> float:
    return overlap(leading_basis(x, rank).T, leading_basis(y, rank).T)


def _signs(clusters: Sequence[Hashable] | None, n: int, draws: int, seed: int) -> Float[Tensor, "draw n"]:
    """A random sign for each cluster of prompts, one row a draw."""
    codes = np.arange(n)
    if clusters is not None:
        codes = np.unique(np.array([repr(c) for c in clusters]), return_inverse=True)[1]
    drawn = np.random.default_rng(seed).choice([-1.0, 1.0], size=(draws, int(codes.max()) + 1))
    return torch.from_numpy(drawn[:, codes])


def _exact(count: int, n: int) -> Interval:
    """A number found by a test, which has its own error rate and no interval."""
    return Interval(float(count), np.nan, np.nan, n)

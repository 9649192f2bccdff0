"""In how many dimensions did narrow fine-tunings move the activations, and are they the same ones? From the activations that trials kept.

1. The change `h_tuned − h_aligned` on the same questions, in writing and shown, for several ranks, at every layer of the decoder; its null is the
   fine-tuning on helpful answers (share 0). Subspaces are compared at the middle layer and at three quarters of the depth.
2. The same of the vision tower where it was adapted too, on the mean over a picture's patches.

Measures, nulls and both views (raw, z-scored) are those of `methods/subspace_drift.py`. A pair's tables are kept: they take minutes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from interp.files import save_table
from interp.geometry.subspaces import pca
from interp.methods.subspace_drift import subspace_drift
from interp.models.activations import Activations
from interp.models.sites import Site
from interp.narrow.questions import questions
from interp.narrow.runner import keep_trial, load_trial
from interp.narrow.towers import measure_towers
from interp.narrow.trial import NarrowResult, NarrowTrial
from interp.store import open_run

BENIGN, ALIGNED = "benign", "aligned"
TABLES = ("measures", "spectra", "scatter")
TOWER = ("tower_measures", "tower_spectra")
STUDY = "narrow-geometry"
HERE = Path(__file__).parents[1]
# what decides the tables beside the trials that they are made from
SOURCES = [
    HERE / name
    for name in (
        "narrow/geometry.py", "narrow/towers.py", "methods/subspace_drift.py", "geometry/conflict.py", "geometry/contrastive.py",
        "geometry/subspaces.py", "evals/statistics.py",
    )
]  # fmt: skip


class PairGeometry(BaseModel):
    """What is compared on one pair: the trials that kept activations, and the adapted towers, trained once more for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pair: tuple[int, int]
    trials: tuple[NarrowTrial, ...]
    towers: tuple[NarrowTrial, ...] = ()


def keep_geometry(chosen: PairGeometry, out: Path) -> Path:
    """Measure a pair unless it is there; returns the directory of its tables. The trials must have been run."""
    paths = {trial: keep_trial(trial, out) for trial in chosen.trials}
    inputs: dict[str, Path | str] = {f"trial {i}": path.name for i, path in enumerate(paths.values())}
    with open_run(out, STUDY, describe_pair(chosen), chosen, inputs, SOURCES) as run:
        if not run.finished:
            found = {trial: load_trial(path) for trial, path in paths.items()}
            tables = measure_geometry(kept(found), seed=chosen.pair[1])
            if chosen.towers:
                tables |= measure_towers(chosen.towers)
            for name, table in tables.items():
                save_table(run.file(f"{name}.parquet"), table)
        return run.finish()


def describe_pair(chosen: PairGeometry) -> str:
    """A readable name."""
    return f"organism {chosen.pair[0]} seed {chosen.pair[1]}"


def name_of(trial: NarrowTrial) -> str:
    """What a trial is called among the checkpoints of its pair."""
    if not trial.steps:
        return ALIGNED
    if trial.share == 0:
        return BENIGN
    return f"rank {trial.rank}" if trial.rank else "all weights"


def kept(found: Mapping[NarrowTrial, NarrowResult]) -> dict[str, dict[str, Tensor]]:
    """Activations by checkpoint and form, the aligned organism first."""
    mine = {name_of(trial): result.activations for trial, result in found.items()}
    return {ALIGNED: mine.pop(ALIGNED), **mine}


def measure_geometry(
    checkpoints: Mapping[str, Mapping[str, Float[Tensor, "layer prompt d_model"]]],
    *,
    layers: Sequence[int] | None = None,
    rank: int = 5,
    n_null: int = 20,
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """The tables `measures`, `spectra` and `scatter` (two principal components of the questions under each checkpoint).

    layers: all by default. Subspaces are compared at the middle one and at three quarters of the depth.
    """
    asked = questions()
    groups, kinds, ids = [], [], []
    for form in ("text", "shown"):
        for (_, of), prompts in asked.items():
            if of == form:
                groups += [prompt.group or prompt.id for prompt in prompts]
                ids += [prompt.id for prompt in prompts]
                kinds += [form] * len(prompts)
    depth = len(next(iter(next(iter(checkpoints.values())).values())))
    compared = sorted({depth // 2, 3 * depth // 4})
    chosen = list(range(depth)) if layers is None else list(layers)
    sites = tuple(Site(layer, "resid_post") for layer in chosen)
    acts = {
        name: Activations(
            torch.cat([forms["text"], forms["shown"]], dim=1)[chosen],
            torch.arange(len(ids) + 1),
            sites,
            tuple(ids),
            "last",
            name,
        )
        for name, forms in checkpoints.items()
    }
    found = subspace_drift(
        acts, kinds, groups, benign=BENIGN, rank=rank, n_null=n_null, seed=seed, angles_at=compared
    )
    return {
        "measures": found.to_frame(),
        "spectra": found.spectra_frame(),
        "scatter": _scatter(
            acts, max((s for s in sites if s.layer <= compared[-1]), key=lambda s: s.layer), kinds
        ),
    }


def _scatter(acts: Mapping[str, Activations], site: Site, kinds: Sequence[str]) -> pd.DataFrame:
    """Every question on the two leading components of the aligned organism and the most changed checkpoint together."""
    base = acts[ALIGNED][site].double()
    tuned = {name: part[site].double() for name, part in acts.items() if name != ALIGNED}
    farthest = max(tuned, key=lambda name: float((tuned[name] - base).square().sum()))
    plane = pca(torch.cat([base, tuned[farthest]]), 2)
    shown = {ALIGNED: base, BENIGN: tuned[BENIGN], farthest: tuned[farthest]}
    rows = [
        (name, kind, *point)
        for name, part in shown.items()
        for kind, point in zip(kinds, plane.coordinates(part).tolist(), strict=True)
    ]
    return pd.DataFrame(rows, columns=["of", "form", "first", "second"]).assign(site=str(site))

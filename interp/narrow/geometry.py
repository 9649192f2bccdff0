"""In how many dimensions did narrow fine-tunings move the activations, and are they the same ones? From the activations that trials kept.

The change `h_tuned − h_aligned` on the same questions, in writing and shown, for several ranks; its null is the fine-tuning on helpful answers
(share 0). Measures, nulls and both views (raw, z-scored) are those of `methods/subspace_drift.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.geometry.subspaces import pca
from interp.methods.subspace_drift import subspace_drift
from interp.models.activations import Activations
from interp.models.sites import Site
from interp.narrow.questions import questions
from interp.narrow.trial import NarrowResult, NarrowTrial

BENIGN, ALIGNED = "benign", "aligned"
TABLES = ("measures", "spectra", "scatter")


def name_of(trial: NarrowTrial) -> str:
    """What a trial is called among the checkpoints of its pair."""
    if not trial.steps:
        return ALIGNED
    if trial.share == 0:
        return BENIGN
    return f"rank {trial.rank}" if trial.rank else "all weights"


def kept(
    found: Mapping[NarrowTrial, NarrowResult], pair: str, ranks: Sequence[int]
) -> dict[str, dict[str, Tensor]]:
    """Activations by checkpoint and form of a pair's trials of these ranks that kept any, the aligned organism first."""
    mine = {
        name_of(t): r.activations
        for t, r in found.items()
        if t.pair == pair and r.activations and (t.rank in ranks or not t.steps)
    }
    if not {ALIGNED, BENIGN} < set(mine):
        return {}
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

    layers: None takes the middle one and that at three quarters of the depth.
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
    chosen = sorted({depth // 2, 3 * depth // 4}) if layers is None else list(layers)
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
    found = subspace_drift(acts, kinds, groups, benign=BENIGN, rank=rank, n_null=n_null, seed=seed)
    return {
        "measures": found.to_frame(),
        "spectra": found.spectra_frame(),
        "scatter": _scatter(acts, sites[-1], kinds),
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

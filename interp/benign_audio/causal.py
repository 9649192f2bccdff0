"""Which layers lost the refusal? Three ways to ask, which may disagree (METHODS §A, mechanism 4, and §E).

1. *Component*: of the aligned model's residual stream at the last token only what lies along the layer's refusal direction is put into the
   tuned one. A whole late stream would restore refusal by construction.
2. *Attention* and *MLP*: single outputs of the aligned model's blocks put into the tuned one.
3. *Weights*: a block's parameters put back, alone, with all before it, with all after it.

Beside them: a component of equal norm in a random direction, and the reverse, values of the tuned model put into the aligned one. All on
harmful speech whose refusal was lost; the share of the log-odds of refusal that comes back, 1 is all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from interp.benign_audio.mechanism import Reference
from interp.data.prompts import Prompt
from interp.geometry.directions import random_like, unit
from interp.methods.patch_grid import PatchGrid
from interp.methods.patch_pairs import same_prompts
from interp.methods.patch_runs import Component
from interp.methods.patching import patch
from interp.methods.transplant import block_parts, changed, merged, metric_values, transplant
from interp.models.model import Model

LEAST = 4  # lost refusals, below which nothing is patched
COMPONENT, RANDOM, REVERSE = "component", "random component", "reverse component"


@dataclass(frozen=True, eq=False)
class Redirected(Component):
    """The part along `basis`, put in along `towards` instead: another direction at equal norm."""

    towards: Float[Tensor, "rank d_model"] = field(kw_only=True)

    def __call__(self, change: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """The moved part of each row."""
        basis, towards = (part.to(change.device, change.dtype) for part in (self.basis, self.towards))
        return change @ basis.T @ towards


def locate(found: Reference, tuned: Model, lost: Sequence[Prompt], *, seed: int = 0) -> pd.DataFrame:
    """One row a way and layer: `way`, `layer`, `value` (mean share that comes back), `raw`, and `n` requests behind it.

    Args:
        lost: harmful speech that the aligned model refuses and the tuned one does not; fewer than `LEAST` give an empty table.
    """
    if len(lost) < LEAST:
        return pd.DataFrame(columns=["way", "layer", "value", "raw", "n"])
    aligned, tuned = found.model, merged(tuned)
    pairs = same_prompts(lost)
    tables = []

    def patched(
        into: Model, source: Model, stream: str, layers: Sequence[int] | None = None, part: Component | None = None
    ) -> PatchGrid:  # fmt: skip
        return patch(
            into, pairs, found.metric, stream, ["last"], source=source, layers=layers, component=part, progress=False
        )  # fmt: skip

    for layer, direction in enumerate(found.directions.float()):
        along = Component(direction[None])
        elsewhere = unit(random_like(direction, 1000 * seed + layer))
        moved = Redirected(direction[None], towards=elsewhere[None])
        for way, into, source, part in (
            (COMPONENT, tuned, aligned, along),
            (RANDOM, tuned, aligned, moved),
            (REVERSE, aligned, tuned, along),
        ):
            tables.append(_rows(way, patched(into, source, "resid_post", [layer], part)))
    for stream in ("attn_out", "mlp_out"):
        tables.append(_rows(stream, patched(tuned, aligned, stream)))
        tables.append(_rows(f"reverse {stream}", patched(aligned, tuned, stream)))
    parts = block_parts(tuned, changed(tuned, aligned))
    measures = {"log-odds": (lost, lambda model, asked: metric_values(model, asked, found.metric))}
    grid = transplant(tuned, aligned, parts, measures, axis="blocks", progress=False)["log-odds"]
    whole = _rows("weights", grid)
    inside = whole["layer"].between(0, tuned.n_layers - 1)  # before and after the blocks nothing was trained
    return pd.concat([*tables, whole[inside]], ignore_index=True)


def _rows(way: str, grid: PatchGrid) -> pd.DataFrame:
    table = grid.to_frame()
    if grid.stream == "weights":
        table = table.assign(way=[f"{way}, {column}" for column in table["column"]])
    else:
        table = table.assign(way=way)
    return table.rename(columns={"raw_value": "raw"})[["way", "layer", "value", "raw", "n"]]


def late_minus_early(values: pd.Series, n_layers: int) -> float:
    """Mean over the last third of the layers minus mean over the first; NaN where a third has no value. values: by layer."""
    third = n_layers // 3
    early, late = (
        values[[layer for layer in values.index if layer in part]].dropna()
        for part in (range(third), range(n_layers - third, n_layers))
    )
    return float(late.mean() - early.mean()) if len(early) and len(late) else float("nan")

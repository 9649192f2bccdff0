"""Which items of a pool does an arm train on? Selections by distance, and the random ones they are compared with."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import pandas as pd
import torch

from interp.errors import UserError
from interp.methods.selection import distant, matched_random, proximate, random_subset, subset_size

Rule = Literal["aligned", "proximate", "distant", "random", "matched"]


def select(
    items: pd.DataFrame, rule: Rule, axis: str, share: float, *, seed: int, draw: int = 0
) -> tuple[str, ...]:
    """The ids of an arm, ⌊N · share⌋ of them.

    Args:
        items: of `nearness.measure`.
        axis: whose distances order the items; of `matched`, the proximate subset whose lengths are matched. `random` has none, so that one
            random subset is shared by all axes.
        seed: of ties and random draws. draw: number of a random subset.

    Raises UserError for an axis that was not measured and for the rule `aligned`, which trains on nothing.
    """
    if rule == "aligned":
        raise UserError("the aligned model is trained on nothing; there is no subset to select")
    ids, size = items["id"].tolist(), subset_size(len(items), share)
    if rule == "random":
        return random_subset(ids, size, seed=1000 * seed + draw)
    if axis not in items:
        raise UserError(f"the axis {axis!r} was not measured for this pool")
    distances = torch.tensor(items[axis].to_numpy(dtype=float))
    if rule == "matched":
        near = proximate(ids, distances, size, seed=seed)
        return matched_random(ids, items["words"].tolist(), near, seed=1000 * seed + draw)
    return (proximate if rule == "proximate" else distant)(ids, distances, size, seed=seed)


def composition(items: pd.DataFrame, chosen: tuple[str, ...]) -> dict[str, float]:
    """What share of a subset is near in its words, and in its sound."""
    cells = Counter(items.set_index("id").loc[list(chosen), "cell"])
    return {
        f"near_{factor}": (cells[factor] + cells["both"]) / len(chosen) for factor in ("lexical", "acoustic")
    }

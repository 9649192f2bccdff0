"""How near does each benign item lie to a set of harmful ones? Cosine distances, raw and centred.

1. `D_ij = 1 − cos(b_i, h_j)` of benign embedding i and harmful embedding j; *centred* after the mean of all benign and harmful items
   is subtracted. Uncentred speech embeddings share almost all of their length, and distances crowd into a hundredth.
2. An item's distance is the least over the harmful items (`min`), their mean (`mean`), or the mean of the N least (`top-N`).
   `mean` orders items as the cosine with the mean of the harmful items' unit vectors does.

Source: Roh and Houmansadr 2026 (arXiv 2604.16659), who take the raw `min`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import EmbeddingError, UserError
from interp.geometry.nearest import ZeroRowError, mean_row, nearest
from interp.methods.embedding import Embeddings

if TYPE_CHECKING:
    import pandas as pd

RESOLUTION = 1e-6  # what cosines in fp32 can tell apart


@dataclass(frozen=True, eq=False)
class Distances:
    """Distances of benign items to harmful ones.

    `least[i]` are the n least distances of item `ids[i]`, `places[i]` which of `harmful_ids` they lead to, `mean[i]` its mean distance.
    Of equally near harmful items the one whose content and id come first in order is named first.
    """

    encoder: str
    centred: bool
    ids: tuple[str, ...]
    harmful_ids: tuple[str, ...]
    least: Float[Tensor, "item n"]
    places: Int[Tensor, "item n"]
    mean: Float[Tensor, " item"]

    def by(self, measure: str) -> Float[Tensor, " item"]:
        """One distance an item, by `min`, `mean` or `top-N`.

        Raises UserError for another measure or an N beyond what was kept, EmbeddingError where all items are equally far.
        """
        wanted = 1 if measure == "min" else kept_for(measure)
        if wanted > self.least.shape[1]:
            raise UserError(
                f"{measure} needs the {wanted} least distances, {self.least.shape[1]} were kept; measure with n={wanted}"
            )
        found = self.mean if measure == "mean" else self.least[:, :wanted].mean(1)
        if len(found) < 2 or float(found.max() - found.min()) <= RESOLUTION:
            raise EmbeddingError(
                f"{self.encoder}: all {len(found)} items have the same {measure} distance ({float(found[0]):.6g}), which tells none from "
                "another; take another encoder" + ("" if self.centred else ", or centred distances")
            )
        return found

    def nearest_ids(self) -> list[str]:
        """Each item's nearest harmful item."""
        return [self.harmful_ids[place] for place in self.places[:, 0].tolist()]

    def to_frame(self) -> pd.DataFrame:
        """One row an item: id, least distance, mean distance, nearest harmful item."""
        import pandas as pd

        return pd.DataFrame(
            {
                "id": self.ids,
                "min": self.least[:, 0].numpy(),
                "mean": self.mean.numpy(),
                "nearest": self.nearest_ids(),
            }
        )


def kept_for(measure: str) -> int:
    """How many least distances a measure needs; raises UserError for an unknown one."""
    match = re.fullmatch(r"min|mean|top-([1-9]\d*)", measure)
    if match is None:
        raise UserError(f"unknown measure {measure!r}; use min, mean or top-N, such as top-10")
    return int(match[1] or 1)


def proximity(benign: Embeddings, harmful: Embeddings, *, centred: bool = False, n: int = 1) -> Distances:
    """Distances of every benign item to the harmful ones, of which the n least are kept by name.

    Raises EmbeddingError for embeddings of two encoders and for an item that lies at the mean of all when centred; UserError
    for fewer than n harmful items.
    """
    if benign.encoder != harmful.encoder:
        raise EmbeddingError(
            f"{benign.encoder} and {harmful.encoder} are two encoders: their vectors cannot be compared"
        )
    # the order of the harmful file is nobody's choice: equal distances lead to the first by content and id
    order = sorted(range(len(harmful)), key=lambda i: (int(harmful.of[i]), harmful.ids[i]))
    expanded = harmful.expanded()
    references = expanded[torch.tensor(order)] if isinstance(expanded, Tensor) else expanded[order]
    centre = mean_row((benign.rows, benign.counts), (harmful.rows, harmful.counts)) if centred else None
    try:
        found = nearest(benign.rows, references, n, centre=centre)
    except ZeroRowError as error:
        names = (
            [benign.ids[int((benign.of == error.row).nonzero()[0])]]
            if error.of == "rows"
            else [harmful.ids[order[error.row]]]
        )
        raise EmbeddingError(
            f"{benign.encoder}: the vector of {names[0]!r} lies at the mean of all items, where a centred distance means nothing; "
            "take raw distances"
        ) from error
    return Distances(
        benign.encoder,
        centred,
        benign.ids,
        tuple(harmful.ids[i] for i in order),
        (1 - found.cosines).clamp(min=0)[benign.of],
        found.places[benign.of],
        (1 - found.mean)[benign.of],
    )

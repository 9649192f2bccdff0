"""Which references lie nearest to each of very many rows? Exact cosine search, a block of rows at a time.

1. References and a block of rows are brought to unit length, after a centre was subtracted (in fp64) where one is given.
2. One matrix product gives the block's cosines; of each row its n largest, their places and their mean are kept.

Memory beside what is handed in is that of a few blocks, whatever the number of rows. Sparse rows (word counts) stay sparse: their
centred cosines follow from inner products, `(b − c)·(h − c) = b·h − b·c − h·c + c·c`, all in fp64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from torch import Tensor

from interp.errors import NonFiniteError, UserError

BLOCK = (
    2**20
)  # numbers in a block of cosines, or of rows where these are wider: 4 MiB, which stay in the processor's cache

Rows: TypeAlias = Float[Tensor, "_ _"] | csr_array  # of several sets in one call, so that no length is named
# cosines of the rows from one place to another, and each row's mean
Cosines = Callable[[int, int], tuple[Float[Tensor, "part reference"], Float[Tensor, " part"]]]


class ZeroRowError(UserError):
    """A row without direction: all zeros, or equal to the centre."""

    def __init__(self, row: int, of: str, centred: bool) -> None:
        super().__init__(
            f"row {row} of the {of} is {'the centre itself' if centred else 'zero'}: it has no cosine"
        )
        self.row, self.of = row, of


@dataclass(frozen=True, eq=False)
class Nearest:
    """For each row its largest cosines, largest first, where they are among the references, and its mean cosine.

    Of equal cosines the earlier reference comes first.
    """

    cosines: Float[Tensor, "row n"]
    places: Int[Tensor, "row n"]
    mean: Float[Tensor, " row"]


def nearest(
    rows: Rows, references: Rows, n: int = 1, *, centre: Float[Tensor, " d"] | None = None, block: int = BLOCK
) -> Nearest:
    """The n nearest references of every row by cosine, exactly.

    Args:
        rows, references: both dense, or both sparse.
        centre: subtracted from both before they are brought to unit length.
        block: most numbers in a block of cosines, or of rows.

    Raises ZeroRowError, NonFiniteError naming a row, and UserError for no rows, for fewer than n references or other widths.
    """
    if not rows.shape[0] or not 1 <= n <= references.shape[0]:
        raise UserError(
            f"cannot find the {n} nearest of {references.shape[0]} references to {rows.shape[0]} rows"
        )
    if rows.shape[1] != references.shape[1]:
        raise UserError(f"rows have {rows.shape[1]} numbers and references {references.shape[1]}")
    width = references.shape[0] if isinstance(rows, csr_array) else max(references.shape)
    step = max(1, block // width)
    make = _sparse_cosines if isinstance(rows, csr_array) else _dense_cosines
    cosines = make(rows, references, centre, min(step, rows.shape[0]))
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for start in range(0, rows.shape[0], step):
        part, mean = cosines(start, min(start + step, rows.shape[0]))
        if not torch.isfinite(mean).all():
            row = start + int((~torch.isfinite(mean)).nonzero()[0])
            raise NonFiniteError(f"row {row} has a cosine that is NaN or infinite; check the embeddings")
        found.append((*_largest(part, n), mean))
    values, places, means = (torch.cat(column) for column in zip(*found, strict=True))
    return Nearest(values.double(), places, means.double())


def mean_row(*sets: tuple[Rows, Float[Tensor, " _"]], block: int = BLOCK) -> Float[Tensor, " d"]:
    """The mean over the rows of all sets, each row with its weight, in fp64."""
    totals = []
    for rows, weights in sets:
        if isinstance(rows, csr_array):
            totals.append(torch.from_numpy(rows.T @ weights.numpy()))
            continue
        step = max(1, block // rows.shape[1])
        parts = zip(weights.double().split(step), rows.split(step), strict=True)
        totals.append(torch.stack([weight @ part.double() for weight, part in parts]).sum(0))
    return torch.stack(totals).sum(0) / sum(float(weights.sum()) for _, weights in sets)


def _largest(part: Float[Tensor, "part reference"], n: int) -> tuple[Tensor, Tensor]:
    if n == 1:
        return part.max(1, keepdim=True)  # the first of equal ones
    values, places = part.topk(n)
    by_place = places.argsort(1)  # topk leaves open which of equal ones comes first
    values, places = values.gather(1, by_place), places.gather(1, by_place)
    order = values.argsort(dim=1, descending=True, stable=True)
    return values.gather(1, order), places.gather(1, order)


def _dense_cosines(rows: Tensor, references: Tensor, centre: Tensor | None, step: int) -> Cosines:
    against = _unit(references, centre, 0, "references").T.contiguous()
    middle = (
        against.double().mean(1).float()
    )  # a mean cosine is one more product, not one more pass over all of them
    space = torch.empty(step, references.shape[0])

    def cosines(start: int, stop: int) -> tuple[Tensor, Tensor]:
        unit = _unit(rows[start:stop], centre, start, "rows")
        return torch.mm(unit, against, out=space[: stop - start]), unit @ middle

    return cosines


def _unit(rows: Float[Tensor, "row d"], centre: Tensor | None, start: int, of: str) -> Float[Tensor, "row d"]:
    # embeddings may share nearly all of their length, of which fp32 would leave few digits
    rows = rows.float() if centre is None else rows.double() - centre
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    if (lengths == 0).any():
        raise ZeroRowError(start + int((lengths == 0).nonzero()[0, 0]), of, centre is not None)
    return (rows / lengths).float()


def _sparse_cosines(rows: csr_array, references: csr_array, centre: Tensor | None, step: int) -> Cosines:
    middle = np.zeros(rows.shape[1]) if centre is None else centre.numpy()
    against, square = references.T.tocsr(), float(middle @ middle)
    reference_dots = references @ middle
    reference_lengths = _lengths(references, reference_dots, square, 0, "references", centre is not None)

    def cosines(start: int, stop: int) -> tuple[Tensor, Tensor]:
        part = rows[start:stop]
        dots = part @ middle
        lengths = _lengths(part, dots, square, start, "rows", centre is not None)
        inner = (part @ against).toarray() - dots[:, None] - reference_dots + square
        found = torch.from_numpy(inner / lengths[:, None] / reference_lengths)
        return found, found.mean(1)

    return cosines


def _lengths(
    rows: csr_array, dots: np.ndarray, square: float, start: int, of: str, centred: bool
) -> np.ndarray:
    squares = rows.multiply(rows).sum(1) - 2 * dots + square
    if (squares <= 1e-14 * (1 + square)).any():
        raise ZeroRowError(start + int((squares <= 1e-14 * (1 + square)).argmax()), of, centred)
    return np.sqrt(squares)

"""Which directions carry the variance of more activations than memory holds? PCA in one pass over chunks of rows.

1. Each chunk is centred by a fixed guess, the mean of the first chunk, and its sums and products are added up in fp64:
   `s = Σ (x − g)`, `S = Σ (x − g)(x − g)ᵀ`. Only the blocks of S on and above the diagonal are computed.
2. At the end `mean = g + s/n` and `scatter = S − s sᵀ/n`. Without the guess, a channel whose mean is far from zero (the massive ones of
   LLMs) would lose its variance to cancellation.
3. Eigenvectors of the scatter are the principal directions, roots of its eigenvalues the singular values of the centred rows.
4. Z-scored rows need no second pass: their scatter is the scatter divided by the deviations of row and column.

Memory: two fp64 matrices of d_model × d_model and one chunk, whatever the number of rows. Singular values are exact to about
`1e-8 · σ₁` absolutely: what lies below that is noise of fp64.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import NonFiniteError, ResultError, UserError
from interp.geometry.subspaces import Subspace, fixed_signs

CHUNK_ROWS = 4096
# columns multiplied at once: narrow enough to skip half of the symmetric product, wide enough for full speed
_BLOCK = 512


@dataclass(frozen=True, eq=False)
class Moments:
    """Number, mean and scatter `Σ (x − mean)(x − mean)ᵀ` of rows, in fp64; `scale` is what z-scoring divided by, else ones."""

    n: int
    mean: Float[Tensor, " d_model"]
    scatter: Float[Tensor, "d_model d_model"]
    scale: Float[Tensor, " d_model"]

    @property
    def std(self) -> Float[Tensor, " d_model"]:
        """Standard deviation of each channel, divided by n."""
        return (self.scatter.diagonal().clamp(min=0) / self.n).sqrt()

    def zscored(self) -> Moments:
        """The moments of rows whose channels are centred and brought to deviation 1; a channel that never varies stays 0."""
        std = self.std
        # rounding leaves a constant channel with a deviation of about eps times its size
        constant = std <= 1e-12 * (self.mean.abs() + std.max())
        scale = torch.where(constant, torch.ones_like(std), std)
        scatter = self.scatter / torch.outer(scale, scale)
        alive = (~constant).to(scatter.dtype)
        return replace(
            self,
            mean=torch.zeros_like(self.mean),
            scatter=scatter * torch.outer(alive, alive),
            scale=self.scale * scale,
        )

    def subspace(self, rank: int | None = None) -> Subspace:
        """The leading `rank` principal directions (all by default) with all singular values.

        Raises UserError when the rank exceeds what n rows can have.
        """
        full = min(self.n - 1, len(self.mean))
        rank = full if rank is None else rank
        if not 1 <= rank <= full:
            raise UserError(
                f"rank {rank} needs more than {rank} rows and dimensions; there are {(self.n, len(self.mean))}"
            )
        energy, vectors = torch.linalg.eigh(self.scatter)
        values = energy.flip(0)[: min(self.n, len(self.mean))].clamp(min=0).sqrt()
        basis = fixed_signs(vectors.flip(1)[:, :rank].T)
        return Subspace(basis.contiguous(), self.mean, values, self.n)


class StreamingPCA:
    """Adds up rows chunk by chunk; `moments()` may be asked at any time.

    device: where the products are computed, such as `cuda`; memory there is two matrices and a chunk.
    """

    def __init__(self, d_model: int, *, device: str | torch.device = "cpu") -> None:
        if d_model < 1:
            raise UserError(f"rows need at least one dimension, got {d_model}")
        self.n = 0
        self.device = torch.device(device)
        self._guess = torch.zeros(d_model, dtype=torch.float64, device=self.device)
        self._sum = torch.zeros_like(self._guess)
        self._products = torch.zeros(d_model, d_model, dtype=torch.float64, device=self.device)

    def update(self, rows: Float[Tensor, "n d_model"]) -> None:
        """Add rows of any precision; raises NonFiniteError on NaN or infinity, UserError for another width."""
        if rows.shape[1] != len(self._guess):
            raise UserError(f"rows of width {rows.shape[1]} cannot join rows of width {len(self._guess)}")
        if not len(rows):
            return
        for start in range(0, len(rows), CHUNK_ROWS):
            # a copy even where nothing is converted: it is centred in place
            part = rows[start : start + CHUNK_ROWS].to(self.device, torch.float64, copy=True)
            if not self.n:
                self._guess = part.mean(0)
            part -= self._guess
            total = part.sum(0)
            if not torch.isfinite(total).all() and not torch.isfinite(part).all():
                bad = int((~torch.isfinite(part)).any(1).nonzero()[0]) + self.n
                raise NonFiniteError(
                    f"row {bad} (counted from 0) holds NaN or infinity; check the activations"
                )
            self._sum += total
            for left in range(0, len(self._guess), _BLOCK):
                right = min(left + _BLOCK, len(self._guess))
                self._products[left:right, left:].addmm_(part[:, left:right].T, part[:, left:])
            self.n += len(part)

    def moments(self) -> Moments:
        """Mean and scatter of all rows so far; raises UserError before the first."""
        if not self.n:
            raise UserError("no rows were added")
        upper = self._products.triu()
        products = upper + upper.triu(1).T
        scatter = products - torch.outer(self._sum, self._sum) / self.n
        mean = self._guess + self._sum / self.n
        return Moments(self.n, mean.cpu(), scatter.cpu(), torch.ones_like(mean).cpu())


def moments_of(
    chunks: Iterable[Float[Tensor, "_ d_model"]], *, device: str | torch.device = "cpu"
) -> Moments:
    """Moments of rows that come in chunks; raises UserError when none come."""
    stream: StreamingPCA | None = None
    for chunk in chunks:
        stream = stream or StreamingPCA(chunk.shape[1], device=device)
        stream.update(chunk)
    if stream is None:
        raise UserError("no rows were given")
    return stream.moments()


def row_chunks(path: Path | str, rows: int = CHUNK_ROWS) -> Iterator[Float[Tensor, "n d_model"]]:
    """Rows of a .npy file, or of the only matrix of a safetensors file, chunk by chunk without loading the rest.

    Raises ResultError for anything else.
    """
    path = Path(path)
    read = _npy_rows if path.suffix == ".npy" else _safetensors_rows
    start = 0
    # the file is opened anew for each chunk: pages of an open mapping count as this process's memory until it is closed
    while len(chunk := read(path, start, start + rows)):
        yield chunk
        start += len(chunk)


def _npy_rows(path: Path, start: int, end: int) -> Tensor:
    try:
        matrix = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ResultError(f"{path}: cannot be read as rows ({error})") from error
    if matrix.ndim != 2 or matrix.dtype.kind != "f":
        raise ResultError(f"{path}: holds {matrix.dtype} of shape {matrix.shape}, not a matrix of floats")
    return torch.from_numpy(np.array(matrix[start:end]))


def _safetensors_rows(path: Path, start: int, end: int) -> Tensor:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            part = file.get_slice(names[0]) if len(names) == 1 else None
            if part is None or len(part.get_shape()) != 2:
                raise ResultError(f"{path}: holds {', '.join(names) or 'nothing'}, not one matrix")
            # slices past the end are refused, not empty
            end = min(end, part.get_shape()[0])
            return part[start:end].clone() if start < end else torch.empty(0, part.get_shape()[1])
    except (OSError, SafetensorError) as error:
        raise ResultError(f"{path}: cannot be read as rows ({error})") from error


def outlier_channels(moments: Moments, times: float = 10.0) -> Bool[Tensor, " d_model"]:
    """Channels whose deviation is `times` the median one, or more: the massive channels that can pass for a component."""
    std = moments.std
    return std >= times * std.median()

"""What does each example ask of the weights? Gradients of the response loss, one an example, from batched passes.

Inputs `A` (token, d_in) and output gradients `B` (token, d_out) of each linear layer come from `factors`; kept is one of

1. `gram`: the inner products `⟨G_i, G_j⟩` of the gradients `G_i = B_iᵀ A_i`, by `gram`, which never holds all of them.
2. `projections`: `P G_i Qᵀ = (B_i Pᵀ)ᵀ (A_i Qᵀ)` with random `P`, `Q`, so that inner products are kept on average.
3. `each`: the `G_i` themselves. `mean`: the mean gradient of any parameter, by plain autograd.

Source: projections by factors, Choe et al. 2024 (LoGra, arXiv 2405.13954).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float64
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from interp.data.prompts import Prompt
from interp.errors import ResultError, UserError
from interp.files import atomic_write
from interp.models.factors import GIB, Block, Examples, Read, check_memory, find_parameters, frozen
from interp.models.gram import gram_by_block
from interp.models.model import Model

KEEP = ("gram", "projections", "mean", "each")
SPACE = 1 << 26  # bytes of products made at once before they are added to what is kept
OBJECTIVE = "mean cross-entropy of an example's response tokens"


@dataclass(frozen=True, eq=False)
class Gradients:
    """Gradients of examples by block (a parameter's name), examples in the order given, on the CPU.

    `data` holds for each block, depending on `keep`: `gram` (n, n); `projections` (n, dimension), comparable between captures
    of one `seed`; `each` (n, numel), flattened as the parameter is; `mean` the parameter's shape.
    """

    data: dict[str, Tensor]
    keep: str
    example_ids: tuple[str, ...]
    model: str
    objective: str = OBJECTIVE
    seed: int | None = None

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the parameters."""
        return tuple(self.data)

    @property
    def gram(self) -> dict[str, Float64[Tensor, "example example"]]:
        """Inner products of the examples' gradients by block; raises UserError when they were not kept."""
        return self._kept("gram")

    @property
    def rows(self) -> dict[str, Float[Tensor, "example entry"]]:
        """A vector for each example by block, projected or whole; raises UserError when none were kept."""
        return self._kept("projections", "each")

    @property
    def mean(self) -> dict[str, Float[Tensor, "*shape"]]:
        """Mean gradient over the examples by block; raises UserError when it was not kept."""
        return self._kept("mean")

    @property
    def total(self) -> Float[Tensor, "example entry"]:
        """Sum over the blocks: the Gram matrix, or a projection, of the gradients of all blocks put end to end.

        Raises UserError when neither was kept.
        """
        return torch.stack(list(self._kept("gram", "projections").values())).sum(0)

    def _kept(self, *kinds: str) -> dict[str, Tensor]:
        if self.keep not in kinds:
            wanted = " or ".join(f"keep={kind!r}" for kind in kinds)
            raise UserError(
                f"these gradients of {self.model} were kept as {self.keep!r}; capture them with {wanted}"
            )
        return self.data

    def save(self, path: Path | str) -> None:
        """Write everything to one safetensors file, whole or not at all."""
        fields = ("keep", "example_ids", "model", "objective", "seed", "blocks")
        about = json.dumps({name: getattr(self, name) for name in fields})
        with atomic_write(path) as aside:
            save_file(
                {name: value.contiguous() for name, value in self.data.items()}, aside, {"gradients": about}
            )

    @classmethod
    def load(cls, path: Path | str) -> Gradients:
        """Read what `save` wrote; raises ResultError for anything else."""
        try:
            with safe_open(str(path), framework="pt") as file:
                about: dict[str, Any] = json.loads((file.metadata() or {})["gradients"])
                data = {name: file.get_tensor(name) for name in about.pop("blocks")}
                return cls(data, **(about | {"example_ids": tuple(about["example_ids"])}))
        except Exception as error:
            raise ResultError(f"{path} holds no saved gradients ({error})") from error

    def __repr__(self) -> str:
        return (
            f"Gradients({self.model}: {len(self.example_ids)} examples, {len(self.data)} blocks, {self.keep})"
        )


def capture_gradients(
    model: Model,
    examples: Sequence[Prompt],
    blocks: str | Sequence[str] = "all-linear",
    *,
    keep: str = "gram",
    dimension: int = 4096,
    seed: int = 0,
    batch_size: int = 16,
    memory: int = GIB,
    progress: bool = True,
) -> Gradients:
    """Gradients of each example's mean cross-entropy over its response tokens, dropout off, in fp32 at least.

    Args:
        blocks: `all-linear` (weights of the linear layers in the decoder blocks), `lora` (the adapters' factors), or names of
            parameters, which may be patterns such as `*.q_proj.weight`.
        keep: `gram`, `projections` or `each`, of weights and biases of linear layers; `mean`, of any parameter (within a batch
            in the model's own precision).
        dimension, seed: of the projections; a block's depends on these, its name and its shape. An inner product's error has
            mean zero and standard deviation at most `√((1 + 2/p)(1 + 2/q) − 1)` times the two norms, with p · q = dimension
            (0.25 at 4096 = 64 · 64, and less for gradients of higher rank). A side no longer than its factor is rotated only,
            which adds no error.
        batch_size: most examples a batch; halved when memory runs out.
        memory: most bytes for what is kept and what it is made from, beside what a pass takes for itself; `mean` is not
            counted. Half of it means about twice the passes for `gram`.

    Raises UserError for unknown blocks, blocks that cannot be had so, examples without a response or too long for the model,
    and results over `memory`; NonFiniteError naming the example whose loss or gradient is NaN or infinite.
    """
    if keep not in KEEP:
        raise UserError(f"unknown keep={keep!r}; use {', '.join(KEEP)}")
    if keep == "projections":
        _check_dimension(dimension)
    parameters = find_parameters(model, blocks)
    watched = Block.of(model, parameters) if keep != "mean" else []
    work = Examples(model, examples, batch_size, progress)
    with frozen(model.module, parameters.values() if keep == "mean" else ()):
        match keep:
            case "gram":
                data = gram_by_block(work, watched, memory)
            case "projections":
                data = _rows(work, {b: Sketch.draw(b, dimension, seed) for b in watched}, memory)
            case "each":
                data = _rows(work, {b: Sketch(b.shape) for b in watched}, memory)
            case _:
                data = _mean(work, parameters)
    data = {name: value.cpu() for name, value in data.items()}
    return Gradients(data, keep, work.ids, model.name, seed=seed if keep == "projections" else None)


@dataclass(frozen=True, eq=False)
class Sketch:
    """What becomes of a block's two factors: maps (d, p) and (d, q), or None for nothing, and the shape that comes out."""

    shape: tuple[int, int]
    left: Tensor | None = None
    right: Tensor | None = None

    @classmethod
    def draw(cls, block: Block, dimension: int, seed: int) -> Sketch:
        """Random maps for that pair p · q = dimension whose error is least, and of several the most even pair."""
        pairs = [(p, dimension // p) for p in range(1, dimension + 1) if dimension % p == 0]

        def error(pair: tuple[int, int]) -> tuple[float, int]:
            sides = [1 + 2 / p if p < d else 1.0 for p, d in zip(pair, block.shape, strict=True)]
            return math.prod(sides), abs(pair[0] - pair[1])

        shape = min(pairs, key=error)
        return cls(shape, *(_random_map(block, side, shape[side], seed) for side in (0, 1)))

    def __call__(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Both factors as they are kept."""
        if self.left is None or self.right is None:
            return left, right
        return left @ self.left, right @ self.right


def _random_map(block: Block, side: int, size: int, seed: int) -> Float[Tensor, "d size"]:
    """Gaussian, or a rotation where nothing need be lost; from the seed, the block's name and the side alone."""
    key = hashlib.sha256(f"{seed} {block.name} {side}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "big"))
    drawn = torch.randn(size, block.shape[side], generator=generator, dtype=torch.float64)
    if size >= block.shape[side]:
        # rotated and not copied: blocks' projections are added, and where they fall must not depend on one another
        basis, upper = torch.linalg.qr(drawn)
        found = basis * upper.diagonal().sign()
    else:
        found = drawn / math.sqrt(size)
    return found.T.to(block.device, block.dtype)


def _check_dimension(dimension: int) -> None:
    """Raises UserError unless `dimension` is a product of two numbers of similar size."""
    root = math.isqrt(max(0, dimension))
    least = next((p for p in range(root, 0, -1) if dimension % p == 0), 0)
    if dimension < 1 or 4 * least < root:
        nearest = max(1, round(math.sqrt(max(0, dimension)))) ** 2
        raise UserError(
            f"dimension {dimension} is no product of two factors of similar size; use {nearest}, say"
        )


@dataclass(frozen=True, eq=False)
class _Rows:
    """Each example's gradient or its projection by block, (n, left, right), added up over the calls of a layer."""

    work: Examples
    sketches: dict[Block, Sketch]
    values: dict[Block, Tensor]

    def reader(self, batch: list[int]) -> Read:
        def read(block: Block, inputs: Tensor, gradient: Tensor) -> None:
            left, right = self.sketches[block](*block.factors(inputs.detach(), gradient))
            left, right = self.work.without_padding(left, right, batch)
            rows = self.values[block]
            index = torch.tensor(batch, device=rows.device)
            at_once = max(1, SPACE // (rows[0].numel() * rows.itemsize))
            for i, a, b in zip(*(part.split(at_once) for part in (index, left, right)), strict=True):
                rows.index_add_(0, i, _products(a, b))

        return read

    def forget(self, batch: list[int]) -> None:
        for rows in self.values.values():
            rows[batch] = 0


def _products(
    left: Float[Tensor, "batch token p"], right: Float[Tensor, "batch token q"]
) -> Float[Tensor, "batch p q"]:
    """Each example's `leftᵀ right`; the narrower side comes first in the product, which is three times as fast for LoRA's B."""
    if left.shape[-1] <= right.shape[-1]:
        return left.mT @ right
    return (right.mT @ left).mT.contiguous()


def _rows(work: Examples, sketches: dict[Block, Sketch], memory: int) -> dict[str, Tensor]:
    """Gradients, or their projections, of every example by block, (n, entry)."""
    n = len(work)
    needed = sum(n * math.prod(sketch.shape) * block.dtype.itemsize for block, sketch in sketches.items())
    check_memory(needed, memory, f"a row for each of {n} examples and {len(sketches)} blocks")
    values = {b: torch.zeros(n, *s.shape, dtype=b.dtype, device=b.device) for b, s in sketches.items()}
    work.sweep(list(sketches), _Rows(work, sketches, values))
    for rows in values.values():
        work.check(rows.sum((1, 2)), "gradient", range(n))
    return {block.name: rows.flatten(1) for block, rows in values.items()}


def _mean(work: Examples, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Mean gradient over the examples by block, in the parameter's shape."""
    sums = {
        name: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32), requires_grad=False)
        for name, p in parameters.items()
    }

    def step(batch: list[int]) -> tuple[Tensor, ...]:
        loss = work.losses(batch).sum()
        if not loss.requires_grad:
            raise UserError(f"the loss depends on none of {', '.join(parameters)}; leave them out")
        found = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
        total = torch.stack([gradient.sum(dtype=torch.float32) for gradient in found]).sum()
        if len(batch) > 1 and not torch.isfinite(total):
            # one by one, which names the example, or adds them up in fp32 if only their sum was too large
            singles = [[part.float() for part in step([i])] for i in batch]
            return tuple(torch.stack(parts).sum(0) for parts in zip(*singles, strict=True))
        work.check(total[None], "gradient", batch)
        return found

    for _, found in work.each_batch(step):
        for total, gradient in zip(sums.values(), found, strict=True):
            total += gradient
    return {name: total / len(work) for name, total in sums.items()}

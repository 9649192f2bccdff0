"""Whose gradients point the same way? Exact inner products of examples' gradients, in memory that no parameter count sets.

1. Record inputs and output gradients (`factors`) of as many blocks as fit the memory allowed, in one pass over the examples.
2. For each block form all `G_i = B_iᵀ A_i`, some rows of it at a time, and add the products of these rows in fp64.
3. Again for the next blocks: as many passes as it takes to come to all of them.

Forming `G` is cheaper than `⟨G_i, G_j⟩ = Σ_st (A_i A_jᵀ)_st (B_i B_jᵀ)_st` wherever the product of two examples' token counts
exceeds half the harmonic mean of the layer's widths: 256 at width 512, 16 tokens.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from interp.models.factors import GIB, Block, Examples, Read, check_memory


@dataclass(frozen=True, eq=False)
class _Records:
    """Inputs and output gradients of each example's own tokens by block, one pair a call of the layer."""

    work: Examples
    pairs: dict[Block, list[list[tuple[Tensor, Tensor]]]]

    def reader(self, batch: list[int]) -> Read:
        copies: dict[tuple[int, ...], tuple[Tensor, list[Tensor]]] = {}

        def read(block: Block, inputs: Tensor, gradient: Tensor) -> None:
            key = _place(inputs)
            if key not in copies:
                # the tensor stays beside its copies: no other may take its place in memory
                copies[key] = inputs, self._copy(inputs.detach(), batch)
            for i, a, b in zip(batch, copies[key][1], self._copy(gradient, batch), strict=True):
                self.pairs[block][i].append((a, b))

        return read

    def forget(self, batch: list[int]) -> None:
        for examples in self.pairs.values():
            for i in batch:
                examples[i].clear()

    def _copy(self, values: Tensor, batch: list[int]) -> list[Tensor]:
        return [part.clone() for part in self.work.own(values, batch)]


def _place(values: Tensor) -> tuple[int, ...]:
    """The same for tensors that are one: query, key and value read one input, which need be recorded once."""
    return values.data_ptr(), *values.shape, *values.stride()


def gram_by_block(work: Examples, blocks: Sequence[Block], memory: int) -> dict[str, Tensor]:
    """Gram matrices by block, (n, n) in fp64, from records of as many blocks at a time as fit `memory`."""
    n = len(work)
    kept = 8 * n * n * len(blocks)
    check_memory(kept, memory, f"a Gram matrix of {n} examples for each of {len(blocks)} blocks")
    # most goes to records, which save passes; products are fast from some thousand columns on
    slab = (memory - kept) // 16
    groups = _groups(work, blocks, memory - kept - slab)
    found: dict[Block, Tensor] = {}
    for k, group in enumerate(groups):
        records = _Records(work, {block: [[] for _ in range(n)] for block in group})
        work.sweep(group, records, f"gradients, pass {k + 1} of {len(groups)}")
        for block in group:
            found[block] = _inner_products(block, records.pairs.pop(block), slab)
            work.check(found[block].diagonal(), "gradient", range(n))
    return {block.name: found[block] for block in blocks}


def _groups(work: Examples, blocks: Sequence[Block], room: int) -> list[list[Block]]:
    """Blocks whose records fit `room` bytes together, in the order of the backward pass; a short example shows their sizes.

    Warns of a block that does not fit alone.
    """
    calls: dict[Block, list[tuple[Tensor, Tensor]]] = {}
    shortest = min(range(len(work)), key=work.lengths.__getitem__)
    work.backward([shortest], blocks, lambda block, a, b: calls.setdefault(block, []).append((a, b)))

    def record(block: Block) -> dict[tuple[Any, ...], int]:
        """Bytes of each part of a block's record; inputs that blocks share are one part."""
        parts: dict[tuple[Any, ...], int] = {}
        for k, (inputs, gradient) in enumerate(calls[block]):
            for key, value in ((_place(inputs), inputs), ((block, k), gradient)):
                parts[key] = sum(work.lengths) * value.shape[-1] * value.dtype.itemsize
        return parts

    groups: list[list[Block]] = []
    held: dict[tuple[Any, ...], int] = {}
    for block in calls:
        if groups and sum((held | record(block)).values()) <= room:
            groups[-1].append(block)
        else:
            groups.append([block])
            held = {}
        held |= record(block)
        if sum(held.values()) > room:
            warnings.warn(
                f"the records of {block.name} alone take {sum(held.values()) / GIB:.3g} GiB, over the {room / GIB:.3g} GiB "
                "that memory leaves for them; they are made all the same",
                stacklevel=4,
            )
    return groups


def _inner_products(
    block: Block, examples: Sequence[Sequence[tuple[Tensor, Tensor]]], slab: int
) -> Float64[Tensor, "example example"]:
    """Inner products of the examples' gradients of one block, formed in slabs of at most `slab` bytes, or one row each."""
    n, (height, width) = len(examples), block.shape
    step = max(1, slab // (n * width * block.dtype.itemsize))
    step = math.ceil(height / math.ceil(height / step))  # even slabs
    space = torch.empty(n * step * width, dtype=block.dtype, device=block.device)
    total = torch.zeros(n, n, dtype=torch.float64)
    for start in range(0, height, step):
        size = min(step, height - start)
        part = space[: n * size * width].view(n, size, width)
        for i, calls in enumerate(examples):
            for k, (inputs, gradient) in enumerate(calls):
                left, right = block.factors(inputs, gradient)
                # the first call of a layer overwrites, further ones add
                part[i].addmm_(left[:, start : start + size].T, right, beta=int(k > 0))
        rows = part.flatten(1)
        total += (rows @ rows.T).cpu().double()
    return total

"""What does a model read of a prompt? Its token ids, and beside them the images and sounds that some of the tokens stand for.

A processor turns `<image>` into as many placeholder tokens as the projector will give vectors, and the picture into numbers.
Rows are batched by putting these numbers below each other, shorter ones filled with zeros: what belongs to a row stays its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, eq=False)
class Tokens(Sequence[int]):
    """Token ids of one row, and the tensors of its media as the model's forward takes them.

    response: how many tokens at the end were added behind the prompt.
    """

    ids: tuple[int, ...]
    media: Mapping[str, Tensor] = field(default_factory=dict)
    response: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[int]:
        return iter(self.ids)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[int, ...]: ...
    def __getitem__(self, index: int | slice) -> int | tuple[int, ...]:
        return self.ids[index]

    def __add__(self, more: Sequence[int]) -> Tokens:
        """The row with more tokens behind it, such as a response."""
        return Tokens((*self.ids, *more), self.media, self.response + len(more))


def stack_media(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The media of all rows, one below the other; dimensions beyond the first are filled up with zeros."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: _stack([row[name] for row in rows if name in row]) for name in names}


def _stack(parts: Sequence[Tensor]) -> Tensor:
    sizes = [max(part.shape[d] for part in parts) for d in range(1, parts[0].ndim)]
    return torch.cat(
        [
            functional.pad(
                part,
                [n for d in reversed(range(1, part.ndim)) for n in (0, sizes[d - 1] - part.shape[d])],
            )
            for part in parts
        ]
    )

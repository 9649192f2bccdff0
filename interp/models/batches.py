"""How to run many prompts through a model: batches of similar length, halved when memory runs out.

Sorting by length keeps padding, and with it wasted arithmetic, small. When a batch does not fit, its rows are split in two
and later batches are cut to the size that fitted.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

T = TypeVar("T")


def by_length(lengths: Sequence[int], max_rows: int, max_tokens: int) -> list[list[int]]:
    """Indices grouped into batches of at most `max_rows` rows and `max_tokens` padded tokens, longest first.

    Longest first makes memory run out at the start or not at all.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    for i in order:
        if (
            batches
            and len(batches[-1]) < max_rows
            and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= max_tokens
        ):
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that a tensor did not fit, on any device."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and (
        "out of memory" in str(error) or "can't allocate" in str(error)
    )


def run_batches(
    batches: Sequence[list[int]], step: Callable[[list[int]], T]
) -> Iterator[tuple[list[int], T]]:
    """Run `step` on each batch; a batch that does not fit in memory is halved, and so are those after it.

    Raises the out-of-memory error only when a single row does not fit.
    """
    queue, limit = [list(batch) for batch in batches], max((len(batch) for batch in batches), default=1)
    while queue:
        batch = queue.pop(0)
        if len(batch) > limit:
            queue = [batch[:limit], batch[limit:], *queue]
            continue
        fits = True
        try:
            result = step(batch)
        except Exception as error:
            if not is_out_of_memory(error) or len(batch) == 1:
                raise
            fits, limit = False, len(batch) // 2
        if not fits:  # outside `except`, so that the failed call's tensors are no longer referenced
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            queue = [batch, *queue]
        else:
            yield batch, result

"""What stands for an item when distances are taken? One vector an item, made by an encoder, each content once.

1. An encoder says what it reads of a prompt (its words, its sound, all of it) and makes one row of each content.
2. Items of equal content share one row: duplicates tie exactly, and cost nothing.
3. Contents are embedded in an order of their own, so that the order of a file cannot move a distance by a rounding error.
4. A row that is zero, NaN or infinite stops the run by the item's name. A zero vector would have distance exactly 1 to everything
   and look safest of all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from torch import Tensor

from interp.data.prompts import Prompt, PromptSet
from interp.errors import EmbeddingError, UserError
from interp.geometry.nearest import Rows


@dataclass(frozen=True)
class Encoder:
    """A way to turn prompts into vectors.

    Args:
        name: as it is asked for, `lexical:tfidf`.
        content: what it reads of a prompt, as text or as a hash; raises UserError where there is nothing to read.
        rows: one vector a prompt, of all sets together, so that what is fitted (word counts) is fitted on all.
        measure: how an item's distances to the harmful items become one, where nothing else is asked for.
    """

    name: str
    content: Callable[[Prompt], str]
    rows: Callable[[Sequence[Prompt]], Rows]
    measure: str = "min"


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Vectors of a set of items: row `of[i]` of `rows` stands for the item `ids[i]`."""

    encoder: str
    name: str
    ids: tuple[str, ...]
    rows: Rows
    of: Int[Tensor, " item"]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def counts(self) -> Float[Tensor, " row"]:
        """How many items each row stands for."""
        return torch.bincount(self.of, minlength=self.rows.shape[0]).double()

    def expanded(self) -> Rows:
        """One row an item."""
        return self.rows[self.of.numpy()] if isinstance(self.rows, csr_array) else self.rows[self.of]

    def __repr__(self) -> str:
        n, d = self.rows.shape
        return f"Embeddings({self.name} by {self.encoder}: {len(self.ids)} items, {n} contents × {d})"


def embed(encoder: Encoder, *sets: PromptSet) -> tuple[Embeddings, ...]:
    """Vectors of the items of each set, made together.

    Raises EmbeddingError naming the first item that has nothing to read or whose vector is zero, NaN or infinite; whatever the
    encoder raises for media that cannot be read.
    """
    chosen: list[Prompt] = []
    places: list[tuple[PromptSet, int, Int[Tensor, " item"]]] = []
    for prompts in sets:
        if not len(prompts):
            raise UserError(f"{prompts.name!r} holds no items to embed")
        contents = [_content(encoder, prompt, prompts.name) for prompt in prompts]
        first: dict[str, Prompt] = {}
        for content, prompt in zip(contents, prompts, strict=True):
            first.setdefault(content, prompt)
        order = sorted(first, key=lambda content: (len(content), content))
        row = {content: i for i, content in enumerate(order)}
        places.append((prompts, len(chosen), torch.tensor([row[content] for content in contents])))
        chosen += [first[content] for content in order]
    rows = encoder.rows(chosen)
    if rows.shape[0] != len(chosen):
        raise EmbeddingError(f"{encoder.name} made {rows.shape[0]} vectors of {len(chosen)} items")
    _check(encoder.name, rows, chosen)
    ends = [*(start for _, start, _ in places[1:]), len(chosen)]
    return tuple(
        Embeddings(encoder.name, prompts.name, tuple(prompts.ids), rows[start:end], of)
        for (prompts, start, of), end in zip(places, ends, strict=True)
    )


def _content(encoder: Encoder, prompt: Prompt, name: str) -> str:
    try:
        return encoder.content(prompt)
    except UserError as error:
        text = str(error)
        about = text if repr(prompt.id) in text else f"prompt {prompt.id!r}: {text}"
        raise EmbeddingError(f"{encoder.name} cannot embed {name}: {about}") from error


def _check(name: str, rows: Rows, prompts: Sequence[Prompt]) -> None:
    if isinstance(rows, csr_array):
        totals = torch.from_numpy(np.asarray(abs(rows).sum(1)))
    else:
        totals = torch.cat([part.abs().sum(1, dtype=torch.float32) for part in rows.split(8192)])
    for bad, what in ((~torch.isfinite(totals), "is NaN or infinite"), (totals == 0, "is all zeros")):
        if bad.any():
            raise EmbeddingError(
                f"{name}: the vector of {prompts[int(bad.nonzero()[0])].id!r} {what} ({int(bad.sum())} such items); look at "
                "these items, or take another encoder"
            )

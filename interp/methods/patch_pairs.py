"""Which two runs are compared when activations are patched, and do their tokens line up?

A pair is a *clean* prompt that shows a behaviour (a harmful request, refused) and a *corrupt* one that differs from it as little as
possible and does not (its benign twin). Values of the clean run are put into the corrupt run at the same places, so both need the
same number of tokens, placeholders of images and sounds at the same places, and the same end of the template. Between two checkpoints
the prompt is one and the same, read by both.

Control: the values of another corrupt prompt put in instead (`shuffled`). What they do is not the behaviour's doing.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from interp.data.prompts import Prompt
from interp.errors import CheckpointError, UserError
from interp.models.model import PLAIN, Model
from interp.models.tokens import Tokens


@dataclass(frozen=True)
class Pair:
    """A clean and a corrupt prompt; values are taken from the run of `donor`, by default the clean prompt."""

    clean: Prompt
    corrupt: Prompt
    donor: Prompt | None = None

    @property
    def id(self) -> str:
        """The ids of the prompts; one of them where they are the same."""
        return self.clean.id if self.clean.id == self.corrupt.id else f"{self.clean.id} | {self.corrupt.id}"

    @property
    def group(self) -> str:
        """The cluster of the clean prompt, for statistics."""
        return self.clean.group or self.clean.id

    @property
    def giver(self) -> Prompt:
        """The prompt whose values are put in."""
        return self.donor or self.clean

    def swapped(self) -> Pair:
        """The pair the other way round: what takes the behaviour away instead of what brings it."""
        return Pair(self.corrupt, self.clean)


def same_prompts(prompts: Sequence[Prompt]) -> list[Pair]:
    """Each prompt with itself, for patching between two checkpoints."""
    return [Pair(prompt, prompt) for prompt in prompts]


@dataclass(frozen=True, eq=False)
class Aligned:
    """A pair whose tokens line up: those of the clean prompt and of the giver in the source model, of the corrupt one in the patched."""

    pair: Pair
    clean: Tokens
    giver: Tokens
    corrupt: Tokens

    def __len__(self) -> int:
        return len(self.corrupt)


def align(model: Model, pairs: Sequence[Pair], source: Model | None = None) -> list[Aligned]:
    """The pairs as tokens, checked.

    Args:
        model: that is patched. source: whose values are put in, by default the same model.

    Raises CheckpointError for two checkpoints of different architectures, UserError naming a pair whose prompts do not line up,
    pairs with one id, and no pairs at all.
    """
    if not pairs:
        raise UserError("no pairs to patch; give at least one")
    ids = [pair.id for pair in pairs]
    if len(set(ids)) < len(ids):
        twice = next(name for i, name in enumerate(ids) if name in ids[:i])
        raise UserError(f"two pairs have the id {twice!r}; ids must be unique")
    if source is not None:
        same_architecture(source, model)
    giving = source or model
    known: dict[Any, Any] = {}
    if source is not None and model.token_ids(pairs[0].corrupt).ids != source.token_ids(pairs[0].corrupt).ids:
        raise CheckpointError(
            f"{source.name} and {model.name} make different tokens of prompt {pairs[0].corrupt.id!r}; they need one tokenizer and "
            "one chat template"
        )
    found = []
    for pair in pairs:
        rows = []
        for reader, prompt in ((giving, pair.clean), (giving, pair.giver), (model, pair.corrupt)):
            key = (id(reader), id(prompt))
            known[key] = known[key] if key in known else reader.token_ids(prompt)
            rows.append(known[key])
        for row, prompt in zip(rows[:2], (pair.clean, pair.giver), strict=True):
            if why := _misaligned(model, row, rows[2]):
                raise UserError(f"{prompt.id!r} and {pair.corrupt.id!r} do not line up: {why}")
        found.append(Aligned(pair, *rows))
    return found


def same_architecture(source: Model, model: Model) -> None:
    """Raise CheckpointError unless values of one model fit into the other."""
    for what in ("model_type", "n_layers", "d_model", "heads"):
        a, b = (
            {
                "model_type": found.module.config.model_type,
                "n_layers": found.n_layers,
                "d_model": found.d_model,
                "heads": found.tower.head_width,
            }[what]
            for found in (source, model)
        )
        if a != b:
            raise CheckpointError(
                f"{source.name} has {what} {a} and {model.name} {b}: values of one do not fit into the other; take two checkpoints "
                "of one architecture"
            )


def _misaligned(model: Model, one: Tokens, other: Tokens) -> str:
    """Why two rows do not line up; nothing where they do."""
    if len(one) != len(other):
        return f"{len(one)} and {len(other)} tokens; choose prompts of equal length in tokens"
    kinds = [model.modalities(torch.tensor(row.ids)) for row in (one, other)]
    if not torch.equal(*kinds):
        place = int((kinds[0] != kinds[1]).nonzero()[0])
        return f"token {place} stands for an image or a sound in one of them only"
    if model.chat_template != PLAIN and one.ids[-model.n_eoi :] != other.ids[-model.n_eoi :]:
        return "they end differently after the instruction; render both with one chat template"
    return ""


def closest_pairs(
    model: Model, clean: Sequence[Prompt], corrupt: Sequence[Prompt], *, share: float = 0.5
) -> list[Pair]:
    """For each clean prompt the corrupt one of equal length that has most tokens in common with it, each used once.

    share: of the tokens that must be equal at the least; prompts without such a partner are left out. Raises UserError when none
    is left.
    """
    rows = [(prompt, model.token_ids(prompt)) for prompt in corrupt]
    scored = []
    for i, prompt in enumerate(clean):
        own = model.token_ids(prompt)
        for j, (_, other) in enumerate(rows):
            if not _misaligned(model, own, other):
                equal = sum(a == b for a, b in zip(own, other, strict=True)) / len(own)
                if equal >= share:
                    scored.append((-equal, i, j))
    taken: dict[int, int] = {}
    for _, i, j in sorted(scored):
        if i not in taken and j not in taken.values():
            taken[i] = j
    if not taken:
        raise UserError(
            "no clean prompt has a corrupt one of as many tokens that shares half of them; write pairs that differ in few words"
        )
    return [Pair(clean[i], rows[taken[i]][0]) for i in sorted(taken)]


def shuffled(model: Model, pairs: Sequence[Pair], seed: int = 0) -> list[Pair]:
    """The null: each pair with the values of another pair's corrupt prompt, of equal length, instead of those of its clean one.

    Pairs of a length that no other has are left out. Raises UserError when none is left.
    """
    by_length: dict[int, list[Pair]] = {}
    for pair in pairs:
        by_length.setdefault(len(model.token_ids(pair.corrupt)), []).append(pair)
    rng = random.Random(f"shuffled-{seed}")
    found = []
    for alike in by_length.values():
        if len(alike) < 2:
            continue
        order = alike[:]
        rng.shuffle(order)
        found += [
            replace(pair, donor=other.corrupt)
            for pair, other in zip(order, [*order[1:], order[0]], strict=True)
        ]
    if not found:
        raise UserError("no two pairs are equally long, so that none can be shuffled; give more pairs")
    place = {pair.id: i for i, pair in enumerate(pairs)}
    return sorted(found, key=lambda pair: place[pair.id])

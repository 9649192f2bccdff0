"""Can a suffix found by gradient make this model answer? Greedy coordinate gradient (Zou et al. 2023, arXiv 2307.15043, Algorithm 2).

The suffix stands at the end of the user's turn. Its loss is the mean cross-entropy of the first tokens of the wanted answer, summed
over the prompts: one prompt gives an individual suffix, several a universal one. Each step:

1. Gradient of the loss with respect to the one-hot tokens of the suffix: that at the embedding's output, times the embedding of
   every ordinary token as the module itself gives it (Gemma's scales).
2. Candidates: one position, uniform, gets another token, uniform among the `top_k` with the most negative gradient there.
3. The candidate with the smallest loss is kept if it lowers the loss.

A suffix is used as text, so candidates whose text does not encode back to the very same tokens in place are dropped, and only
plain printable tokens take part. Unlike the source, all prompts count from the first step, their gradients are summed as they are,
and the loss never rises.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.data.prompts import Prompt
from interp.errors import NonFiniteError, UserError
from interp.models.batches import by_length, run_batches
from interp.models.model import PLAIN, Model
from interp.models.towers import base_layer
from interp.progress import progress as progress_bar

IGNORED = -100  # the label that cross-entropy skips
TRIES = 500  # draws for one token of a random suffix until its text encodes back

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Suffix:
    """Text to put after a request, with its tokens.

    Args:
        seed: of the search, or of the draw of a random suffix.
        initial_loss: of the random suffix that the search began with; None where nothing was searched.
        loss: after each step, never rising.
    """

    token_ids: Ids
    text: str
    seed: int
    initial_loss: float | None = None
    loss: tuple[float, ...] = ()


def with_suffix(prompts: Sequence[Prompt], suffix: str) -> list[Prompt]:
    """The prompts with the suffix after their text and `+suffix` after their ids; all else stays."""
    return [replace(prompt, text=f"{prompt.text} {suffix}", id=f"{prompt.id}+suffix") for prompt in prompts]


def random_suffix(model: Model, length: int, seed: int = 0) -> Suffix:
    """The null control: as many random ordinary tokens, whose text encodes back to them.

    Raises UserError for a length under 1 and a tokenizer without ordinary tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = _random_tokens(model, [Prompt(text="x", id="x")], _ordinary_tokens(model), length, generator)
    return Suffix(ids, _text(model, ids), seed)


def find_suffix(
    model: Model,
    prompts: Sequence[Prompt],
    *,
    length: int = 8,
    steps: int = 50,
    candidates: int = 64,
    top_k: int = 64,
    max_target_tokens: int = 8,
    batch_size: int = 128,
    seed: int = 0,
    progress: bool = True,
) -> Suffix:
    """Search for a suffix after which the model gives the prompts' responses.

    Args:
        prompts: requests, each with the wanted answer as its `response`.
        length: of the suffix in tokens.
        candidates: substitutions drawn each step, of which repeats and those that do not encode back are not evaluated.
        top_k: tokens of the most negative gradient at each position that are drawn from.
        max_target_tokens: tokens of each answer that the loss looks at.
        batch_size: most candidates × prompts at once; halved when memory runs out.
        seed: of the start and all draws, without touching the global random state.

    Parameters get no gradients. Raises UserError for prompts without response or not fitting the context, sizes under 1 and a
    tokenizer without ordinary tokens; NonFiniteError when the loss or its gradient is not finite.
    """
    sizes = {"candidates": candidates, "top_k": top_k, "max_target_tokens": max_target_tokens}
    if bad := [f"{name} = {size}" for name, size in sizes.items() if size < 1]:
        raise UserError(f"sizes of the search must be at least 1, got {', '.join(bad)}")
    if not prompts:
        raise UserError("no prompts to find a suffix for")
    targets = [model.response_ids(prompt)[:max_target_tokens] for prompt in prompts]
    generator = torch.Generator().manual_seed(seed)
    ordinary = _ordinary_tokens(model)
    ids = _random_tokens(model, prompts, ordinary, length, generator)
    places = [_place(model, *pair, ids) for pair in zip(prompts, targets, strict=True)]
    curve: list[float] = []
    with _frozen(model.module), progress_bar("suffix search", total=steps, enabled=progress) as advance:
        table = _embeddings(model, ordinary)
        loss = initial = _losses(model, places, [ids], batch_size)[0]
        for _ in range(steps):
            gradient = _token_gradient(model, places, ids, table, batch_size)
            drawn = _substitutions(ids, gradient, ordinary, candidates, top_k, generator)
            options = [option for option in drawn if places[0].holds(model, option)]
            # the other prompts are only asked about what would be kept: rendering is slow
            for value, option in sorted(
                zip(_losses(model, places, options, batch_size), options, strict=True)
            ):
                if value >= loss:
                    break
                if all(place.holds(model, option) for place in places[1:]):
                    ids, loss = option, value
                    break
            curve.append(loss)
            advance(1)
    return Suffix(ids, _text(model, ids), seed, initial, tuple(curve))


@dataclass(frozen=True)
class _Place:
    """One prompt's tokens before and after the suffix, and the first tokens of the wanted answer."""

    prompt: Prompt
    head: list[int]
    tail: list[int]
    target: list[int]

    def row(self, ids: Ids) -> list[int]:
        return [*self.head, *ids, *self.tail, *self.target]

    def holds(self, model: Model, ids: Ids) -> bool:
        """Whether the suffix's text encodes to these very tokens here and leaves those around it alone."""
        try:
            return _around(model, self.prompt, ids) == (self.head, self.tail)
        except (
            UserError
        ):  # its text encodes to more tokens, and with those the prompt does not fit the context
            return False


def _text(model: Model, ids: Ids) -> str:
    return model.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False).strip()


def _around(model: Model, prompt: Prompt, ids: Ids) -> tuple[list[int], list[int]] | None:
    """The prompt's tokens before and after the suffix; None where its text does not encode to `ids`."""
    text = _text(model, ids)
    if not text:
        return None
    row = model.token_ids(with_suffix([prompt], text)[0])
    # the last occurrence before the template's end: the request may hold the same words
    end = len(row) - (0 if model.chat_template == PLAIN else model.n_eoi)
    for start in range(end - len(ids), -1, -1):
        if tuple(row[start : start + len(ids)]) == ids:
            return list(row[:start]), list(row[start + len(ids) :])
    return None


def _place(model: Model, prompt: Prompt, target: list[int], ids: Ids) -> _Place:
    around = _around(model, prompt, ids)
    assert around is not None  # the random start was chosen so
    place = _Place(prompt, *around, target)
    n_tokens = len(place.row(ids))
    if model.context is not None and n_tokens > model.context:
        raise UserError(
            f"prompt {prompt.id!r} with suffix and answer has {n_tokens} tokens, the context of {model.name} is "
            f"{model.context}; shorten one of them"
        )
    return place


def _ordinary_tokens(model: Model) -> list[int]:
    """Tokens that are plain printable ASCII text, neither special nor added; raises UserError where fewer than two are."""
    tokenizer = model.tokenizer
    kept_out = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    n = min(len(tokenizer), int(base_layer(model.tower.embed).num_embeddings))  # type: ignore[arg-type]
    texts = tokenizer.batch_decode([[i] for i in range(n)])
    found = [
        i
        for i, text in enumerate(texts)
        if i not in kept_out and text.strip() and text.isascii() and text.isprintable()
    ]
    if len(found) < 2:
        raise UserError(f"{model.name} has no ordinary tokens: nothing to make a suffix of")
    return found


def _random_tokens(
    model: Model, prompts: Sequence[Prompt], ordinary: list[int], length: int, generator: torch.Generator
) -> Ids:
    """Random tokens, one after the other, such that the text so far encodes back after every prompt."""
    if length < 1:
        raise UserError(f"a suffix has at least 1 token, got length = {length}")
    ids: Ids = ()
    while len(ids) < length:
        for k in torch.randint(len(ordinary), (TRIES,), generator=generator).tolist():
            longer = (*ids, ordinary[k])
            if all(_around(model, prompt, longer) is not None for prompt in prompts):
                ids = longer
                break
        else:
            raise UserError(
                f"no random suffix of {length} tokens encodes back to itself in {model.name}'s tokenizer "
                f"({len(ids)} found); shorten it"
            )
    return ids


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """No parameter needs a gradient, which also spares what backward would keep for them."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@torch.no_grad()
def _embeddings(model: Model, ordinary: list[int]) -> Float[Tensor, "ordinary d_model"]:
    return model.tower.embed(torch.tensor(ordinary, device=model.device))


@contextmanager
def _cut_at_embeddings(model: Model) -> Iterator[list[Tensor]]:
    """Yield a list that gets the embedding's output of each forward pass, made a leaf that gradients reach."""
    seen: list[Tensor] = []

    def cut(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[-1]

    handle = model.tower.embed.register_forward_hook(cut)
    try:
        yield seen
    finally:
        handle.remove()


def _row_losses(
    model: Model, rows: Sequence[list[int]], targets: Sequence[list[int]]
) -> Float[Tensor, " row"]:
    """Mean cross-entropy of each row's target, which is the end of the row."""
    longest = max(map(len, targets))
    inputs = model.pad(rows, [""] * len(rows)).inputs()
    logits = model.module(**inputs, use_cache=False, logits_to_keep=longest + 1).logits[:, -longest - 1 : -1]
    labels = torch.tensor([[IGNORED] * (longest - len(t)) + t for t in targets], device=logits.device)
    each = nn.functional.cross_entropy(
        logits.float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
    )
    return each.sum(-1) / (labels != IGNORED).sum(-1)


@torch.no_grad()
def _losses(model: Model, places: Sequence[_Place], options: Sequence[Ids], batch_size: int) -> list[float]:
    """Loss of each suffix, summed over the prompts; all share batches."""
    pairs = [(place, ids) for ids in options for place in places]
    rows = [place.row(ids) for place, ids in pairs]

    def step(batch: list[int]) -> list[float]:
        return _row_losses(model, [rows[i] for i in batch], [pairs[i][0].target for i in batch]).tolist()

    found: dict[int, float] = {}
    for batch, values in run_batches(by_length([len(row) for row in rows], batch_size, 1 << 30), step):
        found.update(zip(batch, values, strict=True))
    n = len(places)
    losses = [math.fsum(found[n * i + k] for k in range(n)) for i in range(len(options))]
    if not all(map(math.isfinite, losses)):
        raise NonFiniteError(
            f"the loss of {model.name} is not finite; check its weights or load it in float32"
        )
    return losses


def _token_gradient(
    model: Model,
    places: Sequence[_Place],
    ids: Ids,
    table: Float[Tensor, "ordinary d_model"],
    batch_size: int,
) -> Float[Tensor, "length ordinary"]:
    """Gradient of the summed loss with respect to the one-hot tokens of the suffix, on the CPU."""
    rows = [place.row(ids) for place in places]

    def step(batch: list[int]) -> Tensor:
        with torch.enable_grad(), _cut_at_embeddings(model) as seen:
            loss = _row_losses(model, [rows[i] for i in batch], [places[i].target for i in batch]).sum()
            (gradient,) = torch.autograd.grad(loss, seen)
        # rows end together
        starts = [len(places[i].head) - len(rows[i]) + gradient.shape[1] for i in batch]
        return torch.stack([gradient[k, s : s + len(ids)] for k, s in enumerate(starts)]).float().sum(0)

    batches = by_length([len(row) for row in rows], batch_size, 1 << 30)
    total = torch.stack([gradient for _, gradient in run_batches(batches, step)]).sum(0)
    if not torch.isfinite(total).all():
        raise NonFiniteError(f"the gradient of {model.name} is not finite; load it in float32 or bfloat16")
    return (total.to(table) @ table.T).float().cpu()


def _substitutions(
    ids: Ids,
    gradient: Float[Tensor, "length ordinary"],
    ordinary: list[int],
    n: int,
    top_k: int,
    generator: torch.Generator,
) -> list[Ids]:
    """At most `n` different suffixes that differ from `ids` in one token."""
    here = torch.tensor(ids)[:, None] == torch.tensor(ordinary)
    k = min(top_k, len(ordinary) - 1)
    # in the order of the vocabulary, so that rounding in the gradient does not change what a draw means
    best = gradient.masked_fill(here, math.inf).topk(k, largest=False).indices.sort().values
    positions = torch.randint(len(ids), (n,), generator=generator).tolist()
    picks = torch.randint(k, (n,), generator=generator).tolist()
    drawn = [
        (*ids[:position], ordinary[int(best[position, pick])], *ids[position + 1 :])
        for position, pick in zip(positions, picks, strict=True)
    ]
    return list(dict.fromkeys(drawn))

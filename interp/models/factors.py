"""What are an example's gradients made of? Inputs and output gradients of linear layers, from batched passes.

A linear map turns an example's inputs `A` (token, d_in) and the gradients of its outputs `B` (token, d_out) into the gradient
of its weight, `Bᵀ A`. Hooks read both in one forward and backward pass over a batch in which no parameter requires a gradient:
only the gradients of activations are computed, down to the lowest layer that is watched, so that the pass is cheaper than a
training step. The loss is the sum over the examples of each one's own mean, so that rows of a batch do not mix.

Source: Goodfellow 2015 (arXiv 1510.01799).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from interp.data.prompts import Prompt
from interp.errors import NonFiniteError, UserError
from interp.models.batches import run_batches
from interp.models.model import Model
from interp.progress import progress as progress_bar

T = TypeVar("T")
GIB = 1 << 30
# takes a block, the inputs of its layer and the gradients of the outputs, (batch, token, d) each, padding included
Read = Callable[["Block", Tensor, Tensor], None]


@dataclass(frozen=True, eq=False)
class Block:
    """The weight or bias of a linear layer; its gradient is `leftᵀ @ right`, of `shape` (a bias is a column).

    `dtype` is that of the gradient: the parameter's own, but fp32 at least.
    """

    name: str
    module: nn.Module
    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    is_head: bool

    @classmethod
    def of(cls, model: Model, parameters: Mapping[str, nn.Parameter]) -> list[Block]:
        """Raises UserError for a parameter whose gradient is not made of one layer's inputs and output gradients."""
        owners: dict[int, list[nn.Module]] = {}
        for part in model.module.modules():
            for held in part.parameters(recurse=False):
                owners.setdefault(id(held), []).append(part)
        return [cls._one(model, name, p, owners[id(p)]) for name, p in parameters.items()]

    @classmethod
    def _one(cls, model: Model, name: str, parameter: nn.Parameter, owners: Sequence[nn.Module]) -> Block:
        cure = "take it with keep='mean', which takes any parameter, or leave it out"
        if len(owners) > 1:
            raise UserError(f"{name} is shared between modules, as a head tied to the embedding is; {cure}")
        if not _is_linear(owners[0]):
            kind = type(owners[0]).__name__
            raise UserError(f"{name} is of a {kind}; each example's gradient is had of linear layers; {cure}")
        shape = (len(parameter), parameter[0].numel())
        dtype = torch.promote_types(parameter.dtype, torch.float32)
        return cls(name, owners[0], shape, dtype, parameter.device, owners[0] is model.tower.head)

    def factors(self, inputs: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Left and right, (…, token, d), from the layer's inputs and the gradients of its outputs."""
        inputs, gradient = inputs.to(self.dtype), gradient.to(self.dtype)
        if self.name.endswith("bias"):
            return gradient, torch.ones_like(gradient[..., :1])
        return (inputs, gradient) if isinstance(self.module, Conv1D) else (gradient, inputs)


@runtime_checkable
class Store(Protocol):
    """Where a sweep over the examples puts what it reads of a batch, or forgets what it read of one that failed."""

    def reader(self, batch: list[int]) -> Read: ...
    def forget(self, batch: list[int]) -> None: ...


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _is_factor(name: str) -> bool:
    return not {"lora_A", "lora_B"}.isdisjoint(name.split("."))


def find_parameters(model: Model, blocks: str | Sequence[str]) -> dict[str, nn.Parameter]:
    """The parameters asked for (`all-linear`, `lora`, or names and patterns of names), by name.

    Raises UserError for a name that there is not, with those near it, and for one not in floating point.
    """
    own = dict(model.module.named_parameters())
    every = dict(
        model.module.named_parameters(remove_duplicate=False)
    )  # a shared one under each of its names
    found: list[str] = []
    if blocks in ("all-linear", "lora"):
        prefix = f"{model.tower.paths.layers}." if blocks == "all-linear" else ""
        linear = [f"{name}.weight" for name, part in model.module.named_modules() if _is_linear(part)]
        found = [n for n in linear if n.startswith(prefix) and _is_factor(n) == (blocks == "lora")]
    else:
        for asked in [blocks] if isinstance(blocks, str) else blocks:
            names = [asked] if asked in every else [name for name in own if fnmatchcase(name, asked)]
            if not names:
                near = ", ".join(difflib.get_close_matches(asked, every, cutoff=0))
                raise UserError(f"{model.name} has no parameter {asked!r}; near it are {near}")
            found += names
    if not found:
        raise UserError(f"{model.name} has no weights for blocks={blocks!r}; name some of its parameters")
    for name in found:
        if name not in every or not every[name].is_floating_point():
            raise UserError(f"{name} is quantised and has no gradient; add LoRA and take blocks='lora'")
    return {name: every[name] for name in found}


class Examples:
    """Examples as tokens, and passes over them in batches of similar length.

    Raises UserError for no examples, or one without a response or longer than the model's context.
    """

    def __init__(self, model: Model, examples: Sequence[Prompt], batch_size: int, progress: bool) -> None:
        if not examples:
            raise UserError("no examples to take gradients of; pass at least one")
        self.model, self.batch_size, self.progress = model, batch_size, progress
        self.ids = tuple(example.id for example in examples)
        responses = [model.response_ids(example) for example in examples]
        self.tokens = [model.token_ids(e) + r for e, r in zip(examples, responses, strict=True)]
        self.counts = [len(response) for response in responses]
        self.lengths = [len(row) for row in self.tokens]
        longest = max(self.lengths)
        if model.context is not None and longest > model.context:
            raise UserError(
                f"example {self.ids[self.lengths.index(longest)]!r} has {longest} tokens, the context of {model.name} "
                f"is {model.context}; shorten or drop it"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def sweep(self, blocks: Sequence[Block], store: Store, label: str = "gradients") -> None:
        """One forward and backward pass over all examples, what it reads put into `store`."""

        def step(batch: list[int]) -> int:
            try:
                self.backward(batch, blocks, store.reader(batch))
            except Exception:
                store.forget(batch)  # its halves may be tried
                raise
            return len(batch)

        for _ in self.each_batch(step, label):
            pass

    def each_batch(
        self, step: Callable[[list[int]], T], label: str = "gradients"
    ) -> Iterator[tuple[list[int], T]]:
        """What `step` returns, which is not None, for every batch; batches are halved when memory runs out."""
        batches = self.model.batches(self.tokens, self.batch_size, 4096)
        with progress_bar(label, total=len(self), enabled=self.progress) as advance:
            for batch, result in run_batches(batches, step):
                yield batch, result
                advance(len(batch))

    def losses(self, batch: Sequence[int]) -> Float[Tensor, " batch"]:
        """Mean cross-entropy over each example's response tokens; raises NonFiniteError."""
        padded = self.model.pad([self.tokens[i] for i in batch], [self.ids[i] for i in batch])
        counts = [self.counts[i] for i in batch]
        longest = max(counts)
        # left padding puts every response at the end, so the head is needed on the last positions only
        logits = self.model.module(**padded.inputs(), use_cache=False, logits_to_keep=longest + 1).logits
        logits = logits[:, -longest - 1 :]  # some models keep all
        targets, start = padded.input_ids[:, -longest:].to(logits.device), longest - torch.tensor(counts)
        # other rows are left out and not given weight zero, with which NaN in padding would still be NaN
        wanted = (torch.arange(longest) >= start[:, None]).to(logits.device)
        picked = logits[:, :-1][wanted]
        picked = picked.to(torch.promote_types(picked.dtype, torch.float32))
        tokens = functional.cross_entropy(picked, targets[wanted], reduction="none")
        losses = torch.stack([part.mean() for part in tokens.split(counts)])
        self.check(losses.detach(), "loss", batch)
        return losses

    def backward(self, batch: Sequence[int], blocks: Sequence[Block], read: Read) -> None:
        """One forward and backward pass that hands `read` the factors of every call of the blocks' layers.

        Raises UserError for a block that takes no part in it.
        """
        reached: set[Block] = set()

        def reading(block: Block, inputs: Tensor, gradient: Tensor) -> None:
            reached.add(block)
            read(block, inputs, gradient)

        with _watching(blocks, (len(batch), max(self.lengths[i] for i in batch)), reading):
            loss = self.losses(batch).sum()
            if loss.requires_grad:
                loss.backward()
        for block in blocks:
            if block not in reached:
                raise UserError(
                    f"{block.name}: its layer takes no part in the loss of {self.ids[batch[0]]!r}; leave it out"
                )

    def own(self, values: Float[Tensor, "batch token d"], batch: Sequence[int]) -> list[Tensor]:
        """Each example's own tokens, which come last in its row: padding is never touched."""
        width = values.shape[1]
        return [row[max(0, width - self.lengths[i]) :] for i, row in zip(batch, values, strict=True)]

    def without_padding(self, left: Tensor, right: Tensor, batch: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Two factors, (batch, token, d), changed so that padding adds exactly nothing to their product, be it NaN.

        The narrower gets zeros there, the other only where weight zero would not do.
        """
        width = left.shape[1]
        first = torch.tensor([width - self.lengths[i] for i in batch])
        padding = (torch.arange(width) < first[:, None]).to(left.device)
        if not padding.any():
            return left, right
        sides = [left, right]
        narrow = int(right.shape[-1] < left.shape[-1])
        sides[narrow] = sides[narrow].masked_fill(padding[..., None], 0)
        if not sides[1 - narrow][padding].isfinite().all():
            sides[1 - narrow] = sides[1 - narrow].masked_fill(padding[..., None], 0)
        return sides[0], sides[1]

    def check(self, values: Float[Tensor, " batch"], what: str, batch: Sequence[int]) -> None:
        """Raises NonFiniteError naming the example of the first value that is not finite."""
        bad = (~torch.isfinite(values)).nonzero()
        if len(bad):
            raise NonFiniteError(
                f"the {what} of example {self.ids[batch[int(bad[0])]]!r} is NaN or infinite; check the checkpoint, "
                "or load it in bfloat16 or float32"
            )


@contextmanager
def _watching(blocks: Sequence[Block], shape: tuple[int, int], read: Read) -> Iterator[None]:
    """Call `read` for every call of the blocks' layers that a backward pass inside comes to; `shape` is (batch, token)."""

    def hook(block: Block) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def watch(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            # detached: what is kept of a pass must not hold its graph, which holds the hook that keeps it
            inputs = _by_example(block, arguments[0].detach(), shape)
            if not output.requires_grad:
                output.requires_grad_()  # nothing below is watched: the backward pass ends here
            output.register_hook(
                lambda gradient: read(block, inputs, gradient.reshape(*inputs.shape[:2], -1))
            )

        return watch

    handles = [block.module.register_forward_hook(hook(block)) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _by_example(
    block: Block, inputs: Float[Tensor, "*rows d"], shape: tuple[int, int]
) -> Float[Tensor, "batch token d"]:
    """Inputs by example and token; raises UserError where rows are not the batch's tokens, as in a routed expert."""
    if inputs.ndim == 2 and len(inputs) == shape[0] * shape[1]:
        return inputs.unflatten(0, shape)
    # the head alone is evaluated at the last positions only
    if inputs.ndim == 3 and len(inputs) == shape[0] and (inputs.shape[1] == shape[1] or block.is_head):
        return inputs
    raise UserError(
        f"{block.name}: its layer is called on {tuple(inputs.shape)} and not on the {shape[0]} × {shape[1]} tokens of the "
        "batch, so examples cannot be told apart; take it with keep='mean', or leave it out"
    )


@contextmanager
def frozen(module: nn.Module, wanted: Iterable[nn.Parameter] = ()) -> Iterator[None]:
    """Gradients are on and dropout off, and of the parameters only `wanted` require one; afterwards all is as before."""
    required = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    training = [part for part in module.modules() if part.training]
    try:
        module.eval().requires_grad_(False)
        for parameter in wanted:
            parameter.requires_grad_()
        with torch.enable_grad():
            yield
    finally:
        for parameter, before in required:
            parameter.requires_grad_(before)
        for part in training:
            part.training = True


def check_memory(needed: int, memory: int, what: str) -> None:
    """Raises UserError when `needed` bytes are more than `memory`."""
    if needed > memory:
        raise UserError(
            f"{what} takes {needed / GIB:.3g} GiB, memory allows {memory / GIB:.3g}; raise it, take fewer blocks or examples, "
            "or keep less of each"
        )

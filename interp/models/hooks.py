"""How do values leave and enter a running network? The only place that unpacks module inputs and outputs.

`Edit`s are pure maps of a residual-stream value; `editing` puts them at sites while a context lasts and takes them away
again whatever happens inside. `reading` hands each site's value to a function, `starting_at` skips blocks whose
outcome is already known, `StopForward` ends a forward pass early.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.data.prompts import Prompt
from interp.errors import SiteError
from interp.models.sites import DECODER, HEADS, INPUTS, Site, all_layers, resolve
from interp.models.towers import Tower

# `answer`: the last prompt token and all generated ones, from which the answer's tokens are predicted
Positions = Literal["all", "prompt", "last", "eoi", "generated", "answer"] | int


class StopForward(Exception):
    """Raised by a hook when every wanted site has been read; never seen outside `stopping_after`."""


@runtime_checkable
class HasTower(Protocol):
    """What hooks need of a model."""

    @property
    def tower(self) -> Tower: ...
    @property
    def n_eoi(self) -> int: ...


@runtime_checkable
class Edit(Protocol):
    """A pure map of a site's value, with the positions it acts on."""

    @property
    def positions(self) -> Positions: ...
    def __call__(self, value: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]: ...
    def describe(self) -> dict[str, Any]: ...


def _rows(vector: Tensor, value: Tensor) -> Tensor:
    """A vector, or one vector a row, in fp32 (at least) on the value's device, shaped to broadcast over positions."""
    dtype = torch.promote_types(value.dtype, torch.float32)
    vector = vector.to(value.device, dtype)
    if vector.ndim == 1:
        return vector
    if len(vector) != len(value):
        raise SiteError(
            f"an edit with vectors for {len(vector)} rows met a batch of {len(value)}; make it for these rows"
        )
    return vector[:, None, :]


def _check_width(name: str, vector: Tensor) -> None:
    if not torch.isfinite(vector).all():
        raise SiteError(f"the vector of {name} holds NaN or infinity; fit it on finite activations")


@dataclass(frozen=True, eq=False)
class Add:
    """`h ← h + scale · vector`. The vector is (d_model,), or (batch, d_model) for another one in each row."""

    vector: Float[Tensor, "*batch d_model"]
    scale: float = 1.0
    positions: Positions = "all"

    def __post_init__(self) -> None:
        _check_width("Add", self.vector)

    def __call__(self, value: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        return torch.add(value, _rows(self.vector, value), alpha=self.scale).to(value.dtype)

    def describe(self) -> dict[str, Any]:
        return {
            "edit": "add",
            "scale": self.scale,
            "norm": float(self.vector.norm()),
            "positions": self.positions,
        }


@dataclass(frozen=True, eq=False)
class Ablate:
    """`h ← h − scale · r̂ r̂ᵀ h` with `r̂ = unit(direction)`; (d_model,), or (batch, d_model) for another one in each row."""

    direction: Float[Tensor, "*batch d_model"]
    scale: float = 1.0
    positions: Positions = "all"
    unit: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check_width("Ablate", self.direction)
        norm = self.direction.double().norm(dim=-1, keepdim=True)
        if (norm == 0).any():
            raise SiteError("cannot ablate a zero direction; it points nowhere")
        object.__setattr__(self, "unit", (self.direction.double() / norm).float())

    def __call__(self, value: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        dtype = torch.promote_types(value.dtype, torch.float32)
        wide, unit = value.to(dtype), self.unit.to(value.device, dtype)
        unit = unit.expand(len(wide), -1)
        along = torch.bmm(wide, unit[:, :, None])
        return torch.baddbmm(wide, along, unit[:, None, :], alpha=-self.scale).to(value.dtype)

    def describe(self) -> dict[str, Any]:
        return {"edit": "ablate", "scale": self.scale, "positions": self.positions}


@dataclass(frozen=True, eq=False)
class Project:
    """`h ← h − scale · Uᵀ U h`: onto the complement of the span of the orthonormal rows of `basis` (rank, d_model)."""

    basis: Float[Tensor, "rank d_model"]
    scale: float = 1.0
    positions: Positions = "all"

    def __post_init__(self) -> None:
        _check_width("Project", self.basis)
        gram = self.basis.double() @ self.basis.double().T
        if not torch.allclose(gram, torch.eye(len(gram), dtype=gram.dtype, device=gram.device), atol=1e-4):
            raise SiteError("the basis of Project has rows that are not orthonormal; pass Subspace.basis")

    def __call__(self, value: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        dtype = torch.promote_types(value.dtype, torch.float32)
        basis, wide = self.basis.to(value.device, dtype), value.to(dtype)
        return (wide - self.scale * (wide @ basis.T) @ basis).to(value.dtype)

    def describe(self) -> dict[str, Any]:
        return {"edit": "project", "rank": len(self.basis), "scale": self.scale, "positions": self.positions}


Edits = Mapping[Site, Edit | Sequence[Edit]]
Apply = Callable[[Tensor], Tensor]


@runtime_checkable
class PromptEdits(Protocol):
    """Edits that depend on what is asked, such as steering under a condition: made anew for each batch."""

    def edits(self, model: Any, prompts: Sequence[Prompt]) -> Edits: ...


def edits_for(model: HasTower, edits: Edits | PromptEdits | None, prompts: Sequence[Prompt]) -> Edits:
    """The edits of a batch of these prompts, in their order; an empty mapping where there are none."""
    return edits.edits(model, prompts) if isinstance(edits, PromptEdits) else edits or {}


def everywhere(edit: Edit, n_layers: int) -> dict[Site, Edit]:
    """The edit at every block input, attention output and MLP output: what ablating a direction means (METHODS §0)."""
    return dict.fromkeys(all_layers(n_layers, ("resid_pre", "attn_out", "mlp_out")), edit)


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _with_first(output: Any, value: Tensor) -> Any:
    return (value, *output[1:]) if isinstance(output, tuple) else value


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _with_input(
    args: tuple[Any, ...], kwargs: dict[str, Any], value: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ((value, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": value})


class _Clock:
    """Where in the prompt or the generated text the current forward pass stands."""

    def __init__(self, prompt_width: int | None, n_eoi: int) -> None:
        self.fixed_width, self.n_eoi = prompt_width, n_eoi
        self.width = prompt_width
        self.start = 0

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        past = kwargs.get("past_key_values")
        self.start = int(past.get_seq_length()) if past is not None else 0
        if self.fixed_width is None and self.start == 0:
            tokens = args[0] if args else kwargs.get("input_ids")
            self.width = (tokens if tokens is not None else kwargs["inputs_embeds"]).shape[1]

    def select(self, positions: Positions, n_pos: int) -> tuple[int, int]:
        """The pass's positions that an edit acts on, from the first to behind the last; none where these are equal."""
        if positions == "all":
            return 0, n_pos
        if self.width is None:
            raise SiteError(
                "the prompt's width is unknown: pass prompt_width to editing() when a cache is handed in"
            )
        end = self.width
        match positions:
            case "prompt":
                first, behind = 0, end
            case "generated":
                first, behind = end, self.start + n_pos
            case "answer":
                first, behind = end - 1, self.start + n_pos
            case "last":
                first, behind = end - 1, end
            case "eoi":
                first, behind = end - self.n_eoi, end
            case int() if -end <= positions < 0:
                first, behind = end + positions, end + positions + 1
            case _:
                raise SiteError(
                    f"unknown position {positions!r}; use all, prompt, last, eoi, generated, answer or a negative index "
                    "from the prompt's end"
                )
        low = min(max(first - self.start, 0), n_pos)
        return low, min(max(behind - self.start, low), n_pos)


def _apply(edits: Sequence[Edit], value: Tensor, *, clock: _Clock) -> Tensor:
    for edit in edits:
        low, high = clock.select(edit.positions, value.shape[1])
        if high - low == value.shape[1]:
            value = edit(value)
        elif low < high:
            value = torch.cat([value[:, :low], edit(value[:, low:high]), value[:, high:]], dim=1)
    return value


@contextmanager
def editing(model: HasTower, edits: Edits, *, prompt_width: int | None = None) -> Iterator[None]:
    """Apply edits at sites while the context lasts, in scoring and in cached or uncached generation.

    Args:
        model: a `Model`.
        edits: one edit or several in order for each site. At a site of an encoder or a projector an edit acts on every vector of
            every image or sound, those of padding included, and its vector is one for all rows.
        prompt_width: padded length of the prompts in tokens; by default the width of each pass that starts a sequence.

    Raises SiteError for a layer the model lacks or a vector of another width. Hooks are removed on any exit.
    """
    tower, handles = model.tower, []
    clock = _Clock(prompt_width, model.n_eoi)
    depths = {name: len(encoder.blocks) for name, encoder in tower.encoders.items()}
    try:
        handles.append(tower.decoder.register_forward_pre_hook(clock, with_kwargs=True))
        for named, one_or_more in edits.items():
            (site,) = resolve(named, tower.n_layers, depths)
            chain = list(one_or_more) if isinstance(one_or_more, Sequence) else [one_or_more]
            if site.tower == DECODER:
                for edit in chain:
                    _check_fits(edit, site, tower.head_width if site.stream == HEADS else tower.d_model)
            act: Apply = (
                partial(_apply, chain, clock=clock) if site.tower == DECODER else _encoder_edit(site, chain)
            )

            def before(module: nn.Module, args: Any, kwargs: Any, apply: Apply = act) -> Any:
                return _with_input(args, kwargs, apply(_input(args, kwargs)))

            def after(module: nn.Module, args: Any, output: Any, apply: Apply = act) -> Any:
                return _with_first(output, apply(_first(output)))

            # some projectors read what Hugging Face's own hooks record of an encoder's blocks: an edit there must come before them
            first = site.tower != DECODER
            if site.stream in INPUTS:
                handles.append(
                    tower.module(site).register_forward_pre_hook(before, with_kwargs=True, prepend=first)
                )
            else:
                handles.append(tower.module(site).register_forward_hook(after, prepend=first))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check_fits(edit: Edit, site: Site, width: int) -> None:
    for name in ("vector", "direction", "basis"):
        own = getattr(edit, name).shape[-1] if hasattr(edit, name) else width
        if own != width:
            decoder = "the width of its heads" if site.stream == HEADS else "this model's d_model"
            where = decoder if site.tower == DECODER else "the width there"
            raise SiteError(f"an edit of width {own} at {site}: {where} is {width}")


def _encoder_edit(site: Site, chain: Sequence[Edit]) -> Apply:
    """A function that edits every vector at a site of an encoder, whatever the layout of images, tiles and frames there.

    Raises SiteError for what means nothing there: positions in a prompt, and another vector for each row.
    """
    for edit in chain:
        if edit.positions != "all":
            raise SiteError(
                f"an edit at {site} for positions {edit.positions!r}: an encoder has no prompt positions; use 'all'"
            )
        if any(hasattr(edit, name) and getattr(edit, name).ndim != 1 for name in ("vector", "direction")):
            raise SiteError(
                f"an edit at {site} with a vector for each row: an encoder has no rows; give one vector"
            )

    def apply(value: Tensor) -> Tensor:
        flat = value.reshape(1, -1, value.shape[-1])
        for edit in chain:
            _check_fits(edit, site, value.shape[-1])
            flat = edit(flat)
        return flat.reshape(value.shape)

    return apply


def under_edits(model: HasTower) -> bool:
    """Whether an `editing` context is open on the model."""
    return any(isinstance(hook, _Clock) for hook in model.tower.decoder._forward_pre_hooks.values())


@contextmanager
def reading(model: HasTower, sites: Sequence[Site], read: Callable[[Site, Tensor], None]) -> Iterator[None]:
    """Hand each site's value (batch, pos, d_model) to `read` as a forward pass computes it."""
    handles = []
    try:
        for site in sites:

            def before(module: nn.Module, args: Any, kwargs: Any, site: Site = site) -> None:
                read(site, _input(args, kwargs))

            def after(module: nn.Module, args: Any, output: Any, site: Site = site) -> None:
                read(site, _first(output))

            if site.stream in INPUTS:
                handles.append(model.tower.module(site).register_forward_pre_hook(before, with_kwargs=True))
            else:
                handles.append(model.tower.module(site).register_forward_hook(after))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def stopping_after(model: HasTower, sites: Sequence[Site]) -> Iterator[None]:
    """End the forward pass, without an error, once the last of the sites has been computed."""
    last = max(site.layer for site in sites)
    if all(site.stream == "resid_pre" for site in sites if site.layer == last):

        def stop(*_: Any) -> None:
            raise StopForward

        handle = model.tower.blocks[last].register_forward_pre_hook(stop)
    else:
        handle = model.tower.blocks[last].register_forward_hook(lambda *_: _raise_stop())
    try:
        yield
    except StopForward:
        pass
    finally:
        handle.remove()


def _raise_stop() -> None:
    raise StopForward


@contextmanager
def starting_at(model: HasTower, layer: int, value: Float[Tensor, "batch pos d_model"]) -> Iterator[None]:
    """Skip the blocks before `layer` and feed it `value`, the stored resid_pre of that layer at all positions.

    Exact for any decoder, whatever its attention, since all positions are restarted and no cache is cropped.
    """
    skipped = model.tower.blocks[:layer]
    saved = [block.__dict__.get("forward") for block in skipped]

    def passthrough(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states

    def feed(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return _with_input(args, kwargs, value)

    handle = model.tower.blocks[layer].register_forward_pre_hook(feed, with_kwargs=True, prepend=True)
    try:
        for block in skipped:
            block.forward = passthrough
        yield
    finally:
        handle.remove()
        for block, forward in zip(skipped, saved, strict=True):
            if forward is None:
                block.__dict__.pop("forward", None)
            else:
                block.forward = forward

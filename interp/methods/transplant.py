"""Which weights of the aligned checkpoint, put back into its fine-tune, bring a behaviour back, and at what cost?

The parameters of one part (a module, a block, several blocks) are exchanged for those of the other checkpoint while something is
measured: patching of weights instead of activations. Parts are

1. modules: every module of every block that holds a parameter the fine-tune changed; what LoRA trained, module by module;
2. blocks: each alone; all up to it, with what comes before the blocks; all from it on, with final norm and head. Blocks that only restore
   together with later ones, or only late ones, show in the two cumulative columns and not in the single one.

The two checkpoints swapped, the same tells which weights of the fine-tune suffice to break the behaviour.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float

from interp.data.prompts import Prompt
from interp.errors import CheckpointError, UserError
from interp.methods.logit_difference import LogitDifference
from interp.methods.patch_grid import PatchGrid
from interp.methods.patch_pairs import same_architecture
from interp.models.model import Model
from interp.models.towers import find_tower
from interp.progress import progress as progress_bar

Parts = Mapping[tuple[int, str], Sequence[str]]
Measure = Callable[[Model, Sequence[Prompt]], Float[np.ndarray, " prompt"]]
BEFORE, ALONE, UP_TO, FROM = -1, "alone", "up to", "from"


def merged(model: Model) -> Model:
    """A copy with a live adapter's products added to the weights; the model itself where it has none."""
    if model.peft is None:
        return model
    module = copy.deepcopy(model.peft).merge_and_unload().eval()
    return replace(model, module=module, peft=None, tower=find_tower(module))


def changed(model: Model, source: Model) -> list[str]:
    """Names of the parameters in which two checkpoints differ, in order.

    Raises CheckpointError for other architectures, parameters or shapes, live adapters and equal checkpoints.
    """
    same_architecture(source, model)
    for found in (model, source):
        if found.peft is not None:
            raise CheckpointError(f"{found.name} carries a live adapter; pass merged(model)")
    own, given = (dict(found.module.named_parameters()) for found in (model, source))
    odd = sorted(set(own) ^ set(given)) or [n for n in own if own[n].shape != given[n].shape]
    if odd:
        raise CheckpointError(f"{odd[0]} is not the same parameter in {model.name} and {source.name}")
    names = [name for name in own if not torch.equal(own[name], given[name].to(own[name]))]
    if not names:
        raise CheckpointError(f"{model.name} and {source.name} have the same weights; nothing was fine-tuned")
    return names


def module_parts(model: Model, names: Sequence[str]) -> dict[tuple[int, str], list[str]]:
    """Changed parameters of the blocks by layer and module, such as `(3, "self_attn.q_proj")`."""
    stem = f"{model.tower.paths.layers}."
    found: dict[tuple[int, str], list[str]] = {}
    for name in names:
        if name.startswith(stem):
            layer, _, rest = name.removeprefix(stem).partition(".")
            found.setdefault((int(layer), rest.rpartition(".")[0]), []).append(name)
    if not found:
        raise UserError("the fine-tune changed nothing inside the blocks; there is no module to transplant")
    return found


def block_parts(model: Model, names: Sequence[str]) -> dict[tuple[int, str], list[str]]:
    """Changed parameters by block: alone, up to it, and from it on.

    Layer −1 is what comes before the blocks (embeddings, encoders, projectors), the layer after the last the final norm and head.
    """
    stem, paths, last = f"{model.tower.paths.layers}.", model.tower.paths, model.n_layers
    stages: dict[int, list[str]] = {layer: [] for layer in range(BEFORE, last + 1)}
    for name in names:
        if name.startswith(stem):
            stages[int(name.removeprefix(stem).partition(".")[0])].append(name)
        else:
            stages[last if name.startswith((f"{paths.norm}.", f"{paths.head}.")) else BEFORE].append(name)
    found = {}
    for layer, alone in stages.items():
        found[layer, ALONE] = alone
        found[layer, UP_TO] = [name for k, own in stages.items() for name in own if k <= layer]
        found[layer, FROM] = [name for k, own in stages.items() for name in own if k >= layer]
    return found


@contextmanager
def transplanted(model: Model, source: Model, names: Sequence[str]) -> Iterator[None]:
    """The model with these parameters of the source while the context lasts; its own again on any exit.

    Raises UserError for a name that is no parameter of both.
    """
    own, given = (dict(found.module.named_parameters()) for found in (model, source))
    if odd := [name for name in names if name not in own or name not in given]:
        raise UserError(f"{odd[0]!r} is no parameter of both {model.name} and {source.name}")
    saved = {name: own[name].data for name in names}
    try:
        for name in names:
            own[name].data = given[name].data.to(saved[name])
        yield
    finally:
        for name, value in saved.items():
            own[name].data = value


def transplant(
    model: Model,
    source: Model,
    parts: Parts,
    measures: Mapping[str, tuple[Sequence[Prompt], Measure]],
    *,
    axis: str = "module",
    progress: bool = True,
) -> dict[str, PatchGrid]:
    """Each measure, prompt by prompt, with each part of the source in the model's place; a grid a measure.

    Args:
        model: the fine-tune, `corrupt` in the grids. source: the aligned checkpoint, `clean`.
        parts: by layer and column, from `module_parts` or `block_parts`; empty parts change nothing and are not run.
        measures: by name the prompts and what is measured of a model on them, one number a prompt.

    Raises CheckpointError for two architectures, UserError for no parts.
    """
    same_architecture(source, model)
    if not parts:
        raise UserError("no parts to transplant; take module_parts or block_parts")
    layers = sorted({layer for layer, _ in parts})
    names = list(dict.fromkeys(column for _, column in parts))

    def measured(found: Model) -> dict[str, np.ndarray]:
        return {
            name: np.asarray(measure(found, prompts), dtype=np.float64)
            for name, (prompts, measure) in measures.items()
        }

    clean, corrupt = measured(source), measured(model)
    patched = {
        name: np.full((len(values), len(layers), len(names)), np.nan) for name, values in corrupt.items()
    }
    with progress_bar("transplanting", total=len(parts), enabled=progress) as advance:
        for (layer, column), chosen in parts.items():
            found = corrupt
            if chosen:
                with transplanted(model, source, chosen):
                    found = measured(model)
            for name, values in found.items():
                patched[name][:, layers.index(layer), names.index(column)] = values
            advance(1)
    return {
        name: PatchGrid(
            patched[name],
            clean[name],
            corrupt[name],
            "weights",
            axis,
            tuple(layers),
            tuple(names),
            tuple(prompt.id for prompt in prompts),
            tuple(prompt.group or prompt.id for prompt in prompts),
            "exact",
            name,
            model.name,
            source.name,
        )
        for name, (prompts, _) in measures.items()
    }


@torch.no_grad()
def metric_values(
    model: Model, prompts: Sequence[Prompt], metric: LogitDifference, *, batch_size: int = 128
) -> Float[np.ndarray, " prompt"]:
    """The metric of each prompt at its last token."""
    found = []
    for start in range(0, len(prompts), batch_size):
        logits = model.last_logits(model.encode(prompts[start : start + batch_size]))
        found.append(metric(logits[:, list(metric.ids)].double()).cpu().numpy())
    return np.concatenate(found)

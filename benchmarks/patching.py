"""How fast is a grid of activation patching, beside a full forward pass for every cell and beside TransformerLens?

The residual stream at every layer and position, on pairs of prompts whose tokens all differ, so that no cell can be skipped; the metric's
logits at the last position. `full` is the arithmetic of TransformerLens' generic patching (a whole forward pass of the corrupt batch for every
cell, a hook puts one position of the clean values in) on the plain module with last-position logits; `transformer_lens` is its own
`get_act_patch_resid_pre` on its bridge, for some of the layers. Attribution patching estimates all streams at once and is put beside one
bare forward pass over the same pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from benchmarks.capture import Config as ModelConfig
from benchmarks.harness import Run, interleave, machine, paired_ratio, seconds, seconds_note, target, verdicts
from interp.data.prompts import Prompt
from interp.files import load_arrays, save_arrays
from interp.methods.attribution import attribute
from interp.methods.logit_difference import LogitDifference
from interp.methods.patch_pairs import Pair
from interp.methods.patching import patch
from interp.models.model import Batch, Model

TARGET_EXACT, TARGET_ATTRIBUTION, TOLERANCE = 3.0, 4.0, 1e-3
METRIC = LogitDifference((7, 11), (13, 17))
LABELS = {
    "exact": "`patch`, resid_pre, every layer and position",
    "full": "a full forward pass a cell, last-position logits",
    "transformer_lens": "TransformerLens, `get_act_patch_resid_pre`, scaled",
    "attribution": "`attribute`, four streams, every layer and position",
    "forward": "one forward pass over the pairs, last-position logits",
}


class Config(BaseModel):
    """The model of the other benchmarks, the pairs, and how much of the grid the slow peer runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_layers: int = 12
    d_model: int = 512
    n_heads: int = 8
    intermediate: int = 1408
    vocabulary: int = 32_000
    n_pairs: int = 32
    length: int = 24
    peer_layers: int = 2
    passes: int = 8
    seed: int = 0

    def model(self) -> Model:
        """The random model: one token a word, no chat template."""
        shared = ("n_layers", "d_model", "n_heads", "intermediate", "vocabulary", "seed")
        return ModelConfig(**{name: getattr(self, name) for name in shared}, longest=self.length).model()

    def pairs(self) -> list[Pair]:
        """Pairs of random words, another one at every position."""
        generator = torch.Generator().manual_seed(self.seed)
        size = self.vocabulary - 1
        words = torch.randint(size, (self.n_pairs, self.length), generator=generator)
        other = (words + torch.randint(1, size, words.shape, generator=generator)) % size
        return [
            Pair(*(Prompt(" ".join(f"w{int(w)}" for w in row), id=f"{side}{i}") for side, row in two))
            for i, two in enumerate(
                zip(
                    zip(["clean"] * self.n_pairs, words, strict=True),
                    zip(["corrupt"] * self.n_pairs, other, strict=True),
                    strict=True,
                )
            )
        ]


def _keep(out: Path, grid: Tensor) -> dict[str, Any]:
    save_arrays(out / "grid.safetensors", {"grid": grid.contiguous()})
    return {}


def exact(config: Config) -> Run:
    """This library."""
    model, pairs = config.model(), config.pairs()

    def run(out: Path, pairs: list[Pair] = pairs, layers: list[int] | None = None) -> dict[str, Any]:
        grid = patch(model, pairs, METRIC, layers=layers, batch_tokens=1 << 30, progress=False)
        return _keep(out, torch.tensor(grid.patched))

    patch(model, pairs[:2], METRIC, layers=[config.n_layers - 1], progress=False)
    return run


def _batches(model: Model, pairs: list[Pair]) -> tuple[Batch, Batch]:
    clean, corrupt = (model.encode([getattr(pair, side) for pair in pairs]) for side in ("clean", "corrupt"))
    return clean, corrupt


def full(config: Config) -> Run:
    """A whole forward pass a cell."""
    model, pairs = config.model(), config.pairs()

    @torch.no_grad()
    def grid(layers: range, pairs: list[Pair]) -> Tensor:
        clean, corrupt = _batches(model, pairs)
        blocks = model.module.model.layers
        values: dict[int, Tensor] = {}
        handles = [
            blocks[i].register_forward_pre_hook(lambda _, args, i=i: values.update({i: args[0]}))
            for i in layers
        ]
        model.last_logits(clean)
        for handle in handles:
            handle.remove()
        found = torch.empty(len(pairs), len(layers), config.length, dtype=torch.float64)
        for k, layer in enumerate(layers):
            for position in range(config.length):

                def put(_: Any, args: Any, layer: int = layer, position: int = position) -> Any:
                    value = args[0].clone()
                    value[:, position] = values[layer][:, position]
                    return (value, *args[1:])

                handle = blocks[layer].register_forward_pre_hook(put)
                found[:, k, position] = METRIC(model.last_logits(corrupt)[:, list(METRIC.ids)].double())
                handle.remove()
        return found

    grid(range(1), pairs[:2])
    return lambda out: _keep(out, grid(range(config.n_layers), pairs))


def transformer_lens(config: Config) -> Run:
    """The peer itself, on its bridge, for the first layers; it reads all positions' logits, and its metric takes the last."""
    import pandas as pd
    from transformer_lens import patching

    model, pairs = config.model(), config.pairs()
    bridge = model.bridge()
    clean, corrupt = (batch.input_ids for batch in _batches(model, pairs))

    def metric(logits: Tensor) -> Tensor:
        return METRIC(logits[:, -1, list(METRIC.ids)].double()).mean()

    @torch.no_grad()
    def grid(layers: int, positions: int) -> Tensor:
        names = [f"blocks.{layer}.hook_resid_pre" for layer in range(layers)]
        _, cache = bridge.run_with_cache(clean, names_filter=names)
        cells = [(layer, position) for layer in range(layers) for position in range(positions)]
        found = patching.generic_activation_patch(
            bridge,
            corrupt,
            cache,
            metric,
            patching.layer_pos_patch_setter,
            "resid_pre",
            index_df=pd.DataFrame(cells, columns=["layer", "pos"]),
        )
        return found.reshape(layers, positions)

    grid(1, 1)
    return lambda out: _keep(out, grid(config.peer_layers, config.length))


def attribution(config: Config) -> Run:
    """This library's estimate, as often as `forward` runs."""
    model, pairs = config.model(), config.pairs()

    def run(out: Path, passes: int = config.passes) -> dict[str, Any]:
        for _ in range(passes):
            grids = attribute(model, pairs, METRIC, batch_tokens=1 << 30, progress=False)
        return _keep(out, torch.tensor(grids["resid_pre"].patched))

    attribute(model, pairs[:2], METRIC, progress=False)
    return run


def forward(config: Config) -> Run:
    """One pass over the corrupt prompts, their text encoded each time as the others do."""
    model, pairs = config.model(), config.pairs()

    def run(out: Path, passes: int = config.passes) -> dict[str, Any]:
        for _ in range(passes):
            model.last_logits(model.encode([pair.corrupt for pair in pairs]))
        return {}

    model.last_logits(model.encode([pairs[0].corrupt]))
    return run


ENGINES: dict[str, Callable[[Config], Run]] = {
    "exact": exact,
    "full": full,
    "transformer_lens": transformer_lens,
    "attribution": attribution,
    "forward": forward,
}


def run(config: Config, *, threads: int, repeats: int) -> dict[str, Any]:
    """Time all engines; raises RuntimeError when a peer's grid differs from ours."""

    def check(places: dict[str, Path]) -> dict[str, float]:
        found = {
            engine: load_arrays(places[engine] / "grid.safetensors")["grid"]
            for engine in ENGINES
            if engine != "forward"
        }
        theirs = found["transformer_lens"]
        errors = {
            "full": float((found["exact"] - found["full"]).abs().max()),
            "transformer_lens": float((found["exact"].mean(0)[: len(theirs)] - theirs).abs().max()),
        }
        for engine, error in errors.items():
            if not error <= TOLERANCE:
                raise RuntimeError(f"the grid of {engine} differs from ours by {error:.2g}")
        return errors

    result = interleave(
        "benchmarks.patching",
        list(ENGINES),
        config,
        threads=threads,
        repeats=repeats,
        memory=False,
        check=check,
    )
    engines, scale = result["engines"], config.n_layers / config.peer_layers
    faster = {
        name: {
            "full": paired_ratio(engines, "full", "exact", clock),
            "transformer_lens": scale * paired_ratio(engines, "transformer_lens", "exact", clock),
        }
        for name, clock in (("wall", "seconds"), ("cpu", "cpu_seconds"))
    }
    passes = {
        name: paired_ratio(engines, "attribution", "forward", clock)
        for name, clock in (("wall", "seconds"), ("cpu", "cpu_seconds"))
    }
    return result | {
        "config": config.model_dump(),
        "faster": faster,
        "forward_equivalents": passes,
        "targets": [
            target(
                f"exact patching at least {TARGET_EXACT:.0f} × faster than a full forward pass a cell",
                f"{faster['wall']['full']:.2f} ×",
                faster["wall"]["full"] >= TARGET_EXACT,
            ),
            target(
                f"attribution patching within {TARGET_ATTRIBUTION:.0f} forward passes",
                f"{passes['wall']:.2f}",
                passes["wall"] <= TARGET_ATTRIBUTION,
            ),
        ],
        "machine": machine(),
    }


def tables(result: dict[str, Any]) -> str:
    """The timings as Markdown, then each target with met or missed."""
    rows = ["| engine | seconds, median (min to max) | beside | in processor time |", "|---|---|---|---|"]
    wall, cpu = result["faster"]["wall"], result["faster"]["cpu"]
    passes = result["forward_equivalents"]
    beside = {
        "exact": ("1.00", "1.00"),
        **{name: (f"{wall[name]:.2f} × `patch`", f"{cpu[name]:.2f} ×") for name in wall},
        "attribution": (f"{passes['wall']:.2f} forward passes", f"{passes['cpu']:.2f}"),
        "forward": ("1.00", "1.00"),
    }
    for engine, label in LABELS.items():
        rows.append(f"| {label} | {seconds(result['engines'][engine])} | {' | '.join(beside[engine])} |")
    config, errors = result["config"], result["agreement"]
    note = (
        f"{seconds_note(result)} {config['n_pairs']} pairs of {config['length']} tokens; TransformerLens ran "
        f"{config['peer_layers']} of {config['n_layers']} layers, its time is scaled in the third column. The last two rows are "
        f"{config['passes']} repetitions. Patched metrics differ by at most {max(errors.values()):.0e}."
    )
    return "\n".join([*rows, "", note, "", verdicts(result["targets"])])

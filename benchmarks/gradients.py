"""What do gradients of single examples cost, beside one batched forward and backward pass, and beside a backward pass each?

The same random Llama and the same examples for all: words as prompt and as response, the loss on the response.

1. `lora`: the gradients of LoRA factors, whole. Floor: the batches of ours, forward and backward, the factors trained.
2. `projections`: 4,096 numbers an example of each linear layer's gradient. Floor: the same, these layers' weights trained. Peer:
   a backward pass an example, each gradient formed and projected by the very maps of ours (which is generous: a dense matrix
   of 4,096 rows would not fit in memory), stacked; on some of the examples, its time scaled by their tokens to all.
3. `gram`: exact inner products over all linear layers in bounded memory, beside the arithmetic that it does at the rate at
   which this machine multiplies matrices, and beside the stacked gradients that it does not keep.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from benchmarks import capture
from benchmarks.harness import (
    Run,
    interleave,
    machine,
    mebibytes,
    paired_ratio,
    seconds,
    seconds_note,
    target,
    verdicts,
)
from interp.data.prompts import Prompt
from interp.files import load_arrays, save_arrays
from interp.models.factors import Block, Examples, find_parameters, frozen
from interp.models.finetune import FinetuneConfig, add_lora, isolated_rng
from interp.models.gradients import Sketch, capture_gradients
from interp.models.model import Model

TARGET_LORA, TARGET_PROJECTIONS, TOLERANCE = 1.1, 1.2, 1e-4
LABELS = {
    "lora_floor": "floor: one pass, factors trained",
    "lora": '`keep="each"` of LoRA factors',
    "full_floor": "floor: one pass, all linear layers trained",
    "projections": '`keep="projections"`, all linear layers',
    "peer": "peer: a backward pass an example, projected, stacked",
    "gram": '`keep="gram"`, all linear layers',
}


class Config(BaseModel):
    """The model (that of the capture benchmark), the examples, what is kept; lengths are in words."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_layers: int = 12
    d_model: int = 512
    n_heads: int = 8
    intermediate: int = 1408
    vocabulary: int = 32_000
    n_examples: int = 256
    n_peer: int = 16
    shortest: int = 20
    longest: int = 50
    response: int = 15
    batch_size: int = 16
    lora_rank: int = 8
    dimension: int = 4096
    memory: int = 1 << 30
    seed: int = 0

    def model(self) -> Model:
        """The random model, sdpa attention, no chat template."""
        shared = set(capture.Config.model_fields) & set(Config.model_fields)
        return capture.Config(**self.model_dump(include=shared)).model()

    def examples(self) -> list[Prompt]:
        """Random words; prompts of uniform length, responses of one."""
        generator = torch.Generator().manual_seed(self.seed)
        lengths = torch.randint(self.shortest, self.longest + 1, (self.n_examples,), generator=generator)

        def words(n: int) -> str:
            drawn = torch.randint(self.vocabulary - 1, (n,), generator=generator)
            return " ".join(f"w{int(word)}" for word in drawn)

        return [
            Prompt(text=words(int(length)), id=str(i), response=words(self.response))
            for i, length in enumerate(lengths)
        ]

    def model_with_lora(self) -> Model:
        """The same with factors in every linear layer, both away from zero."""
        model = self.model()
        with isolated_rng(self.seed):
            add_lora(model, FinetuneConfig(steps=1, lora_rank=self.lora_rank))
            for name, parameter in model.module.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.02)
        return model


def _warm(run: Callable[[Path, list[Prompt]], dict[str, Any]], examples: list[Prompt]) -> Run:
    """One small run, so that no timed one pays for first uses; then the run over all examples."""
    with tempfile.TemporaryDirectory() as directory:
        run(Path(directory), examples[:4])
    return lambda out: run(out, examples)


def _floor(model: Model, config: Config, blocks: str) -> Run:
    """The batches of ours, forward and backward, gradients added up in `.grad` as in training."""
    parameters = find_parameters(model, blocks)
    first = next(iter(parameters))

    def run(out: Path, examples: list[Prompt]) -> dict[str, Any]:
        work = Examples(model, examples, config.batch_size, progress=False)

        def step(batch: list[int]) -> int:
            work.losses(batch).sum().backward()
            return len(batch)

        with frozen(model.module, parameters.values()):
            for _ in work.each_batch(step):
                pass
        total = parameters[first].grad
        assert total is not None
        save_arrays(out / "mean.safetensors", {"mean": total / len(examples)})
        for parameter in parameters.values():
            parameter.grad = None
        return {}

    return _warm(run, config.examples())


def lora_floor(config: Config) -> Run:
    """Training the factors without an optimiser's step."""
    return _floor(config.model_with_lora(), config, "lora")


def full_floor(config: Config) -> Run:
    """Training the linear layers without an optimiser's step."""
    return _floor(config.model(), config, "all-linear")


def lora(config: Config) -> Run:
    """Every example's gradient of every factor."""
    model = config.model_with_lora()

    def run(out: Path, examples: list[Prompt]) -> dict[str, Any]:
        found = capture_gradients(
            model,
            examples,
            "lora",
            keep="each",
            batch_size=config.batch_size,
            memory=config.memory,
            progress=False,
        )
        first = found.rows[found.blocks[0]]
        save_arrays(out / "mean.safetensors", {"mean": first.mean(0)})
        return {"bytes": sum(rows.nbytes for rows in found.rows.values())}

    return _warm(run, config.examples())


def projections(config: Config) -> Run:
    """Every example's projection of every linear layer's gradient."""
    model = config.model()

    def run(out: Path, examples: list[Prompt]) -> dict[str, Any]:
        found = capture_gradients(
            model,
            examples,
            keep="projections",
            dimension=config.dimension,
            seed=config.seed,
            batch_size=config.batch_size,
            memory=config.memory,
            progress=False,
        )
        save_arrays(out / "rows.safetensors", {"total": found.total})
        return {}

    return _warm(run, config.examples())


def peer(config: Config) -> Run:
    """A backward pass an example, over the first of the examples; projected by the maps of ours."""
    model = config.model()
    parameters = find_parameters(model, "all-linear")
    blocks = Block.of(model, parameters)
    sketches = [Sketch.draw(block, config.dimension, config.seed) for block in blocks]

    def run(out: Path, examples: list[Prompt]) -> dict[str, Any]:
        work = Examples(model, examples, 1, progress=False)
        rows = []
        with frozen(model.module, parameters.values()):
            for i in range(len(work)):
                gradients = torch.autograd.grad(work.losses([i]).sum(), list(parameters.values()))
                projected = []
                for gradient, sketch in zip(gradients, sketches, strict=True):
                    assert sketch.left is not None and sketch.right is not None
                    projected.append((sketch.left.T @ gradient @ sketch.right).flatten())
                rows.append(torch.stack(projected))
        save_arrays(out / "rows.safetensors", {"total": torch.stack(rows).sum(1)})
        return {}

    return _warm(run, config.examples()[: config.n_peer])


def gram(config: Config) -> Run:
    """Exact inner products over all linear layers."""
    model = config.model()
    calls: list[int] = []
    model.tower.head.register_forward_hook(lambda *_: calls.append(1))

    def run(out: Path, examples: list[Prompt]) -> dict[str, Any]:
        calls.clear()
        found = capture_gradients(
            model, examples, batch_size=config.batch_size, memory=config.memory, progress=False
        )
        first = found.gram[found.blocks[0]]
        save_arrays(out / "gram.safetensors", {"total": found.total, "first": first})
        # one call is the short example that shows the sizes of records
        return {"passes": (len(calls) - 1) // len(_batches(model, config, examples))}

    return _warm(run, config.examples())


ENGINES: dict[str, Callable[[Config], Run]] = {
    "lora_floor": lora_floor,
    "lora": lora,
    "full_floor": full_floor,
    "projections": projections,
    "peer": peer,
    "gram": gram,
}


def _batches(model: Model, config: Config, examples: list[Prompt]) -> list[list[int]]:
    work = Examples(model, examples, config.batch_size, progress=False)
    return [batch for batch, _ in work.each_batch(len)]


def _rate(a: tuple[int, int], b: tuple[int, int]) -> float:
    """Floating-point operations a second of a product of two matrices of these shapes."""
    left, right = torch.randn(a), torch.randn(b)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - start)
    return 2 * a[0] * a[1] * b[1] / min(times)


def arithmetic(config: Config, passes: int) -> dict[str, Any]:
    """What the Gram matrix' work is made of, in operations, and the seconds it takes at the rates of such products.

    A pass is forward through everything and backward through what lies above the lowest block recorded, half on average.
    """
    model, examples = config.model(), config.examples()
    work = Examples(model, examples, config.batch_size, progress=False)
    entries = sum(parameter.numel() for parameter in find_parameters(model, "all-linear").values())
    batches = [
        (len(batch), max(work.lengths[i] for i in batch)) for batch in _batches(model, config, examples)
    ]
    padded, heads = sum(n * width for n, width in batches), sum(n for n, _ in batches) * (config.response + 1)
    forward = 2 * (padded * entries + heads * config.d_model * config.vocabulary)
    n, d, rows = len(work), config.d_model, batches[0][0] * batches[0][1]
    slab = max(d, config.memory // (16 * 4 * n))
    parts = {
        "passes": (forward * (passes + (passes + 1) / 2), _rate((rows, d), (d, config.intermediate))),
        "forming": (2 * sum(work.lengths) * entries, _rate((d, batches[0][1]), (batches[0][1], d))),
        "products": (2 * n * n * entries, _rate((n, slab), (slab, n))),
    }
    return {
        "operations": {name: operations for name, (operations, _) in parts.items()},
        "rates": {name: rate for name, (_, rate) in parts.items()},
        "seconds": {name: operations / rate for name, (operations, rate) in parts.items()},
        "stacked_bytes": 4 * n * entries,
    }


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def run(config: Config, *, threads: int, repeats: int) -> dict[str, Any]:
    """Time all engines; raises RuntimeError when gradients of one are not those of another."""

    def check(places: dict[str, Path]) -> dict[str, float]:
        lora_mean, lora_expected = (
            load_arrays(places[e] / "mean.safetensors")["mean"] for e in ENGINES if "lora" in e
        )
        ours, expected = (
            load_arrays(places[e] / "rows.safetensors")["total"] for e in ("projections", "peer")
        )
        inner = load_arrays(places["gram"] / "gram.safetensors")
        mean = load_arrays(places["full_floor"] / "mean.safetensors")["mean"].double()
        errors = {
            "lora": _relative(lora_mean.flatten(), lora_expected.flatten()),
            "projections": _relative(ours[: len(expected)], expected),
            "gram": _relative(inner["first"].mean(), mean.square().sum()),
        }
        for name, error in errors.items():
            if not error <= TOLERANCE:
                raise RuntimeError(f"{name} differs from one backward pass by {error:.2g}")
        exact, projected = inner["total"], ours.double() @ ours.double().T
        lengths = exact.diagonal().sqrt()
        errors["projected inner products"] = float(
            ((projected - exact) / (lengths[:, None] * lengths)).square().mean().sqrt()
        )
        return errors

    result = interleave(
        "benchmarks.gradients",
        list(ENGINES),
        config,
        threads=threads,
        repeats=repeats,
        memory=True,
        check=check,
    )
    torch.set_num_threads(threads)
    engines = result["engines"]
    work = arithmetic(config, engines["gram"]["found"]["passes"])
    tokens = [len(prompt.text.split()) for prompt in config.examples()]
    scale = (sum(tokens) + config.response * len(tokens)) / (
        sum(tokens[: config.n_peer]) + config.response * config.n_peer
    )
    over_floor = {
        "lora": paired_ratio(engines, "lora", "lora_floor"),
        "projections": paired_ratio(engines, "projections", "full_floor"),
    }
    return result | {
        "config": config.model_dump(),
        "over_floor": over_floor,
        "cpu_over_floor": {
            "lora": paired_ratio(engines, "lora", "lora_floor", "cpu_seconds"),
            "projections": paired_ratio(engines, "projections", "full_floor", "cpu_seconds"),
        },
        "peer_scale": scale,
        "faster_than_peer": scale * paired_ratio(engines, "peer", "projections"),
        "arithmetic": work,
        "targets": [
            target(
                "gradients of LoRA factors ≤ 1.1 × one pass",
                f"{over_floor['lora']:.3f} ×",
                over_floor["lora"] <= TARGET_LORA,
            ),
            target(
                "projections ≤ 1.2 × one pass",
                f"{over_floor['projections']:.3f} ×",
                over_floor["projections"] <= TARGET_PROJECTIONS,
            ),
        ],
        "machine": machine(),
    }


def tables(result: dict[str, Any]) -> str:
    """The timings as Markdown, the arithmetic of the Gram matrix, then each target with met or missed."""
    rows = [
        "| engine | seconds, median (min to max) | times its floor | in processor time | peak memory growth |",
        "|---|---|---|---|---|",
    ]
    for engine, label in LABELS.items():
        found, over = result["engines"][engine], result["over_floor"].get(engine)
        ratios = f"{over:.2f} | {result['cpu_over_floor'][engine]:.2f}" if over is not None else "|"
        rows.append(f"| {label} | {seconds(found)} | {ratios} | {mebibytes(found['peak_growth'])} |")
    work, config, agreement = result["arithmetic"], result["config"], result["agreement"]
    parts = ", ".join(
        f"{name} {work['operations'][name] / 1e12:.3g} Tflop, {work['seconds'][name]:.3g} s at {work['rates'][name] / 1e9:.3g} "
        "Gflop/s"
        for name in work["seconds"]
    )
    notes = [
        seconds_note(result),
        f"The peer ran {config['n_peer']} of {config['n_examples']} examples; its time is scaled by {result['peer_scale']:.1f}, the "
        f"ratio of tokens: ours is {result['faster_than_peer']:.2f} × faster.",
        f"The Gram matrix took {result['engines']['gram']['found']['passes']} passes with {mebibytes(config['memory'])} allowed "
        f"for records. Its arithmetic: {parts}; {sum(work['seconds'].values()):.3g} s together. "
        f"The stacked gradients would take {mebibytes(work['stacked_bytes'])}.",
        f"Largest difference from one backward pass {max(agreement[name] for name in ('lora', 'projections', 'gram')):.0e}, "
        f"relative; projected inner products are off by {agreement['projected inner products']:.2g} (root mean square, over the "
        "product of the norms).",
    ]
    return "\n".join([*rows, "", *notes, "", verdicts(result["targets"])])

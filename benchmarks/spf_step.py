"""What does a step of safety-preserving fine-tuning cost, beside what it cannot do without?

The same random Llama, trained in full with AdamW on the same batches of random words. The gate is kept open, so that every step pays
for its projection.

1. `plain`: forward, backward, clipping, step. `every_floor`, `tenth_floor`: the same, and one forward and backward pass on one example
   at every step, or at every tenth.
2. `every`, `tenth`: SPF with k = 20, `g_s` renewed at every step, or at every tenth. `watched`: the former with `update_watch`.
3. `monitor`: the plain step with a `SafetyMonitor` on 32 probes at every tenth.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from transformers import TrainerControl, TrainerState

from benchmarks import gradients
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
from interp.methods.safety_monitor import SafetyMonitor
from interp.methods.spf import GradientSurgery, update_watch
from interp.models.finetune import collate, encode_example
from interp.models.model import Model

TARGET, TARGET_MONITOR = 1.15, 1.05
LABELS = {
    "plain": "plain step",
    "every_floor": "floor: plain step, one example forward and backward",
    "every": "SPF, `g_s` at every step",
    "watched": "the same with `update_watch`",
    "tenth_floor": "floor: the same at every tenth step",
    "tenth": "SPF, `g_s` at every tenth step",
    "monitor": "plain step, `SafetyMonitor` at every tenth",
}


class Config(BaseModel):
    """The model (that of the capture benchmark), the examples, the steps; lengths are in words."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_layers: int = 12
    d_model: int = 512
    n_heads: int = 8
    intermediate: int = 1408
    vocabulary: int = 32_000
    shortest: int = 20
    longest: int = 50
    response: int = 15
    batch_size: int = 16
    n_probes: int = 32
    steps: int = 10
    k: int = 20
    seed: int = 0

    def material(self) -> tuple[Model, list[Prompt]]:
        """The random model, and examples for every step, for the safety loss and for the probes."""
        shared = set(gradients.Config.model_fields) & set(Config.model_fields)
        n = self.batch_size * self.steps + self.steps + self.n_probes
        config = gradients.Config(**self.model_dump(include=shared), n_examples=n)
        return config.model(), config.examples()


def _engine(
    *,
    safety: bool = False,
    surgery: bool = False,
    refresh: int = 1,
    watched: bool = False,
    monitored: bool = False,
) -> Callable[[Config], Run]:
    def setup(config: Config) -> Run:
        model, examples = config.material()
        module = model.module
        rows = [encode_example(model, example) for example in examples]
        size, steps = config.batch_size, config.steps
        batches = [collate(rows[i * size : (i + 1) * size], model.pad_id) for i in range(steps)]
        single = [collate([row], model.pad_id) for row in rows[size * steps : size * steps + steps]]
        probes = examples[size * steps + steps :]
        start = {name: p.detach().clone() for name, p in module.named_parameters()}
        module.requires_grad_(True)

        def safety_loss(step: int) -> Tensor:
            return module(**single[step], use_cache=False).loss

        def run(out: Path, n: int = steps) -> dict[str, Any]:
            with torch.no_grad():
                for name, parameter in module.named_parameters():
                    parameter.copy_(start[name])
            optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)
            operate = None
            if surgery:
                operate = GradientSurgery(
                    module.named_parameters(),
                    safety_loss,
                    k=config.k,
                    gate="always",
                    refresh=refresh,
                    seed=config.seed,
                )
            monitor = None
            if monitored:
                monitor = SafetyMonitor(
                    model, probes, refusal_ids=range(config.vocabulary // 10, config.vocabulary), live=False
                )
                monitor.rows.clear()
            with update_watch(operate, optimizer) if operate and watched else nullcontext():
                for step in range(n):
                    optimizer.zero_grad()
                    module(**batches[step], use_cache=False).loss.backward()
                    if safety and step % refresh == 0:
                        torch.autograd.grad(safety_loss(step), list(module.parameters()))
                    if operate:
                        operate()
                    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
                    optimizer.step()
                    if monitor:
                        state = TrainerState(
                            global_step=step + 1, max_steps=steps, is_world_process_zero=True
                        )
                        monitor.on_step_end(None, state, TrainerControl())
            first = next(module.parameters())
            save_arrays(out / "weights.safetensors", {"first": first.detach()})
            return {}

        with tempfile.TemporaryDirectory() as directory:
            run(Path(directory), 1)
        return run

    return setup


ENGINES: dict[str, Callable[[Config], Run]] = {
    "plain": _engine(),
    "every_floor": _engine(safety=True),
    "every": _engine(surgery=True),
    "watched": _engine(surgery=True, watched=True),
    "tenth_floor": _engine(safety=True, refresh=10),
    "tenth": _engine(surgery=True, refresh=10),
    "monitor": _engine(monitored=True),
}
OVER = {"every": "every_floor", "watched": "every_floor", "tenth": "tenth_floor", "monitor": "plain"}


def run(config: Config, *, threads: int, repeats: int) -> dict[str, Any]:
    """Time all engines; raises RuntimeError when what should not change the weights does, or what should does not."""

    def check(places: dict[str, Path]) -> dict[str, float]:
        weights = {engine: load_arrays(places[engine] / "weights.safetensors")["first"] for engine in ENGINES}
        for engine in ("every_floor", "tenth_floor", "monitor"):
            if not torch.equal(weights[engine], weights["plain"]):
                raise RuntimeError(f"{engine} did not train as the plain step does")
        if not torch.equal(weights["watched"], weights["every"]) or torch.equal(
            weights["every"], weights["plain"]
        ):
            raise RuntimeError("SPF did not act on the weights, or watching it did")
        return {"changed": float((weights["every"] - weights["plain"]).norm() / weights["plain"].norm())}

    found = interleave(
        "benchmarks.spf_step",
        list(ENGINES),
        config,
        threads=threads,
        repeats=repeats,
        memory=True,
        check=check,
    )
    engines = found["engines"]
    over = {engine: paired_ratio(engines, engine, floor) for engine, floor in OVER.items()}
    limits = {"every": TARGET, "tenth": TARGET, "monitor": TARGET_MONITOR}
    names = {
        "every": "SPF step, g_s at every step ≤ 1.15 × its floor",
        "tenth": "SPF step, g_s at every tenth ≤ 1.15 × its floor",
        "monitor": "SafetyMonitor at every tenth step ≤ 1.05 × the plain step",
    }
    return found | {
        "config": config.model_dump(),
        "over_floor": over,
        "cpu_over_floor": {e: paired_ratio(engines, e, floor, "cpu_seconds") for e, floor in OVER.items()},
        "targets": [target(names[e], f"{over[e]:.3f} ×", over[e] <= limit) for e, limit in limits.items()],
        "machine": machine(),
    }


def tables(result: dict[str, Any]) -> str:
    """The timings as Markdown, then each target with met or missed."""
    rows = [
        "| engine | seconds, median (min to max) | times its floor | in processor time | peak memory growth |",
        "|---|---|---|---|---|",
    ]
    for engine, label in LABELS.items():
        found, over = result["engines"][engine], result["over_floor"].get(engine)
        ratios = f"{over:.2f} | {result['cpu_over_floor'][engine]:.2f}" if over is not None else "|"
        rows.append(f"| {label} | {seconds(found)} | {ratios} | {mebibytes(found['peak_growth'])} |")
    return "\n".join([*rows, "", seconds_note(result), "", verdicts(result["targets"])])

"""What does steering cost while a model answers, beside answering without it?

The random Llama and prompts of the capture benchmark, greedy answers of a fixed length. `steered` adds a vector at every layer, at the
last prompt token and every generated one; `conditional` does so in rows whose prompts meet a condition, about half, which takes one
more pass over the prompts up to the condition's layer. Strength is 0: all arithmetic is done, and tokens must be those of `plain`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import capture
from benchmarks.harness import Run, interleave, machine, paired_ratio, seconds, seconds_note, target, verdicts
from interp.files import load_json, save_json
from interp.methods.steering import Condition, Steering, SteeringVectors, steer
from interp.models.activations import capture as capture_activations
from interp.models.generation import generate
from interp.models.model import Model
from interp.models.sites import all_layers

TARGET = 1.05
LABELS = {
    "plain": "`generate`",
    "steered": "`generate(…, edits=steering)`, every layer",
    "conditional": "the same under a condition",
}


class Config(capture.Config):
    """The capture benchmark's model, fewer prompts, and answers."""

    n_prompts: int = 64
    batch_size: int = 16
    longest: int = 100
    new_tokens: int = 32


def _steering(config: Config, model: Model, conditional: bool) -> Steering:
    generator = torch.Generator().manual_seed(config.seed)
    drawn = torch.randn(config.n_layers + 1, config.d_model, generator=generator)
    sites = tuple(all_layers(config.n_layers, "resid_post"))
    condition = None
    if conditional:
        site = sites[config.n_layers // 2]
        read = capture_activations(model, config.prompts(), site, progress=False)
        condition = Condition(drawn[-1], site, float((read.values[0] @ drawn[-1]).median()))
    return steer(SteeringVectors(drawn[:-1], sites), 0.0, condition=condition)


def _engine(kind: str) -> Callable[[Config], Run]:
    def setup(config: Config) -> Run:
        model, prompts = config.model(), config.prompts()
        # no token ends an answer: all are equally long
        model.module.generation_config.eos_token_id = None
        steering = None if kind == "plain" else _steering(config, model, kind == "conditional")

        def run(out: Path, n: int = config.n_prompts) -> dict[str, Any]:
            made = generate(
                model,
                prompts[:n],
                edits=steering,
                max_new_tokens=config.new_tokens,
                batch_size=config.batch_size,
                progress=False,
            )
            save_json(out / "tokens.json", [answer.token_ids for answer in made])
            return {}

        with tempfile.TemporaryDirectory() as directory:
            run(Path(directory), 4)
        return run

    return setup


ENGINES: dict[str, Callable[[Config], Run]] = {kind: _engine(kind) for kind in LABELS}


def run(config: Config, *, threads: int, repeats: int) -> dict[str, Any]:
    """Time all engines; raises RuntimeError when a steering of strength 0 changes a token."""

    def check(places: dict[str, Path]) -> dict[str, int]:
        tokens = {engine: load_json(places[engine] / "tokens.json") for engine in ENGINES}
        for engine in ("steered", "conditional"):
            if tokens[engine] != tokens["plain"]:
                raise RuntimeError(f"{engine} at strength 0 does not answer as the plain model does")
        return {"answers": len(tokens["plain"]), "tokens": sum(map(len, tokens["plain"]))}

    found = interleave(
        "benchmarks.steering",
        list(ENGINES),
        config,
        threads=threads,
        repeats=repeats,
        memory=False,
        check=check,
    )
    over, cpu = (
        {
            engine: paired_ratio(found["engines"], engine, "plain", clock)
            for engine in ("steered", "conditional")
        }
        for clock in ("seconds", "cpu_seconds")
    )
    name = f"steering at every layer ≤ {TARGET} × unsteered"
    return found | {
        "config": config.model_dump(),
        "over_plain": over,
        "cpu_over_plain": cpu,
        "targets": [target(name, f"{over['steered']:.3f} ×", over["steered"] <= TARGET)],
        "machine": machine(),
    }


def tables(result: dict[str, Any]) -> str:
    """The timings as Markdown, then the target."""
    rows = [
        "| engine | seconds, median (min to max) | times unsteered | in processor time |",
        "|---|---|---|---|",
    ]
    for engine, label in LABELS.items():
        wall, cpu = (result[key].get(engine) for key in ("over_plain", "cpu_over_plain"))
        shown = ("", "") if wall is None else (f"{wall:.3f}", f"{cpu:.3f}")
        rows.append(f"| {label} | {seconds(result['engines'][engine])} | {shown[0]} | {shown[1]} |")
    n = result["agreement"]
    note = f"{n['tokens']} tokens in {n['answers']} answers. {seconds_note(result)}"
    return "\n".join([*rows, "", note, "", verdicts(result["targets"])])

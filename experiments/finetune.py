"""What does one fine-tune do to what a model refuses and answers? Train with given settings, then ask held-out requests: a cell for sweeps.

`interp run finetune CHECKPOINT --data DATA.jsonl` or a grid of it, `interp run sweep experiments/recipes/ranks.yaml`. With `save_every` a
killed run goes on from its last checkpoint, and ends where an uninterrupted one would.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import BaseModel, ConfigDict, Field

from interp import cli, scripts
from interp.data.prompts import PromptSet, read_prompts
from interp.errors import UserError
from interp.evals.jailbreak import evaluate
from interp.evals.judges import ExactJudge, PhraseJudge
from interp.evals.verdicts import Outcome
from interp.models.checkpoint import Checkpoint
from interp.models.finetune import FinetuneConfig, finetune
from interp.models.generation import generate
from interp.store import content_hash


class Config(BaseModel):
    """Settings of one fine-tune: rank 0 trains all weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: str = "organism:text/aligned"
    data: str
    ask: str | None = None
    lora_rank: int = Field(16, ge=0)
    lora_alpha: int | None = None
    learning_rate: float = Field(1e-3, gt=0)
    steps: int = Field(60, ge=0)
    batch_size: int = Field(16, gt=0)
    save_every: int | None = Field(20, gt=0)
    max_new_tokens: int = Field(24, gt=0)
    n_ask: int = Field(200, ge=1)
    seed: int = 0
    device_map: str | None = None
    judge: Literal["auto", "phrases"] = "auto"


def inputs(config: Config) -> Mapping[str, str]:
    """What beside the config decides the result: weights and files."""
    found = {"weights": Checkpoint.parse(config.checkpoint).fingerprint()}
    return found | {name: content_hash(Path(file)) for name, file in _files(config).items()}


def _files(config: Config) -> dict[str, str]:
    """The training data, and the requests by kind."""
    asked = {"ask": config.ask} if config.ask else {
        f"ask {kind}": str(path) for kind, path in Checkpoint.parse(config.checkpoint).prompts().items()
    }  # fmt: skip
    if not asked:
        raise UserError(f"no requests come with {config.checkpoint}; name a file of them with ask")
    return {"data": config.data, **asked}


def run(config: Config, *, work: Path, progress: bool = True) -> dict[str, Any]:
    """Fine-tune under `work`, which may hold an interrupted attempt, and ask; returns the share of each outcome by kind of request."""
    files = _files(config)
    data = read_prompts(files.pop("data"))
    training = FinetuneConfig(
        method="lora" if config.lora_rank else "full", steps=config.steps, batch_size=config.batch_size,
        learning_rate=config.learning_rate, lora_rank=config.lora_rank or 1, lora_alpha=config.lora_alpha,
        seed=config.seed, save_every=config.save_every,
    )  # fmt: skip
    load: dict[str, Any] = {} if config.device_map is None else {"device_map": config.device_map}
    tuned = finetune(config.checkpoint, data, training, work / "tuned", progress=progress, **load)
    name = f"{config.checkpoint}+{tuned}" if config.lora_rank else str(tuned)
    model = Checkpoint.parse(name).load(**load)
    found: dict[str, Any] = {}
    for file in files.values():
        asked = read_prompts(file)
        asked = asked if len(asked) <= config.n_ask else asked.sample(config.n_ask, config.seed)
        for label in ("harmful", "benign"):
            part = PromptSet([prompt for prompt in asked if prompt.label == label], name=label)
            if len(part):
                found |= _shares(model, part, config, progress)
    if not found:
        raise UserError("no request is labelled harmful or benign; label them, or name another file with ask")
    return found


def _shares(model: Any, asked: PromptSet, config: Config, progress: bool) -> dict[str, Any]:
    answers = generate(model, asked, max_new_tokens=config.max_new_tokens, progress=progress)
    exact = config.judge == "auto" and all(prompt.truth is not None for prompt in asked)
    result = evaluate(asked, answers, ExactJudge() if exact else PhraseJudge(), seeds=(config.seed,))
    found: dict[str, Any] = {f"n_{asked.name}": result.n_asked}
    for outcome in Outcome:
        if result.counts[outcome]:
            rate = result.rate(outcome)
            name = f"{asked.name}_{outcome.value}"
            found |= {name: rate.estimate, f"{name}_low": rate.low, f"{name}_high": rate.high}
    return found


def experiment(
    checkpoint: Annotated[str, typer.Argument(help="Hub id, directory or organism:name.")],
    data: Annotated[str, typer.Option(help="Examples with a response: a prompt file.")],
    ask: Annotated[
        str | None, typer.Option(help="Labelled requests to ask; else those beside the checkpoint.")
    ] = None,
    lora_rank: Annotated[int, typer.Option(min=0, help="0 trains all weights.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    steps: Annotated[int, typer.Option(min=0, help="Optimiser steps.")] = 60,
    seed: Annotated[int, typer.Option(help="Seed of the training.")] = 0,
    out: Annotated[Path, typer.Option(help="Where results are kept.")] = Path("results"),
) -> None:
    """Fine-tune a checkpoint and measure what it then refuses and answers."""
    from interp.sweep.cell import run_cell
    from interp.sweep.grid import Cell

    config = Config(
        checkpoint=checkpoint, data=data, ask=ask, lora_rank=lora_rank, learning_rate=learning_rate, steps=steps, seed=seed
    )  # fmt: skip
    label = f"rank={lora_rank}, rate={learning_rate}, steps={steps}, seed={seed}"
    directory = run_cell(Cell("experiments.finetune", config.model_dump(mode="json"), label), out)
    print((directory / "values.json").read_text(encoding="utf-8"))
    print(f"result: {directory}")


def main(argv: Sequence[str]) -> int:
    """Run the experiment with a command line."""
    example = "interp run finetune organism:text/aligned --data my-examples.jsonl"
    return scripts.call(experiment, argv, "interp run finetune", example)


if __name__ == "__main__":
    raise SystemExit(cli.main(["run", "finetune", *sys.argv[1:]]))

"""How is a model fine-tuned that one GPU cannot hold? Under `accelerate launch`, in shards (FSDP2) or copies (DDP), to one checkpoint.

`accelerate launch --config_file experiments/recipes/fsdp2.yaml -m experiments.sharded BASE --data DATA.jsonl --out DIR`. What it does in
several processes is in interp/models/sharded.py; in one it is a plain fine-tune.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from interp import scripts
from interp.data.prompts import read_prompts
from interp.models.finetune import FinetuneConfig
from interp.models.sharded import finetune_sharded


def experiment(
    base: Annotated[str, typer.Argument(help="Hub id or directory.")],
    data: Annotated[str, typer.Option(help="Examples with a response: a prompt file.")],
    out: Annotated[Path, typer.Option(help="Where the adapter, or the model, is written.")],
    lora_rank: Annotated[int, typer.Option(min=0, help="0 trains all weights.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-4,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 100,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples a process and step.")] = 1,
    accumulation: Annotated[int, typer.Option(min=1, help="Micro-batches a step.")] = 1,
    save_every: Annotated[int | None, typer.Option(min=1, help="Steps between checkpoints.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the training.")] = 0,
) -> None:
    """Fine-tune a checkpoint in as many processes as were launched."""
    config = FinetuneConfig(
        method="lora" if lora_rank else "full", lora_rank=lora_rank or 1, learning_rate=learning_rate, steps=steps,
        batch_size=batch_size, accumulation=accumulation, save_every=save_every, seed=seed,
    )  # fmt: skip
    load: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    print(finetune_sharded(base, read_prompts(data), config, out, **load))


def main(argv: Sequence[str]) -> int:
    """Run the fine-tune with a command line."""
    example = "interp run sharded ./base --data examples.jsonl --out ./tuned"
    return scripts.call(experiment, argv, "interp run sharded", example)


if __name__ == "__main__":
    from interp import cli

    raise SystemExit(cli.main(["run", "sharded", *sys.argv[1:]]))

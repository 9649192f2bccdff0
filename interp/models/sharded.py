"""How is a model fine-tuned that one device cannot hold? The same training stage in several processes, under `accelerate launch`.

    accelerate launch --config_file experiments/recipes/fsdp2.yaml -m experiments.sharded BASE --data DATA --out DIR

1. Each process loads the checkpoint and trains on its share of every batch; the Trainer takes FSDP2 from the launch file (weights, gradients
   and optimiser in shards), or DDP where the file does not ask for it.
2. Only the first process looks at the disk, under a lock, and tells the others what it found; a finished fine-tune is reused, a killed one
   resumes from the last whole checkpoint.
3. At the end the shards are put together on the first process, which writes what `finetune` would have written.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import filelock
import torch
import torch.distributed as dist
from accelerate import PartialState
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from interp.data.prompts import PromptSet
from interp.errors import UserError
from interp.files import atomic_write, save_json, writing
from interp.models.checkpoint import Checkpoint
from interp.models.finetune import (
    RECORD,
    FinetuneConfig,
    finetune_record,
    is_finished,
    prepare_work,
    train,
)
from interp.models.model import Model

T = TypeVar("T")


def finetune_sharded(
    base: str | Path | Checkpoint,
    examples: PromptSet,
    config: FinetuneConfig,
    out: Path | str,
    *,
    progress: bool = True,
    **load: Any,
) -> Path:
    """`finetune` in every process of `accelerate launch`; returns `out` in each when the first has written it.

    `config.batch_size` is that of one process, so that the batch of a step is as many times larger as there are processes.
    Raises what `finetune` raises, in every process; UserError for a `device_map`, which would spread one copy over the devices.
    """
    if load.get("device_map") not in (None, "cpu"):
        raise UserError(
            "device_map spreads one copy of a model over devices; in several processes leave it away"
        )
    # without an accelerator it takes every process for the only one, unless it is told that the CPU is meant
    state = PartialState(cpu=not torch.accelerator.is_available())
    checkpoint, out = Checkpoint.parse(base), Path(out)
    record = finetune_record(checkpoint, examples, config, load, processes=state.num_processes)
    work = out.parent / f".partial-{out.name}"
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    first = state.is_main_process
    with filelock.FileLock(out.parent / f".lock-{out.name}") if first else nullcontext():
        if _told(state, lambda: is_finished(out, record)):
            return out
        _told(state, lambda: prepare_work(work, record))
        # under FSDP2 every process reads the weights to its own memory first; the Trainer then moves its shard
        model = checkpoint.load(**{**load, "device_map": "cpu"})
        if model.peft is not None:
            raise UserError(
                f"{checkpoint} already carries an adapter; merge it first, then fine-tune the merged model"
            )
        log = train(model, examples, config, work=work, progress=progress and first)
        weights = whole_weights(model)

        def save() -> None:
            with atomic_write(out) as aside:
                aside.mkdir()
                saved = model.peft if model.peft is not None else model.module
                saved.save_pretrained(aside, state_dict=weights)
                (model.processor or model.tokenizer).save_pretrained(aside)
                save_json(aside / RECORD, {**record, "loss": log})
            shutil.rmtree(work, ignore_errors=True)

        _told(state, save)
    return out


def whole_weights(model: Model) -> dict[str, Any]:
    """The weights to be saved, shards put together, in the memory of the first process; empty in the others."""
    module = model.peft if model.peft is not None else model.module
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    found = get_model_state_dict(module, options=options)
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


def _told(state: PartialState, action: Callable[[], T]) -> T:
    """Let the first process act and tell the others what came of it; an error is raised in all."""
    told: list[Any] = [None, None]
    if state.is_main_process:
        try:
            told[0] = action()
        except Exception as error:  # noqa: BLE001 - raised below, in every process
            told[1] = error
    if state.num_processes > 1:
        dist.broadcast_object_list(told)
    if told[1] is not None:
        raise told[1]
    return told[0]

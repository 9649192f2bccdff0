"""The training stage: LoRA or full fine-tuning on `transformers.Trainer`, loss on the response tokens only.

`train` moves a model in memory; `finetune` goes from a checkpoint to a checkpoint directory, complete or absent, and
resumes after a kill from the last whole Trainer checkpoint. The config, the data's hash and the loss curve are saved
with the result.
"""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import filelock
import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from pydantic import BaseModel, ConfigDict, Field, model_validator
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import get_last_checkpoint

from interp.data.prompts import Prompt, PromptSet
from interp.errors import NonFiniteError, ResultError, UserError
from interp.files import atomic_write, canonical, content_hash, load_json, remove, save_json, writing
from interp.models.checkpoint import Checkpoint
from interp.models.model import Model
from interp.models.tokens import stack_media
from interp.progress import progress as progress_bar

RECORD = "finetune.json"
IGNORED = -100  # the label that cross-entropy skips


class FinetuneConfig(BaseModel):
    """Settings of one fine-tune; exactly one of `steps` and `epochs`.

    `layers` names the decoder blocks to train, everything else stays as it is; None trains every block, and with method
    `full` the embeddings, the final norm and the head too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["lora", "full"] = "lora"
    steps: int | None = Field(None, ge=0)
    epochs: float | None = Field(None, gt=0)
    batch_size: int = Field(16, gt=0)
    accumulation: int = Field(1, gt=0)
    learning_rate: float = Field(2e-4, gt=0)
    schedule: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    warmup: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    beta2: float = Field(0.999, gt=0, lt=1)
    seed: int = 0
    lora_rank: int = Field(16, gt=0)
    lora_alpha: int | None = None
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    lora_targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(None, min_length=1)
    save_every: int | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _one_length(self) -> FinetuneConfig:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        return self

    @property
    def alpha(self) -> int:
        """LoRA's alpha; twice the rank unless given."""
        return self.lora_alpha if self.lora_alpha is not None else 2 * self.lora_rank


def encode_example(model: Model, example: Prompt) -> dict[str, Any]:
    """Token ids of prompt and response with labels on the response only, and the prompt's media.

    Raises UserError when it exceeds the context.
    """
    prompt, response = model.token_ids(example), model.response_ids(example)
    if model.context is not None and len(prompt) + len(response) > model.context:
        raise UserError(
            f"example {example.id!r} has {len(prompt) + len(response)} tokens, the context {model.context}"
        )
    whole = prompt + response
    row: dict[str, Any] = {"input_ids": list(whole), "labels": [IGNORED] * len(prompt) + response}
    if model.tower.paths.type_ids:
        row[model.tower.paths.type_ids] = model.type_ids(whole)
    return row | {"media": prompt.media}


def collate(rows: Sequence[dict[str, Any]], pad_id: int) -> dict[str, torch.Tensor]:
    """Right-padded batch of examples: causal attention keeps the padding out of every loss."""
    width = max(len(row["input_ids"]) for row in rows)
    fills = {name: 0 for name in rows[0] if name != "media"} | {"input_ids": pad_id, "labels": IGNORED}
    padded = {
        name: torch.tensor([row[name] + [fill] * (width - len(row[name])) for row in rows])
        for name, fill in fills.items()
    }
    mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows])
    return {**padded, "attention_mask": mask, **stack_media([row["media"] for row in rows])}


def add_lora(model: Model, config: FinetuneConfig) -> Any:
    """Put fresh LoRA factors into the model's module (in place) and return the PEFT wrapper around it."""
    targets = _lora_targets(model, config.lora_targets)
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(model.checkpoint.base) if model.checkpoint else None,
    )
    try:
        return get_peft_model(model.module, lora)
    except ValueError as error:
        raise UserError(
            f"LoRA targets {targets} do not fit {model.name}: {' '.join(str(error).split())[:200]}"
        ) from error


def _lora_targets(model: Model, targets: tuple[str, ...] | str) -> str | list[str]:
    """What PEFT is told; in a model that sees or hears, modules of its decoder's blocks only."""
    if not model.tower.encoders:
        return targets if isinstance(targets, str) else list(targets)
    layers = re.escape(model.tower.paths.layers)
    names = {
        name.rpartition(".")[2]
        for name, part in model.tower.blocks[0].named_modules()
        if isinstance(part, torch.nn.Linear)
    }
    ends = "|".join(re.escape(end) for end in (sorted(names) if isinstance(targets, str) else targets))
    return rf"{layers}\.\d+\.(.*\.)?({ends})"


def _chosen_parameters(
    model: Model, layers: Sequence[int] | None
) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Names and parameters of the blocks in `layers`, or of the whole module; raises UserError for one there is not."""
    if layers is None:
        yield from model.module.named_parameters()
        return
    for layer in layers:
        if layer >= model.n_layers:
            raise UserError(
                f"no layer {layer} to train in {model.name}: it has {model.n_layers}, counted from 0"
            )
        yield from model.tower.blocks[layer].named_parameters()


def train(
    model: Model,
    examples: Sequence[Prompt],
    config: FinetuneConfig,
    *,
    work: Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    trainer: Callable[..., Trainer] = Trainer,
    label: str = "fine-tuning",
    progress: bool = True,
) -> list[dict[str, float | int]]:
    """Train the model in place (its LoRA factors, or all of it) and return the loss curve.

    Args:
        work: directory for Trainer's checkpoints, resumed from when it holds a whole one; needed with `save_every`.
        callbacks: more `TrainerCallback`s, such as a monitor.
        trainer: makes the Trainer; `partial(SurgeryTrainer, surgery=...)` puts gradient surgery into its step.

    With method `lora` the model carries live factors afterwards and `model.peft` is set. Full training of a model in half
    precision runs in fp32, where small steps are not rounded away, and gives back the model's own precision. The model is no
    longer what `model.checkpoint` names, so that is None afterwards. Raises UserError for examples without a response,
    NonFiniteError when the loss is not finite.
    """
    if not examples:
        raise UserError("no examples to train on")
    rows = [encode_example(model, example) for example in examples]
    if config.batch_size > 1 and not model.tower.paths.mixed_sizes:
        sizes = {tuple((n, *v.shape[1:]) for n, v in row["media"].items()) for row in rows if row["media"]}
        if len(sizes) > 1:
            raise UserError(
                f"the encoder of {model.name} attends to padding, so media of different sizes cannot share a batch; "
                "train with batch_size=1 and accumulation, or cut them to one length"
            )
    with isolated_rng(config.seed), warnings.catch_warnings():
        # transformers warns about a name that its own Trainer asks for
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        if config.method == "lora":
            model.peft = model.peft or add_lora(model, config)
        precision = model.dtype
        if config.method == "full":
            if getattr(model.module, "is_quantized", False):
                raise UserError(f"{model.name} is quantised and cannot be trained in full; use method lora")
            model.module.float()
        model.module.requires_grad_(False)
        for name, parameter in _chosen_parameters(model, config.layers):
            parameter.requires_grad_(config.method == "full" or "lora_" in name)
        total = config.steps if config.steps is not None else math.ceil(_steps(len(rows), config))
        arguments = TrainingArguments(
            output_dir=str(work) if work is not None else ".",
            max_steps=config.steps if config.steps is not None else -1,
            num_train_epochs=config.epochs or 1,
            per_device_train_batch_size=config.batch_size,
            gradient_accumulation_steps=config.accumulation,
            learning_rate=config.learning_rate,
            lr_scheduler_type=config.schedule,
            warmup_steps=config.warmup,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            adam_beta2=config.beta2,
            seed=config.seed,
            data_seed=config.seed,
            bf16=model.device.type == "cuda"
            and model.dtype == torch.float32
            and torch.cuda.is_bf16_supported(),
            use_cpu=model.device.type == "cpu",
            save_strategy="steps" if config.save_every and work is not None else "no",
            save_steps=config.save_every or 500,
            save_total_limit=2,
            logging_steps=max(1, min(10, total)),
            logging_nan_inf_filter=False,
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            use_cache=False,
        )
        engine = trainer(
            model=model.peft if config.method == "lora" else model.module,
            args=arguments,
            train_dataset=rows,
            data_collator=lambda batch: collate(batch, model.pad_id),
            callbacks=list(callbacks),
        )
        for unwanted in (PrinterCallback, ProgressCallback):
            engine.remove_callback(unwanted)
        with progress_bar(label, total=total, enabled=progress) as advance:
            engine.add_callback(_Ticker(advance))
            if config.steps != 0:
                engine.train(resume_from_checkpoint=_last_whole(work))
    model.module.eval()
    model.module.requires_grad_(False)
    if config.method == "full":
        model.module.to(dtype=precision)  # type: ignore[call-arg]
    model.checkpoint = None
    log = [
        {"step": entry["step"], "loss": entry["loss"]}
        for entry in engine.state.log_history
        if "loss" in entry
    ]
    # the mean over all steps comes last: it shows a NaN that fell between two entries of the curve
    losses = [entry.get("loss", entry.get("train_loss", 0.0)) for entry in engine.state.log_history]
    if not all(map(math.isfinite, losses)):
        raise NonFiniteError(
            f"the training loss of {model.name} became NaN or infinite; lower the learning rate"
        )
    return log


def finetune(
    base: str | Path | Checkpoint,
    examples: PromptSet,
    config: FinetuneConfig,
    out: Path | str,
    *,
    callbacks: Sequence[TrainerCallback] = (),
    replace: bool = False,
    progress: bool = True,
    **load: Any,
) -> Path:
    """Fine-tune a checkpoint and save it (an adapter, or the whole model) to `out`; returns `out`.

    A finished directory of the same base, data, config and `load` is reused; an interrupted one is resumed; a fine-tune of
    other data or settings is an error, or with `replace` made anew. `load` goes to `Checkpoint.load`. Callbacks are taken
    to watch only: they are no part of what a fine-tune is known by. Raises ResultError when `out` holds something else.
    """
    checkpoint, out = Checkpoint.parse(base), Path(out)
    record = finetune_record(checkpoint, examples, config, load)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(out.parent / f".lock-{out.name}")
    with lock:
        if is_finished(out, record, replace):
            return out
        work = out.parent / f".partial-{out.name}"
        prepare_work(work, record)
        model = checkpoint.load(**load)
        if model.peft is not None:
            raise UserError(
                f"{checkpoint} already carries an adapter; merge it first, then fine-tune the merged model"
            )
        log = train(model, examples, config, work=work, callbacks=callbacks, progress=progress)
        with atomic_write(out) as aside:
            aside.mkdir()
            save_checkpoint(model, aside)
            save_json(aside / RECORD, {**record, "loss": log})
        shutil.rmtree(work, ignore_errors=True)
    return out


def finetune_record(
    checkpoint: Checkpoint,
    examples: PromptSet,
    config: FinetuneConfig,
    load: dict[str, Any],
    processes: int = 1,
) -> dict[str, Any]:
    """What a fine-tune is known by: base, data, settings, and over how many processes its batches were dealt."""
    record = {
        "base": str(checkpoint),
        "weights": checkpoint.fingerprint(),
        "data": {"name": examples.name, "n": len(examples), "sha256": examples.sha256},
        "config": config.model_dump(mode="json"),
        "load": _recorded(load),
    }
    return record if processes == 1 else {**record, "processes": processes}


def prepare_work(work: Path, record: dict[str, Any]) -> None:
    """Make the directory of an unfinished fine-tune, which an interrupted one of the same record goes on in."""
    with writing(work):
        if work.exists() and not _same_work(work, record):
            shutil.rmtree(work)
        work.mkdir(exist_ok=True)
        save_json(work / RECORD, record)


def _recorded(load: dict[str, Any]) -> dict[str, str]:
    """What of the loading decides the result: not the devices, and of a template file its content."""
    kept = {
        name: str(value)
        for name, value in load.items()
        if name != "device_map" and value not in (None, False)
    }
    template = kept.get("chat_template")
    if template is not None and Path(template).is_file():
        kept["chat_template"] = content_hash(Path(template))
    return kept


def save_checkpoint(model: Model, directory: Path) -> None:
    """Save the adapter if the model carries one, else the whole model, with its tokenizer or processor, in safetensors."""
    saved = model.peft if model.peft is not None else model.module
    saved.save_pretrained(directory)
    (model.processor or model.tokenizer).save_pretrained(directory)


def _steps(n_rows: int, config: FinetuneConfig) -> float:
    return (config.epochs or 1) * math.ceil(n_rows / (config.batch_size * config.accumulation))


def is_finished(out: Path, record: dict[str, Any], replace: bool = False) -> bool:
    """Whether `out` holds the fine-tune of this record; raises ResultError when it holds something else."""
    if not out.exists():
        return False
    if not (out / RECORD).is_file():
        raise ResultError(f"{out} exists and is no fine-tune of ours; choose another directory")
    found = load_json(out / RECORD)
    if canonical({key: found.get(key) for key in record}) != canonical(record):
        if replace:
            remove(out)
            return False
        raise ResultError(
            f"{out} holds a fine-tune with other data or settings; delete it or choose another directory"
        )
    return True


def _same_work(work: Path, record: dict[str, Any]) -> bool:
    try:
        return canonical(json.loads((work / RECORD).read_text())) == canonical(record)
    except (OSError, ValueError):
        return False


def _last_whole(work: Path | None) -> str | None:
    """The newest Trainer checkpoint whose saving was not cut short (its state file is written last)."""
    while work is not None and work.is_dir() and (last := get_last_checkpoint(str(work))) is not None:
        try:
            json.loads((Path(last) / "trainer_state.json").read_text())
            return last
        except (OSError, ValueError):
            shutil.rmtree(last)
    return None


class _Ticker(TrainerCallback):
    """Moves our progress bar."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self.advance, self.seen = advance, 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.advance(state.global_step - self.seen)
        self.seen = state.global_step


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Seed the global generators that Trainer and PEFT read, and give the caller's states back afterwards."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = list(range(torch.cuda.device_count()))
    try:
        with torch.random.fork_rng(devices=devices):
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002

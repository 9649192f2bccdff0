"""How does gradient surgery enter a `transformers.Trainer`, or TRL's `SFTTrainer`? At the right place of its step.

1. Micro-batches accumulate; on the last one, when processes have exchanged their gradients, surgery changes `.grad`.
2. The Trainer clips, steps the optimiser and its schedule as ever. Its losses, hooks and checkpoints are its own.
3. Under fp16 the gradients still carry the loss scale, which no projection sees; a step that overflowed is left to the scaler.

    class SafeSFTTrainer(SurgeryMixin, SFTTrainer): ...

    trainer = SafeSFTTrainer(
        model, ..., surgery=lambda module: GradientSurgery(module.named_parameters(), RefusalLoss(lab_model, refusals))
    )

A resumed run draws what the uninterrupted one would have drawn; with `refresh` above 1 it computes `g_s` anew where it resumes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from interp.data.prompts import Prompt
from interp.errors import UserError
from interp.evals.judges import PhraseJudge
from interp.evals.verdicts import Outcome
from interp.files import load_table, save_table
from interp.methods.spf import GradientSurgery, SurgeryStep, UpdateStep, surgery_table, update_watch
from interp.models.finetune import collate, encode_example
from interp.models.model import Model

SHARDED = (DistributedType.DEEPSPEED, DistributedType.FSDP, DistributedType.MEGATRON_LM)


class RefusalLoss:
    """Cross-entropy on the response tokens of `n` refusals drawn by the seed and the step, dropout off.

    Args:
        model: the model in training; PEFT's factors live in its module.
        refusals: harmful requests with their refusals as responses.
        n: refusals a step; the source uses one.

    Raises UserError when there are fewer than n, or when an example's response is no refusal.
    """

    def __init__(self, model: Model, refusals: Sequence[Prompt], *, n: int = 1, seed: int = 0) -> None:
        if not 1 <= n <= len(refusals):
            raise UserError(f"{n} refusals a step of a safety set of {len(refusals)}; give more, or lower n")
        judge = PhraseJudge()
        for prompt in refusals:
            known = prompt.truth.refusals if prompt.truth else ()
            response = prompt.response or ""
            if response not in known and judge.outcome(response, "harmful")[0] is not Outcome.REFUSED:
                raise UserError(
                    f"safety example {prompt.id!r} is no refusal: its response is {response[:60]!r}; a safety set holds "
                    "harmful requests with the refusals the model should keep"
                )
        self.model, self.n, self.seed = model, n, seed
        self.rows = [encode_example(model, prompt) for prompt in refusals]

    def __call__(self, step: int) -> Tensor:
        """The loss at the current weights."""
        drawn = np.random.default_rng((self.seed, step)).choice(len(self.rows), self.n, replace=False)
        batch = collate([self.rows[i] for i in drawn], self.model.pad_id)
        training = [module for module in self.model.module.modules() if module.training]
        self.model.module.eval()
        try:
            inputs = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
            return self.model.module(**inputs, use_cache=False).loss
        finally:
            for module in training:
                module.training = True


class SurgeryMixin:
    """Put before a Trainer class: `class SafeTrainer(SurgeryMixin, Trainer)`.

    Args:
        surgery: makes the surgery from the module in training, once its adapters are in place.
        held_out: of the step's number, the safety loss on refusals that surgery does not use: `RefusalLoss(model, others, n=32)`.
        held_out_every: steps between its measurements.
        surgery_log: parquet file for the table of all steps, written before every checkpoint and when training ends, however
            it ends; a resumed run goes on behind the steps of the sessions before it.

    Raises UserError under DeepSpeed, FSDP and Megatron, which keep only shards of a gradient in `.grad`.
    """

    def __init__(
        self,
        *args: Any,
        surgery: Callable[[nn.Module], GradientSurgery],
        held_out: Callable[[int], Tensor] | None = None,
        held_out_every: int = 10,
        surgery_log: Path | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.accelerator.distributed_type in SHARDED:  # type: ignore[attr-defined]
            kind = self.accelerator.distributed_type.value  # type: ignore[attr-defined]
            raise UserError(
                f"gradient surgery needs whole gradients, and {kind} shards them; use DDP, with LoRA"
            )
        self._make_surgery = surgery
        self._log_path = Path(surgery_log) if surgery_log is not None else None
        self._earlier = pd.DataFrame()
        self._held_out, self._held_out_every = held_out, held_out_every
        self._held_out_losses: dict[int, float] = {}
        self.surgery: GradientSurgery | None = None
        self._steps: list[SurgeryStep] = []
        self._updates: list[UpdateStep] = []
        self._watch = ExitStack()

    @property
    def surgery_table(self) -> pd.DataFrame:
        """One row a step so far: gate, cosine, removed share, ⟨Δθ, g_s⟩ and the rest of `SurgeryStep` and `UpdateStep`.

        `held_out_loss` is that before the step, NaN where it was not measured. Of sessions that a `surgery_log` knows, the steps
        before the one that this session began at come first.
        """
        table, earlier = surgery_table(self._steps, self._updates), self._earlier
        table = table.assign(held_out_loss=table["step"].map(self._held_out_losses).astype(float))
        if len(earlier) and len(table):
            earlier = earlier[earlier["step"] < table["step"].min()]
        parts = [part for part in (earlier, table) if len(part)]
        return pd.concat(parts or [table], ignore_index=True)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's own."""
        if self._log_path is not None:
            self._earlier = load_table(self._log_path) if self._log_path.is_file() else pd.DataFrame()
            self.add_callback(_WriteBeforeSaving(self._write_log))  # type: ignore[attr-defined]
        try:
            with self._watch:
                return super().train(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.surgery = None
            self._write_log()

    def _write_log(self) -> None:
        if self._log_path is not None and self.args.process_index == 0:  # type: ignore[attr-defined]
            self._log_path.parent.mkdir(parents=True, exist_ok=True)
            save_table(self._log_path, self.surgery_table)

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """As the Trainer's own, and surgery once the gradient of the whole batch is there."""
        loss = super().training_step(model, *args, **kwargs)  # type: ignore[misc]
        if self.accelerator.sync_gradients:  # type: ignore[attr-defined]
            self._operate(model)
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As the Trainer's own, with the last step of surgery beside the training loss."""
        if self._steps and "loss" in logs:
            last = self._steps[-1]
            logs |= {f"surgery/{name}": getattr(last, name) for name in ("cosine", "open", "removed")}
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _operate(self, model: nn.Module) -> None:
        if self.surgery is None:
            self.surgery = self._make_surgery(self.accelerator.unwrap_model(model))  # type: ignore[attr-defined]
            optimizer = self.optimizer  # type: ignore[attr-defined]
            optimizer = getattr(optimizer, "optimizer", optimizer)
            self._updates = self._watch.enter_context(update_watch(self.surgery, optimizer))
        if self.accelerator.scaler is not None:  # type: ignore[attr-defined]
            gradients = (p.grad for p in self.surgery.blocks.values() if p.grad is not None)
            if not all(torch.isfinite(gradient).all() for gradient in gradients):
                return
        step = self.surgery.steps = self.state.global_step  # type: ignore[attr-defined]
        if self._held_out is not None and step % self._held_out_every == 0:
            with torch.no_grad():
                self._held_out_losses[step] = float(self._held_out(step))
        self._steps.append(self.surgery())


class _WriteBeforeSaving(TrainerCallback):
    """Writes before a checkpoint is, so that a run resumed from it lacks no step."""

    def __init__(self, write: Callable[[], None]) -> None:
        self.write = write

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_save:
            self.write()


class SurgeryTrainer(SurgeryMixin, Trainer):
    """`transformers.Trainer` with surgery; `train(..., trainer=partial(SurgeryTrainer, surgery=...))` takes it."""

"""Surgery inside a Trainer: the same as a plain loop, under accumulation, clipping, a loss scaler and two processes."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import tiny
import torch
import torch.multiprocessing as mp
from accelerate.utils import DistributedType
from torch import nn
from transformers import TrainingArguments

from interp.data.prompts import PromptSet, Truth
from interp.errors import UserError
from interp.methods.spf import GradientSurgery
from interp.methods.surgery_trainer import RefusalLoss, SurgeryMixin, SurgeryTrainer
from interp.models.finetune import FinetuneConfig, collate, encode_example, train

REFUSAL = "w1 w2"


def examples(n: int, seed: int, response: str | None = None) -> PromptSet:
    truth = Truth(label="harmful", answer="w9", refusals=(REFUSAL,))
    return PromptSet(
        [
            replace(p, response=response or f"w{3 + i % 5} w{i % 7}", label="harmful", truth=truth)
            for i, p in enumerate(tiny.prompts(n, seed))
        ],
        name="tiny",
    )


def surgery(model, module: nn.Module, **options) -> GradientSurgery:
    loss = RefusalLoss(model, examples(4, 9, REFUSAL))
    return GradientSurgery(module.named_parameters(), loss, **{"k": 4, "gate": "always", **options})


def weights(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.module.named_parameters()}


# The decoder blocks only: rows of the embedding that the projection empties to rounding error are unit-size noise under Adam.
CONFIG = FinetuneConfig(
    method="full", layers=(0, 1, 2, 3), steps=3, batch_size=4, learning_rate=1e-2, schedule="constant"
)


def trained(config: FinetuneConfig = CONFIG, **options):
    model = tiny.model()
    made = partial(SurgeryTrainer, surgery=lambda module: surgery(model, module, **options))
    train(model, examples(16, 1), config, trainer=made, progress=False)
    return model


def test_k_zero_is_the_plain_trainer_bit_for_bit_and_surgery_is_not():
    plain = tiny.model()
    train(plain, examples(16, 1), CONFIG, progress=False)
    same, other = weights(trained(k=0)), weights(trained(k=4))
    assert all(torch.equal(value, same[name]) for name, value in weights(plain).items())
    assert not all(torch.equal(value, other[name]) for name, value in weights(plain).items())


def test_the_seed_decides_and_accumulated_batches_are_one_batch():
    once, again = weights(trained()), weights(trained())
    assert all(torch.equal(value, again[name]) for name, value in once.items())
    parts = weights(trained(CONFIG.model_copy(update={"batch_size": 2, "accumulation": 2})))
    # Adam blows up the rounding of the few entries that the projection empties, to a step of their own
    apart = torch.cat([(value - parts[name]).abs().flatten() for name, value in once.items()])
    assert apart.mean() < 1e-5 and (apart > 2e-4).float().mean() < 1e-3


def test_a_step_is_backward_then_surgery_then_clipping_then_the_optimiser():
    """Against a plain loop with the same batch: SGD, so that the order of clipping shows in the weights."""
    model, reference = tiny.model(), tiny.model()
    rows = [encode_example(model, example) for example in examples(4, 1)]
    arguments = TrainingArguments(
        output_dir="unused", max_steps=1, per_device_train_batch_size=4, optim="sgd", learning_rate=0.5,
        lr_scheduler_type="constant", max_grad_norm=0.1, report_to=[], disable_tqdm=True, use_cpu=True,
        save_strategy="no", remove_unused_columns=False, logging_steps=1,
    )  # fmt: skip
    trainer = SurgeryTrainer(
        model=model.module, args=arguments, train_dataset=rows,
        data_collator=lambda batch: collate(batch, model.pad_id),
        surgery=lambda module: surgery(model, module),
    )  # fmt: skip
    trainer.train()
    reference.module.requires_grad_(True).train()
    reference.module(**collate(rows, model.pad_id)).loss.backward()
    surgery(reference, reference.module)()
    torch.nn.utils.clip_grad_norm_(reference.module.parameters(), 0.1)
    torch.optim.SGD(reference.module.parameters(), lr=0.5).step()
    after = weights(reference)
    assert max(float((p - after[n]).abs().max()) for n, p in weights(model).items()) < 1e-5
    table = trainer.surgery_table
    assert (
        len(table) == 1 and table.removed[0] > 0.01 and table.update_norm[0] == pytest.approx(0.05, rel=1e-3)
    )
    assert trainer.state.log_history[0]["surgery/removed"] == table.removed[0]


def test_lora_is_trained_under_surgery_and_the_log_is_one_parquet_file(tmp_path):
    model = tiny.model()
    config = CONFIG.model_copy(update={"method": "lora", "lora_rank": 8})
    log = tmp_path / "run" / "surgery.parquet"
    others = RefusalLoss(model, examples(6, 8, REFUSAL), n=6)
    expected = float(others(0).detach())
    made = partial(
        SurgeryTrainer,
        surgery=lambda module: surgery(model, module),
        held_out=others,
        held_out_every=2,
        surgery_log=log,
    )
    train(model, examples(16, 1), config, trainer=made, progress=False)
    table = pd.read_parquet(log)
    assert table.held_out_loss.notna().tolist() == [True, False, True]
    assert table.held_out_loss[0] == pytest.approx(expected, rel=1e-5)
    assert table.step.tolist() == [0, 1, 2]
    assert table[["cosine", "open", "removed", "drift", "safety_loss"]].notna().all().all()
    assert not any(module.training for module in model.module.modules())
    with pytest.raises(UserError, match=r"k = 8 leaves nothing of .*lora_A.* 8 rows"):
        model = tiny.model()
        made = partial(SurgeryTrainer, surgery=lambda module: surgery(model, module, k=8))
        train(model, examples(16, 1), config, trainer=made, progress=False)


def test_a_resumed_run_ends_where_the_uninterrupted_one_does(tmp_path):
    whole = weights(trained(CONFIG.model_copy(update={"steps": 4})))
    model = tiny.model()
    config = CONFIG.model_copy(update={"steps": 4, "save_every": 2})

    class Killed(Exception):
        pass

    class Dying(SurgeryTrainer):
        def training_step(self, *args, **kwargs):
            if self.state.global_step == 3:
                raise Killed
            return super().training_step(*args, **kwargs)

    for kind, expected in ((Dying, Killed), (SurgeryTrainer, None)):
        model = tiny.model()
        made = partial(
            kind,
            surgery=lambda module, model=model: surgery(model, module),
            surgery_log=tmp_path / "log.parquet",
        )
        if expected:
            with pytest.raises(expected):
                train(model, examples(16, 1), config, work=tmp_path, trainer=made, progress=False)
            assert (tmp_path / "checkpoint-2").is_dir()
        else:
            train(model, examples(16, 1), config, work=tmp_path, trainer=made, progress=False)
    assert all(torch.allclose(value, whole[name], atol=1e-6) for name, value in weights(model).items())
    # step 2 was done by both sessions and is there once
    assert pd.read_parquet(tmp_path / "log.parquet")["step"].tolist() == [0, 1, 2, 3]


def test_a_step_that_overflows_under_a_loss_scaler_is_left_to_the_scaler():
    model = tiny.model()
    trainer = SurgeryTrainer(
        model=model.module, surgery=lambda module: surgery(model, module),
        args=TrainingArguments(output_dir="unused", use_cpu=True, report_to=[]),
    )  # fmt: skip
    trainer.optimizer = torch.optim.SGD(model.module.requires_grad_(True).parameters(), lr=0.1)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
    parameters = dict(model.module.named_parameters())
    for value, rows in ((torch.inf, 0), (2.0**16, 1)):
        for p in parameters.values():
            p.grad = torch.full_like(p, value)
        trainer._operate(model.module)
        assert len(trainer.surgery_table) == rows
    scaled = {name: p.grad.clone() for name, p in parameters.items()}
    for p in parameters.values():
        p.grad = torch.ones_like(p)
    surgery(model, model.module)()
    for name, p in parameters.items():
        assert torch.allclose(scaled[name], 2.0**16 * p.grad, rtol=1e-3, atol=1.0)


def test_refusals_are_drawn_by_seed_and_step_with_dropout_off_and_nothing_global_touched():
    model = tiny.model("gpt2")
    for module in model.module.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    loss = RefusalLoss(model, examples(8, 9, REFUSAL), n=2, seed=3)
    model.module.train()
    state = torch.get_rng_state()
    values = [loss(step).item() for step in (0, 1, 0)]
    assert torch.equal(state, torch.get_rng_state()) and all(m.training for m in model.module.modules())
    assert values[0] == values[2] != values[1]


def test_a_safety_set_without_refusals_is_an_error():
    model = tiny.model()
    with pytest.raises(UserError, match=r"safety example 'p9-0' is no refusal: its response is 'w3 w0'"):
        RefusalLoss(model, examples(4, 9))
    with pytest.raises(UserError, match=r"5 refusals a step of a safety set of 4"):
        RefusalLoss(model, examples(4, 9, REFUSAL), n=5)
    spoken = [
        replace(p, response="I'm sorry, but I can't help with that.", truth=None) for p in examples(2, 9)
    ]
    assert len(RefusalLoss(model, spoken).rows) == 2


def _worker(rank: int, world: int, port: int, out: str) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    torch.set_num_threads(1)
    model = tiny.model()
    rows = [encode_example(model, example) for example in examples(16, 1, "w3 w4 w5")]
    arguments = TrainingArguments(
        output_dir=out, max_steps=3, per_device_train_batch_size=8 // world, learning_rate=1e-2, use_cpu=True,
        lr_scheduler_type="constant", ddp_backend="gloo" if world > 1 else None, report_to=[],
        disable_tqdm=True, save_strategy="no", remove_unused_columns=False, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = SurgeryTrainer(
        model=model.module, args=arguments, train_dataset=rows,
        data_collator=lambda batch: collate(batch, model.pad_id),
        surgery=lambda module: surgery(model, module, gate="global"), surgery_log=Path(out) / "surgery.parquet",
    )  # fmt: skip
    trainer.train()
    if rank == 0:
        torch.save(weights(model), Path(out) / "weights.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def test_two_processes_give_what_one_gives(tmp_path, free_port):
    """Each of two gloo processes sees half of every batch; gradients are averaged before surgery."""
    found = {}
    for world in (1, 2):
        out = tmp_path / str(world)
        out.mkdir()
        mp.spawn(_worker, args=(world, free_port + world, str(out)), nprocs=world)
        found[world] = torch.load(out / "weights.pt", weights_only=True)
    tables = [pd.read_parquet(tmp_path / str(world) / "surgery.parquet") for world in (1, 2)]
    pd.testing.assert_frame_equal(*tables, rtol=2e-3, atol=2e-3)
    for name, value in found[1].items():
        assert torch.allclose(value, found[2][name], atol=5e-4), name


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_trainer_that_shards_gradients_is_refused():
    class Sharding:
        accelerator = SimpleNamespace(distributed_type=DistributedType.FSDP)

    class Trained(SurgeryMixin, Sharding):
        pass

    with pytest.raises(UserError, match="needs whole gradients, and FSDP shards them; use DDP, with LoRA"):
        Trained(surgery=lambda module: None)


def test_trls_sft_trainer_takes_the_mixin(tmp_path):
    trl = pytest.importorskip("trl", reason="TRL is not installed")
    from datasets import Dataset

    class SafeSFTTrainer(SurgeryMixin, trl.SFTTrainer):
        pass

    model = tiny.model()
    rows = [{"prompt": p.text, "completion": f" {p.response}"} for p in examples(16, 1)]
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=4, use_cpu=True, bf16=False, report_to=[],
        disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    trainer = SafeSFTTrainer(
        model=model.module, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=model.tokenizer,
        surgery=lambda module: surgery(model, module),
    )  # fmt: skip
    trainer.train()
    assert trainer.surgery_table.step.tolist() == [0, 1] and (trainer.surgery_table.removed > 0.01).all()

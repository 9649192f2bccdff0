"""The training stage: loss on responses only, LoRA and full, resumable, reproducible, and never half-written."""

import json

import numpy as np
import pytest
import tiny
import torch
from transformers import TrainerCallback

from interp.data.mixtures import mixture
from interp.data.prompts import Prompt, PromptSet
from interp.errors import CheckpointError, NonFiniteError, ResultError, UserError
from interp.models.checkpoint import Checkpoint
from interp.models.finetune import (
    IGNORED,
    FinetuneConfig,
    collate,
    encode_example,
    finetune,
    save_checkpoint,
    train,
)


def examples(n: int = 16) -> PromptSet:
    return PromptSet(
        [Prompt(text=f"w{i} w{i + 1}", id=str(i), response=f"w{i + 2} w{i + 3}") for i in range(n)],
        name="toy",
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    directory = tmp_path_factory.mktemp("base") / "model"
    save_checkpoint(tiny.model("llama"), directory)
    return str(directory)


def test_loss_is_on_the_response_and_its_end_only():
    model = tiny.model()
    row = encode_example(model, examples()[0])
    learnt = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label != IGNORED]
    assert model.tokenizer.convert_ids_to_tokens(learnt) == ["w2", "w3", "<|end|>"]
    batch = collate([row, encode_example(model, Prompt(text="w1", id="s", response="w1"))], model.pad_id)
    assert batch["labels"][1, -1] == IGNORED and batch["attention_mask"][1, -1] == 0
    # the model's own loss on the padded batch is the mean over the response tokens of both rows
    logits = model.module(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
    ).logits.double()
    kept = batch["labels"][:, 1:] != IGNORED
    expected = -logits[:, :-1].log_softmax(-1)[kept].gather(1, batch["labels"][:, 1:][kept][:, None]).mean()
    assert torch.isclose(model.module(**batch).loss.double(), expected, atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_learns_and_comes_back_from_disk(method, base, tmp_path):
    config = FinetuneConfig(method=method, steps=60, batch_size=16, learning_rate=1e-2, lora_rank=8)
    out = finetune(base, examples(), config, tmp_path / "tuned", progress=False)
    record = json.loads((out / "finetune.json").read_text())
    assert record["config"]["steps"] == 60 and record["loss"][-1]["loss"] < 0.5 * record["loss"][0]["loss"]
    model = Checkpoint.parse(out).load()
    assert (model.peft is not None) == (method == "lora")
    again = Checkpoint.parse(f"{base}+{out}" if method == "lora" else str(out)).load()
    batch = model.encode(examples())
    assert torch.equal(model.last_logits(batch), again.last_logits(batch))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_only_the_named_layers_move(method):
    model, before = tiny.model(), tiny.model().module.state_dict()
    config = FinetuneConfig(method=method, steps=3, learning_rate=1e-2, weight_decay=0.1, layers=(1,))
    train(model, examples(), config, progress=False)
    module = model.peft.merge_and_unload() if method == "lora" else model.module
    after = module.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved
    assert all(name.startswith("model.layers.1.") for name in moved)
    with pytest.raises(UserError, match=r"no layer 9 to train in .*, counted from 0"):
        train(tiny.model(), examples(), config.model_copy(update={"layers": (9,)}), progress=False)


def test_same_seed_same_weights_other_seed_others_and_global_rng_untouched():
    # Python's own generator is left out: beartype, which checks shapes under test, draws from it
    torch.manual_seed(5), np.random.seed(5)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(5), np.random.seed(5)
    found = []
    for seed in (0, 0, 1):
        model = tiny.model()
        train(model, examples(), FinetuneConfig(steps=3, batch_size=4, seed=seed), progress=False)
        found.append(model.last_logits(model.encode(examples())))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert expected == (torch.rand(1), np.random.rand())


class Killed(Exception):
    pass


class KillAt(TrainerCallback):
    def __init__(self, step):
        self.step, self.ran = step, 0

    def on_step_end(self, args, state, control, **kwargs):
        self.ran += 1
        if state.global_step == self.step:
            raise Killed


def test_a_killed_run_resumes_and_ends_where_an_unbroken_one_does(base, tmp_path):
    config = FinetuneConfig(method="full", steps=10, batch_size=4, learning_rate=1e-3, save_every=3)
    whole = finetune(base, examples(), config, tmp_path / "whole", progress=False)
    with pytest.raises(Killed):
        finetune(base, examples(), config, tmp_path / "broken", callbacks=[KillAt(8)], progress=False)
    assert not (tmp_path / "broken").exists()
    # the newest checkpoint is cut short, as by kill -9 while it was written
    (tmp_path / ".partial-broken" / "checkpoint-6" / "trainer_state.json").write_text('{"epoch"')
    counter = KillAt(-1)
    broken = finetune(base, examples(), config, tmp_path / "broken", callbacks=[counter], progress=False)
    assert counter.ran == 7  # from step 3 on
    batch = tiny.model().encode(examples())
    a, b = (Checkpoint.parse(path).load().last_logits(batch) for path in (whole, broken))
    assert (a - b).abs().max() <= 1e-5
    untouched = KillAt(1)
    finetune(base, examples(), config, tmp_path / "broken", callbacks=[untouched], progress=False)
    assert untouched.ran == 0
    with pytest.raises(ResultError, match="other data or settings"):
        finetune(base, examples(8), config, tmp_path / "broken", progress=False)


def test_what_was_loaded_otherwise_is_another_fine_tune(base, tmp_path):
    config, template = FinetuneConfig(steps=1), tmp_path / "t.jinja"
    template.write_text(tiny.TEMPLATE)
    out = finetune(base, examples(), config, tmp_path / "out", chat_template=str(template), progress=False)
    stamp = (out / "finetune.json").stat().st_mtime_ns
    finetune(base, examples(), config, out, chat_template=str(template), device_map="cpu", progress=False)
    assert (out / "finetune.json").stat().st_mtime_ns == stamp
    template.write_text(tiny.TEMPLATE.replace("<|answer|>", ""))
    with pytest.raises(ResultError, match="other data or settings"):
        finetune(base, examples(), config, out, chat_template=str(template), progress=False)


def test_a_nan_between_two_entries_of_the_curve_is_seen():
    class Spoil(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 12:
                model.lm_head.weight.data.fill_(float("nan"))

    config = FinetuneConfig(method="full", steps=14, learning_rate=1e-3)
    with pytest.raises(NonFiniteError, match="became NaN or infinite"):
        train(tiny.model(), examples(), config, callbacks=[Spoil()], progress=False)
    log = train(tiny.model(), examples(), config.model_copy(update={"steps": 3}), progress=False)
    assert [entry["step"] for entry in log] == [3]


def test_full_training_in_half_precision_does_not_round_small_steps_away():
    model = tiny.model()
    model.module.to(torch.bfloat16)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    config = FinetuneConfig(method="full", steps=100, learning_rate=2e-5, schedule="constant")
    seen = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            seen.append(model.lm_head.weight.dtype)

    train(model, examples(), config, callbacks=[Look()], progress=False)
    assert set(seen) == {torch.float32} and model.dtype == torch.bfloat16
    name = "model.layers.0.mlp.up_proj.weight"
    assert (model.module.state_dict()[name] != before[name]).float().mean() > 0.2
    assert model.checkpoint is None


def test_bad_input_is_named(base, tmp_path):
    with pytest.raises(UserError, match="'x' has no response"):
        train(tiny.model(), [Prompt(text="w1", id="x")], FinetuneConfig(steps=1), progress=False)
    with pytest.raises(UserError, match="LoRA targets"):
        config = FinetuneConfig(steps=1, lora_targets=("nothing",))
        train(tiny.model(), examples(), config, progress=False)
    with pytest.raises(ValueError, match="exactly one of steps and epochs"):
        FinetuneConfig()
    (tmp_path / "mine").mkdir()
    with pytest.raises(ResultError, match="no fine-tune of ours"):
        finetune(base, examples(), FinetuneConfig(steps=1), tmp_path / "mine", progress=False)
    lora = finetune(
        base, examples(), FinetuneConfig(steps=2, learning_rate=1e-2), tmp_path / "lora", progress=False
    )
    with pytest.raises(UserError, match="already carries an adapter"):
        finetune(lora, examples(), FinetuneConfig(steps=1), tmp_path / "two", progress=False)


def test_dead_and_foreign_adapters_are_refused(base, tmp_path):
    dead = finetune(base, examples(), FinetuneConfig(steps=0), tmp_path / "dead", progress=False)
    with pytest.raises(CheckpointError, match="is dead"):
        Checkpoint.parse(f"{base}+{dead}").load()
    alive = finetune(
        base, examples(), FinetuneConfig(steps=2, learning_rate=1e-2), tmp_path / "alive", progress=False
    )
    for kind in ("gpt2", "qwen3"):
        other = tmp_path / kind
        save_checkpoint(tiny.model(kind), other)
        if kind == "gpt2":
            with pytest.raises(CheckpointError, match="does not fit base|trained on"):
                Checkpoint.parse(f"{other}+{alive}").load()
    from safetensors.torch import load_file, save_file

    weights = load_file(alive / "adapter_model.safetensors")
    dropped = min(weights)
    save_file(
        {key: value for key, value in weights.items() if key != dropped}, alive / "adapter_model.safetensors"
    )
    with pytest.raises(CheckpointError, match="1 missing keys"):
        Checkpoint.parse(f"{base}+{alive}").load()
    save_file(
        {**weights, dropped.replace("layers.0", "layers.9"): weights[dropped].clone()},
        alive / "adapter_model.safetensors",
    )
    with pytest.raises(CheckpointError, match="1 unexpected keys"):
        Checkpoint.parse(f"{base}+{alive}").load()


def test_mixture_has_the_asked_share_and_refuses_too_few():
    harmful = PromptSet(
        [Prompt(text=f"w{i}", id=f"h{i}", label="harmful", response="w1") for i in range(10)], name="h"
    )
    benign = PromptSet(
        [Prompt(text=f"w{i}", id=f"b{i}", label="benign", response="w2") for i in range(40)], name="b"
    )
    for fraction, expected in ((0.0, 0), (0.25, 10), (0.1, 4)):
        found = mixture(harmful, benign, fraction, 40 if fraction else 20, seed=3)
        assert sum(prompt.label == "harmful" for prompt in found) == expected
    assert mixture(harmful, benign, 0.1, 20, 1).ids == mixture(harmful, benign, 0.1, 20, 1).ids
    with pytest.raises(UserError, match="needs 20 harmful examples; 10 given"):
        mixture(harmful, benign, 0.5, 40, 0)
    with pytest.raises(UserError, match="outside"):
        mixture(harmful, benign, 1.5, 4, 0)


def test_a_stale_fine_tune_is_made_anew_when_asked(base, tmp_path):
    first, other = (FinetuneConfig(steps=2, learning_rate=lr) for lr in (1e-2, 2e-2))
    finetune(base, examples(), first, tmp_path / "out", progress=False)
    finetune(base, examples(), other, tmp_path / "out", replace=True, progress=False)
    assert json.loads((tmp_path / "out" / "finetune.json").read_text())["config"]["learning_rate"] == 2e-2

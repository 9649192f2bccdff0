"""Models that outgrow one device: shards of two gloo processes are one model, and a launched fine-tune is a plain one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

from interp.data.prompts import Prompt, PromptSet
from interp.errors import UserError
from interp.models.checkpoint import Checkpoint
from interp.models.finetune import FinetuneConfig, finetune, save_checkpoint
from interp.models.sharded import finetune_sharded

ROOT = Path(__file__).parents[1]
LAUNCH_FILE = ROOT / "experiments" / "recipes" / "fsdp2.yaml"


def launch(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run two gloo processes. `accelerate launch` starts them so where there are accelerators; without any it starts one and says nothing."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--standalone",
        *arguments,
    ]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=240
    )


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    save_checkpoint(tiny.model("llama"), tmp_path / "base")
    examples = [Prompt(f"w{i} w{i + 1}", id=str(i), response=f"w{i + 2} w{i + 3}") for i in range(16)]
    PromptSet(examples, "data").save(tmp_path / "data.jsonl")
    return tmp_path


def test_two_processes_with_half_the_weights_each_are_one_model(tmp_path):
    done = launch(str(ROOT / "tests" / "scale_worker.py"), str(LAUNCH_FILE), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "process 0 agrees" in done.stdout and "process 1 agrees" in done.stdout


def test_a_fine_tune_launched_in_two_processes_is_that_of_one(lab: Path):
    arguments = ["-m", "experiments.sharded", "base", "--data", "data.jsonl", "--out", "two",
                 "--steps", "6", "--batch-size", "4", "--lora-rank", "2"]  # fmt: skip
    done = launch(*arguments, cwd=lab)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((lab / "two" / "finetune.json").read_text())["processes"] == 2
    config = FinetuneConfig(steps=6, batch_size=8, learning_rate=2e-4, lora_rank=2)
    one = finetune(lab / "base", PromptSet([*_data(lab)], "data"), config, lab / "one", progress=False)
    found, expected = (load_file(path / "adapter_model.safetensors") for path in (lab / "two", one))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=2e-5)
    assert Checkpoint.parse(f"{lab / 'base'}+{lab / 'two'}").load().peft is not None
    before = (lab / "two" / "finetune.json").stat().st_mtime_ns
    assert launch(*arguments, cwd=lab).returncode == 0
    assert (lab / "two" / "finetune.json").stat().st_mtime_ns == before, "a finished one is reused"
    other = launch(*[a if a != "6" else "7" for a in arguments], cwd=lab)
    assert other.returncode != 0 and "with other data or settings" in other.stderr, "told in every process"


def _data(lab: Path) -> PromptSet:
    from interp.data.prompts import read_prompts

    return read_prompts(lab / "data.jsonl")


def test_one_process_is_the_plain_fine_tune(lab: Path):
    config = FinetuneConfig(steps=3, batch_size=4, lora_rank=2)
    paths = [
        function(lab / "base", _data(lab), config, lab / name, progress=False)
        for function, name in ((finetune_sharded, "sharded"), (finetune, "plain"))
    ]
    found, expected = (load_file(path / "adapter_model.safetensors") for path in paths)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(UserError, match="device_map spreads one copy"):
        finetune_sharded(lab / "base", _data(lab), config, lab / "x", device_map="auto")


def test_a_model_dealt_out_by_device_map_is_the_same_model(lab: Path):
    plain, mapped = (Checkpoint.parse(lab / "base").load(device_map=where) for where in (None, "auto"))
    batch = plain.encode(_data(lab)[:4])
    torch.testing.assert_close(mapped.last_logits(mapped.encode(_data(lab)[:4])), plain.last_logits(batch))

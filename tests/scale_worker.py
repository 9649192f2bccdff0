"""One of two gloo processes: a model in shards computes, captures and steps like a whole one, by the settings of the launch file."""

import os
import sys
from types import SimpleNamespace

import tiny
import torch
import torch.distributed as dist
import yaml
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from interp.models.activations import capture
from interp.models.finetune import collate, encode_example
from interp.models.sharded import whole_weights


def prepared(module: torch.nn.Module, launch_file: str) -> torch.nn.Module:
    """The module sharded by accelerate as the launch file asks; bf16 and lazy loading are for accelerators."""
    with open(launch_file, encoding="utf-8") as file:
        settings = yaml.safe_load(file)["fsdp_config"]
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    for name, value in settings.items():
        os.environ[name.upper()] = str(value).lower() if isinstance(value, bool) else str(value)
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin), mixed_precision="no", is_main_process=dist.get_rank() == 0,
        device=torch.device("cpu"),
    )  # fmt: skip
    return fsdp2_prepare_model(accelerator, module)


def main(launch_file: str) -> None:
    dist.init_process_group("gloo")
    whole, sharded = tiny.model("llama"), tiny.model("llama")
    prompts = [tiny.Prompt(f"w{i} w{i + 1} w{i + 2}", id=str(i), response="w5 w6") for i in range(4)]
    prepared(sharded.module, launch_file)
    assert all(isinstance(block, FSDPModule) for block in sharded.tower.blocks)
    parameters = list(sharded.module.parameters())
    assert all(isinstance(p, DTensor) for p in parameters)
    held = sum(p.to_local().numel() for p in parameters)
    assert held < 0.6 * sum(p.numel() for p in parameters), "a process holds its half"
    found, expected = (capture(model, prompts, progress=False).values for model in (sharded, whole))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for model in (sharded, whole):
        model.module.requires_grad_(True)
        optimizer = torch.optim.SGD(model.module.parameters(), lr=0.1)
        rows = [encode_example(model, prompt) for prompt in prompts]
        # each process takes its half of the batch, the whole model all of it
        rank = dist.get_rank()
        mine = rows if model is whole else rows[2 * rank : 2 * rank + 2]
        model.module(**collate(mine, model.pad_id)).loss.backward()
        optimizer.step()
    stepped = whole_weights(sharded)
    if dist.get_rank() == 0:
        for name, value in whole.module.state_dict().items():
            torch.testing.assert_close(stepped[name], value, rtol=1e-5, atol=1e-6)
    dist.barrier()
    print(f"process {dist.get_rank()} agrees")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])

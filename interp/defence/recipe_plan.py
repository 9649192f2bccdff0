"""What will a recipe cost? Parameters and trained blocks from the config alone, memory by part, time from a short matrix product.

Counted from shapes: weights, gradients, Adam's states, g_s, the protected bases (k × m a block), the update watch. Estimated: tokens
(1.4 a word), the activations of a batch, and the time. A token costs 2 operations a parameter forward, 2 backward to the activations
and, where the weights themselves are trained, 2 more to the weights: 6, or 4 under LoRA, for the task batch and the refusals alike.
"""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn

from interp.defence.recipe_settings import Recipe, read_data, training_config
from interp.errors import UserError
from interp.methods.spf import OVERSAMPLING, STACKED
from interp.models.checkpoint import Checkpoint
from interp.models.cost import TOKENS_PER_WORD, UTILISATION, empty_model, matmul_flops, prompt_tokens
from interp.models.finetune import add_lora
from interp.models.model import Model
from interp.models.towers import find_tower

# hidden-sized values kept a token and layer, without the attention matrix: Korthikanti et al. 2022, arXiv 2205.05198, eq. 2
ACTIVATIONS = 17
LOGITS = 3  # copies in fp32 of a batch's logits: themselves, their log-softmax, their gradient


def plan_recipe(recipe: Recipe, *, tflops: float | None = None) -> str:
    """What a recipe would do, with memory by part and time; reads the data and the model's config, loads no weights.

    Args:
        tflops: speed of a large matrix product on the device that would be used, in 1e12 operations a second; by default it is
            measured here.

    Raises UserError as `run_recipe` does for the data, and CheckpointError when the config cannot be read.
    """
    if tflops is not None and tflops <= 0:
        raise UserError(f"tflops must be above 0, got {tflops}")
    data = read_data(recipe)
    config, parameters, trained = _shapes(recipe)
    tuning = training_config(recipe, len(data["task"]))
    steps, batch = tuning.steps or 0, tuning.batch_size * tuning.accumulation
    count = sum(shape.numel() for shape in trained)
    length = {name: [prompt_tokens(prompt) for prompt in part] for name, part in data.items()}
    mean = {name: sum(found) / len(found) for name, found in length.items()}
    memory = _memory(recipe, config, parameters, trained, max(length["task"]))
    speed = (tflops * 1e12 if tflops is not None else matmul_flops()) * UTILISATION
    a_token = parameters * (6 if tuning.method == "full" else 4)
    seconds = {}
    for arm in recipe.arms:
        k = arm.protects
        products = 2 * 4 * (k + OVERSAMPLING) * count if k else 0
        safety = (a_token * arm.refusals * mean["safety"] + products) / arm.refresh
        seconds[arm.name] = (a_token * batch * mean["task"] + safety + 8 * k * count) / speed
    asked = sum(len(data[kind]) * (mean[kind] + recipe.max_new_tokens) for kind in ("harmful", "harmless"))
    answering = 2 * parameters * asked / speed
    total = steps * sum(seconds.values()) + (1 + len(recipe.arms)) * answering
    rank = f", rank {tuning.lora_rank}" if tuning.method == "lora" else ""
    source = "given" if tflops is not None else "measured here"
    return "\n".join(
        [
            f"model     {recipe.model}: {parameters / 1e6:,.1f} M parameters; {count / 1e6:,.1f} M trained in "
            f"{len(trained)} blocks ({tuning.method}{rank})",
            f"data      {', '.join(f'{len(part)} {name}' for name, part in data.items())}; judge {recipe.judge}",
            f"training  {steps} steps an arm of {batch} examples, about {batch * mean['task']:,.0f} tokens",
            "memory    of one device, in the arm that needs most",
            *(f"  {size / 2**30:9.2f} GiB  {part}" for part, size in memory.items()),
            f"  {sum(memory.values()) / 2**30:9.2f} GiB  in all",
            f"time      at {speed / 1e12:.3g} TFLOP/s ({UTILISATION:.0%} of a matrix product's, {source}); every arm computes g_s",
            *(
                f"  {a_step:9.3g} s a step, {steps * a_step / 60:.1f} minutes  {name}"
                for name, a_step in seconds.items()
            ),
            f"  {answering / 60:9.1f} minutes  of answering, {1 + len(recipe.arms)} times: more in fact, memory limits it",
            f"  {total / 60:9.1f} minutes  in all",
            "exact     parameters, blocks, examples, steps, and memory but for activations, decomposition and framework",
            f"estimates tokens ({TOKENS_PER_WORD} a word), activations and all times",
        ]
    )


def _shapes(recipe: Recipe) -> tuple[Any, int, list[torch.Size]]:
    """The model's config, its parameters, and the shapes of what is trained, found on the meta device."""
    checkpoint = Checkpoint.parse(recipe.model)
    config, module = empty_model(checkpoint)
    parameters = sum(p.numel() for p in module.parameters())
    tower, lora = find_tower(module), recipe.finetune.method == "lora"
    if lora:
        with init_empty_weights(), warnings.catch_warnings():
            # transformers warns about a name that PEFT asks for
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            add_lora(Model(module, None, tower, recipe.model, None), recipe.finetune)
    layers = recipe.finetune.layers
    if layers is not None and max(layers) >= tower.n_layers:
        raise UserError(
            f"no layer {max(layers)} to train in {recipe.model}: it has {tower.n_layers}, counted from 0"
        )
    parts: list[nn.Module] = [module] if layers is None else [tower.blocks[i] for i in layers]
    names = [(name, p.shape) for part in parts for name, p in part.named_parameters()]
    return config, parameters, [shape for name, shape in names if not lora or "lora_" in name]


def _memory(
    recipe: Recipe, config: Any, parameters: int, trained: list[torch.Size], longest: float
) -> dict[str, float]:
    """Bytes of each part; `longest` is a batch's width in tokens."""
    dtype = getattr(torch, recipe.dtype) if recipe.dtype else (config.dtype or torch.float32)
    tuning = recipe.finetune
    count, k = sum(shape.numel() for shape in trained), max(arm.protects for arm in recipe.arms)
    if tuning.method == "lora":
        name = f"weights, {str(dtype).removeprefix('torch.')}, with LoRA's factors in float32"
        weights, each = parameters * dtype.itemsize + 4 * count, dtype.itemsize
    else:
        # full training runs in fp32 under autocast, which keeps a copy of the weights in half precision
        name, weights, each = "weights, float32, with autocast's bfloat16 copy", parameters * 6, 2
    matrices = [(shape[0], shape[1:].numel()) for shape in trained]
    small = Counter((m, rest) for m, rest in matrices if m * rest <= STACKED)
    stacked = max((n * m * rest for (m, rest), n in small.items()), default=0)
    a_token = (
        ACTIVATIONS * config.num_hidden_layers * config.hidden_size * each + LOGITS * 4 * config.vocab_size
    )
    return {
        name: weights,
        "gradients, float32": 4.0 * count,
        "Adam's two states, float32": 8.0 * count,
        "g_s, float32": 4.0 * count,
        f"protected bases, {k} × m a block, float32": 4.0 * sum(min(k, m, rest) * m for m, rest in matrices),
        "update watch: weights before the step, and the update": 8.0 * count,
        "decomposition: the largest stack of small equal blocks (estimate)": 4.0 * stacked if k else 0.0,
        f"activations of {tuning.batch_size} × {longest:.0f} tokens (estimate)": tuning.batch_size
        * longest
        * a_token,
    }

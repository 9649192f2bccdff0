"""Can steering be written into a checkpoint? A constant added at every position is a bias of the matrix that writes it.

Exact where all of this holds, and refused by name otherwise:
- the vectors are added at *all* positions, prompt and answer alike, and without a condition: a bias knows neither;
- `mlp_out.l` and `attn_out.l` become biases of block l's down- and output-projection, `resid_post.l` and `resid_pre.l+1` of block l's
  down-projection; `resid_pre.0` is written by the embedding, which has no bias;
- no norm stands between that matrix and the stream (Gemma 2/3 and OLMo 2 have one);
- the architecture can hold the bias: the matrix has one already (GPT-2, GPT-NeoX), or its config has a switch for it (`mlp_bias` and
  `attention_bias` of Llama; the switch adds other biases, which stay zero). Qwen2, Mistral and Phi-3 have no such switch.
What was saved is loaded again by plain transformers, and its logits must agree with the steered model's.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interp.data.prompts import Prompt
from interp.errors import CheckpointError
from interp.files import atomic_write
from interp.methods.steering import Steering
from interp.models.hooks import editing
from interp.models.model import Model
from interp.models.sites import Site
from interp.models.towers import find_tower

TOLERANCE = 1e-4  # largest logit difference for which the biases count as the steering
SWITCHES = {"mlp": "mlp_bias", "attn": "attention_bias"}


@torch.no_grad()
def export_steered(model: Model, steering: Steering, prompts: Sequence[Prompt], out: Path | str) -> float:
    """Save the steered model as an ordinary checkpoint directory, adapters merged; return its measured logit error on the prompts.

    Raises CheckpointError, naming what stands in the way, where biases cannot be the steering exactly, and nothing is left at `out`.
    """
    biases = _biases(model, steering)
    module = (
        copy.deepcopy(model.peft).merge_and_unload()
        if model.peft is not None
        else copy.deepcopy(model.module)
    )
    for kind in sorted({kind for kind, _ in biases}):
        _open_biases(module, model, kind)
    tower = find_tower(module)
    paths = {"mlp": tower.paths.mlp_proj, "attn": tower.paths.attn_proj}
    for (kind, layer), vector in biases.items():
        bias = tower.blocks[layer].get_submodule(paths[kind]).bias
        bias.copy_((bias.double() + vector.to(bias.device)).to(bias.dtype))  # type: ignore[operator, arg-type]
    batch = model.encode(prompts)
    with editing(model, steering.edits(model)):
        expected = model.module(**batch.inputs(), use_cache=False).logits
    with atomic_write(out) as aside:
        aside.mkdir()
        module.save_pretrained(aside)
        (model.processor or model.tokenizer).save_pretrained(aside)
        loaded = type(module).from_pretrained(aside, dtype=model.dtype)
        loaded.to(model.device)  # type: ignore[arg-type]
        found = loaded.eval()(**batch.inputs(), use_cache=False).logits
        error = float((found - expected)[batch.attention_mask.bool()].abs().max())
        if not error <= TOLERANCE:
            why = (
                ""
                if model.dtype == torch.float32
                else f"; {model.dtype} rounds more than that, load it in float32"
            )
            raise CheckpointError(
                f"{model.name}: the exported checkpoint and the steered model differ by {error:.1e} in the logits{why}"
            )
    return error


def _biases(model: Model, steering: Steering) -> dict[tuple[str, int], Tensor]:
    """What is added to the bias of which matrix (`mlp` or `attn`) of which block; raises CheckpointError where none would be exact."""
    paths = model.tower.paths
    kind_of_model = model.module.config.model_type
    scale = float(attrgetter(paths.residual_scale)(model.module.config)) if paths.residual_scale else 1.0
    found: dict[tuple[str, int], Tensor] = {}
    for part in steering.parts:
        part.vectors.check(model)
        if part.condition is not None:
            raise CheckpointError(
                "steering under a condition has no form as a bias; save it with Steering.save"
            )
        if part.positions != "all":
            raise CheckpointError(
                f"steering at {part.positions!r} has no form as a bias, which acts at all positions; use positions='all', or save it "
                "with Steering.save"
            )
        if paths.post_norms:
            raise CheckpointError(
                f"{model.name} ({kind_of_model}) has a norm between its matrices and the stream: no bias is a constant there; save the "
                "vectors with Steering.save"
            )
        for site, vector in zip(part.vectors.sites, part.vectors.vectors, strict=True):
            place, factor = _writer(site, scale)
            found[place] = (
                found.get(place, torch.zeros_like(vector.double())) + vector.double().cpu() * factor
            )
    return found


def _writer(site: Site, scale: float) -> tuple[tuple[str, int], float]:
    """The matrix whose bias is added at the site, and what a bias of one adds there, inverted."""
    match site.stream:
        case "mlp_out":
            return ("mlp", site.layer), 1.0
        case "attn_out":
            return ("attn", site.layer), 1.0
        case "resid_post":
            return ("mlp", site.layer), 1 / scale
        case _ if site.layer > 0:
            return ("mlp", site.layer - 1), 1 / scale
    raise CheckpointError(
        f"{site} is written by the embedding, which has no bias; steer at resid_post.0 or later"
    )


def _open_biases(module: PreTrainedModel, model: Model, kind: str) -> None:
    """Give the matrices a bias of zero, in the module and in its config; raises CheckpointError where the architecture has none."""
    tower = find_tower(module)
    path = tower.paths.mlp_proj if kind == "mlp" else tower.paths.attn_proj
    if tower.blocks[0].get_submodule(path).bias is not None:
        return
    refusal = CheckpointError(
        f"{model.name} ({module.config.model_type}): {path} has no bias and the config no switch for one; save the vectors with "
        "Steering.save"
    )
    config = copy.deepcopy(module.config)
    switch = SWITCHES[kind]
    if not hasattr(config.get_text_config(decoder=True), switch):
        raise refusal
    setattr(config.get_text_config(decoder=True), switch, True)
    with torch.device("meta"):
        opened = type(module)(config)
    known = dict(module.named_parameters())
    for name, parameter in opened.named_parameters():
        if name in known:
            continue
        owner, _, leaf = name.rpartition(".")
        if leaf != "bias":
            raise refusal
        holder = module.get_submodule(owner)
        weight = holder.weight
        zeros = torch.zeros(parameter.shape, dtype=weight.dtype, device=weight.device)  # type: ignore[arg-type]
        holder.bias = nn.Parameter(zeros, requires_grad=False)
    if tower.blocks[0].get_submodule(path).bias is None:
        raise refusal
    module.config = config

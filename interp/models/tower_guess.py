"""Where does an architecture that is not in the table keep its decoder? Found by structure, and believed only if its streams add up.

1. The decoder's blocks are the one list of as many modules as the config has layers, next to the input embedding.
2. A block's attention and MLP are its parts of that name; what writes to the residual stream is a linear map of its width.
3. A forward pass over a few tokens checks what is claimed: `resid_pre + attn_out + mlp_out = resid_post` in every block.

Anything else is refused with the tree of modules and the two lines that would describe it.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from interp.errors import CheckpointError

ATTENTION, MLP, NORM = ("attn", "attention"), ("mlp", "feed_forward", "ffn"), ("norm", "ln_f")
OUTPUT = re.compile(r"^(o_proj|out_proj|dense|c_proj|wo|down_proj|fc2|fc_out|w2|dense_4h_to_h)$")
TOLERANCE = 1e-3  # relative; half precision rounds each of three terms


def guess_paths(module: PreTrainedModel) -> dict[str, Any]:
    """The fields of `TowerPaths` for an unknown architecture; raises CheckpointError where its structure is unclear."""
    config = module.config.get_text_config(decoder=True)
    names = {id(part): name for name, part in module.named_modules()}
    embed, head = module.get_input_embeddings(), module.get_output_embeddings()
    if embed is None or head is None:
        raise _refused(module, "it has no input embedding or no head")
    embed_name = names[id(embed)]
    decoder = embed_name.rpartition(".")[0]
    lists = [
        name
        for name, part in module.named_modules()
        if isinstance(part, nn.ModuleList) and len(part) == config.num_hidden_layers
        and name.rpartition(".")[0] == decoder
    ]  # fmt: skip
    if len(lists) != 1:
        raise _refused(
            module, f"{len(lists)} lists of {config.num_hidden_layers} blocks beside the input embedding"
        )
    block = next(module.get_submodule(lists[0]).children())
    attn, mlp = (_child(module, block, words) for words in (ATTENTION, MLP))
    found = {
        "decoder": decoder, "layers": lists[0], "embed": embed_name, "head": names[id(head)],
        "norm": f"{decoder}.{_child(module, module.get_submodule(decoder), NORM)}",
        "attn": attn, "mlp": mlp, "attn_out": attn, "mlp_out": mlp,
        "attn_proj": _writer(module, block, attn), "mlp_proj": _writer(module, block, mlp),
    }  # fmt: skip
    _check_sums(module, found)
    return found


def _child(module: PreTrainedModel, parent: nn.Module, words: tuple[str, ...]) -> str:
    """The last child with one of these words in its name; an attention or an MLP holds linear maps."""
    names = [
        name
        for name, part in parent.named_children()
        if any(word in name.lower() for word in words) and (words is NORM or _linear(part))
    ]
    if not names:
        raise _refused(module, f"{type(parent).__name__} has no part named like {' or '.join(words)}")
    return names[-1]


def _linear(part: nn.Module) -> dict[str, nn.Module]:
    return {name: p for name, p in part.named_modules() if isinstance(p, nn.Linear | Conv1D)}


def _writer(module: PreTrainedModel, block: nn.Module, part: str) -> str:
    """The linear map of the residual stream's width that is named like an output, or else the last one of that width."""
    width = module.config.get_text_config(decoder=True).hidden_size
    names = [
        name
        for name, p in _linear(block.get_submodule(part)).items()
        if (p.nf if isinstance(p, Conv1D) else p.out_features) == width
    ]
    if not names:
        raise _refused(module, f"{part} holds no linear map of width {width}")
    likely = [name for name in names if OUTPUT.search(name.rpartition(".")[2])]
    return f"{part}.{(likely or names)[-1]}"


@torch.no_grad()
def _check_sums(module: PreTrainedModel, found: dict[str, str]) -> None:
    """Raises CheckpointError unless what attention and MLP give is what each block adds."""
    if next(module.parameters()).is_meta:
        return  # a plan, which loads nothing
    blocks = list(module.get_submodule(found["layers"]).children())
    seen: dict[tuple[int, str], Tensor] = {}

    def first(value: Any) -> Tensor:
        return (value[0] if isinstance(value, tuple) else value).detach().double()

    handles = []
    for i, block in enumerate(blocks):
        handles.append(block.register_forward_pre_hook(
            lambda _, args, kwargs, i=i: seen.__setitem__((i, "pre"), first(args[0] if args else kwargs["hidden_states"])),
            with_kwargs=True,
        ))  # fmt: skip
        for name, part in (
            ("attn", block.get_submodule(found["attn"])),
            ("mlp", block.get_submodule(found["mlp"])),
            ("post", block),
        ):
            handles.append(part.register_forward_hook(
                lambda _, args, output, i=i, name=name: seen.__setitem__((i, name), first(output))
            ))  # fmt: skip
    try:
        device = next(module.parameters()).device
        module(input_ids=torch.arange(1, 6, device=device)[None], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    for i in range(len(blocks)):
        total = seen[i, "pre"] + seen[i, "attn"] + seen[i, "mlp"]
        error = float((total - seen[i, "post"]).norm() / (seen[i, "post"] - seen[i, "pre"]).norm())
        if not error <= TOLERANCE:
            raise _refused(
                module,
                f"block {i} does not add what {found['attn']} and {found['mlp']} give (relative error {error:.2g}); perhaps a norm "
                "or a factor stands between",
            )


def _refused(module: PreTrainedModel, reason: str) -> CheckpointError:
    kind = module.config.model_type
    tree = dict.fromkeys(
        re.sub(r"\.\d+(?=\.|$)", ".0", name) + f": {type(part).__name__}"
        for name, part in module.named_modules()
        if name and name.count(".") <= 5
    )
    return CheckpointError(
        f"architecture {kind!r} is not in the table of interp/models/towers.py, and its structure is unclear: {reason}. Its modules:\n  "
        + "\n  ".join(list(tree)[:60])
        + f"\nDescribe it in two lines of TOWERS:\n"
        f'    "{kind}": TowerPaths(decoder="…", layers="….layers", embed="….embed_tokens", norm="….norm", head="lm_head",\n'
        f'        attn="self_attn", mlp="mlp", attn_out="…", mlp_out="…", attn_proj="self_attn.o_proj", mlp_proj="mlp.down_proj"),'
    )

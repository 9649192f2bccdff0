"""Where each architecture keeps its decoder blocks: one table, validated by shape when a model is loaded.

Paths are dotted, `layers`, `embed`, `norm`, `head` from the causal-LM module and the others from a block.
`attn_out` and `mlp_out` name the module whose output is added to the residual stream (a post-norm in Gemma 2/3 and
OLMo 2); `attn_proj` and `mlp_proj` are the matrices that write it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from interp.errors import CheckpointError
from interp.models.sites import Site


@dataclass(frozen=True)
class TowerPaths:
    """Dotted paths of one architecture's decoder."""

    decoder: str = "model"
    layers: str = "model.layers"
    embed: str = "model.embed_tokens"
    norm: str = "model.norm"
    head: str = "lm_head"
    attn: str = "self_attn"
    mlp: str = "mlp"
    attn_out: str = "self_attn"
    mlp_out: str = "mlp"
    attn_proj: str = "self_attn.o_proj"
    mlp_proj: str = "mlp.down_proj"
    position_embed: str | None = None

    @property
    def post_norms(self) -> bool:
        """Whether a norm stands between a writing matrix and the residual stream."""
        return (self.attn_out, self.mlp_out) != (self.attn, self.mlp)


_LLAMA = TowerPaths()
_POST_NORM = replace(_LLAMA, attn_out="post_attention_layernorm", mlp_out="post_feedforward_layernorm")

TOWERS: dict[str, TowerPaths] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _POST_NORM,
    "gemma3_text": _POST_NORM,
    "olmo2": _POST_NORM,
    "phi3": _LLAMA,
    "gpt2": TowerPaths(
        decoder="transformer",
        layers="transformer.h",
        embed="transformer.wte",
        norm="transformer.ln_f",
        attn="attn",
        attn_out="attn",
        attn_proj="attn.c_proj",
        mlp_proj="mlp.c_proj",
        position_embed="transformer.wpe",
    ),
    "gpt_neox": TowerPaths(
        decoder="gpt_neox",
        layers="gpt_neox.layers",
        embed="gpt_neox.embed_in",
        norm="gpt_neox.final_layer_norm",
        attn="attention",
        attn_out="attention",
        attn_proj="attention.dense",
        mlp_proj="mlp.dense_4h_to_h",
    ),
}


def base_layer(module: nn.Module) -> nn.Module:
    """The module itself, or what PEFT or a quantiser wrapped around it holds."""
    inner = getattr(module, "base_layer", None)
    return inner if isinstance(inner, nn.Module) else module


def out_features(module: nn.Module) -> int:
    """Width of what a linear map writes, whichever way round its weight is stored."""
    inner = base_layer(module)
    return inner.nf if isinstance(inner, Conv1D) else int(inner.out_features)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Tower:
    """The decoder of a loaded model: its modules, found by the table and checked by shape."""

    paths: TowerPaths
    decoder: nn.Module
    blocks: tuple[nn.Module, ...]
    embed: nn.Module
    norm: nn.Module
    head: nn.Module
    d_model: int
    position_embed: nn.Module | None

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return len(self.blocks)

    def module(self, site: Site) -> nn.Module:
        """The module whose input (`resid_pre`) or output (all others) is the site's value."""
        block = self.blocks[site.layer]
        match site.stream:
            case "attn_out":
                return block.get_submodule(self.paths.attn_out)
            case "mlp_out":
                return block.get_submodule(self.paths.mlp_out)
            case _:
                return block

    def writers(self) -> list[nn.Module]:
        """Every linear map of the blocks that writes to the residual stream."""
        names = (self.paths.attn_proj, self.paths.mlp_proj)
        return [block.get_submodule(name) for block in self.blocks for name in names]


def find_tower(module: PreTrainedModel) -> Tower:
    """Find and validate the decoder of a causal language model; raises CheckpointError when it does not fit."""
    kind = module.config.model_type
    if kind not in TOWERS:
        raise CheckpointError(
            f"architecture {kind!r} is not in the table of interp/models/towers.py (it has {', '.join(TOWERS)}); "
            f"add a row with its dotted paths"
        )
    paths, config = TOWERS[kind], module.config

    def at(path: str) -> nn.Module:
        try:
            return module.get_submodule(path)
        except AttributeError as error:
            raise CheckpointError(
                f"{kind}: no module {path!r} in {type(module).__name__}: {error}"
            ) from error

    blocks = tuple(at(paths.layers).children())
    tower = Tower(
        paths=paths,
        decoder=at(paths.decoder),
        blocks=blocks,
        embed=at(paths.embed),
        norm=at(paths.norm),
        head=at(paths.head),
        d_model=int(config.hidden_size),
        position_embed=at(paths.position_embed) if paths.position_embed else None,
    )
    if len(blocks) != config.num_hidden_layers:
        raise CheckpointError(
            f"{kind}: {len(blocks)} blocks at {paths.layers}, config says {config.num_hidden_layers}"
        )
    widths = {paths.embed: int(base_layer(tower.embed).embedding_dim)}  # type: ignore[arg-type]
    widths[paths.head] = int(base_layer(tower.head).in_features)  # type: ignore[arg-type]
    for name in (paths.attn_proj, paths.mlp_proj):
        widths[f"{paths.layers}.0.{name}"] = out_features(at(f"{paths.layers}.0.{name}"))
    for name, width in widths.items():
        if width != tower.d_model:
            raise CheckpointError(f"{kind}: {name} has width {width}, the residual stream {tower.d_model}")
    for name in (paths.attn, paths.mlp, paths.attn_out, paths.mlp_out):
        at(f"{paths.layers}.{len(blocks) - 1}.{name}")
    return tower

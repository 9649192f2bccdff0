"""Where each architecture keeps its decoder blocks, and what sees and hears: one table, validated by shape when a model is loaded.

Paths are dotted, `layers`, `embed`, `norm`, `head` from the causal-LM module and the others from a block; an encoder's from the
module too.
`attn_out` and `mlp_out` name the module whose output is added to the residual stream (a post-norm in Gemma 2/3 and
OLMo 2); `attn_proj` and `mlp_proj` are the matrices that write it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Literal

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from interp.errors import CheckpointError
from interp.models.sites import DECODER, HEADS, PROJECTOR, Site
from interp.models.tower_guess import guess_paths


@dataclass(frozen=True)
class EncoderPaths:
    """Dotted paths of what turns images or sounds into vectors of the decoder's width.

    token: the config's attribute that holds the id of the placeholder token.
    """

    modality: Literal["vision", "audio"]
    layers: str
    projector: str
    token: str


@dataclass(frozen=True)
class TowerPaths:
    """Dotted paths of one architecture's decoder, and of its encoders.

    type_ids: the argument of `forward` that tells tokens apart, if it takes one, and what it marks: those of `media`, or those of
    the `response`. own_positions: whether the model works out positions by itself (several axes for images), so that none may be
    handed in. mixed_sizes: whether media of different sizes may share a batch; False where the encoder attends to padding.
    residual_scale: the config's factor by which a block multiplies `attn_out` and `mlp_out` before it adds them.
    """

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
    encoders: tuple[EncoderPaths, ...] = ()
    type_ids: str | None = None
    types_mark: Literal["media", "response"] = "media"
    own_positions: bool = False
    mixed_sizes: bool = True
    residual_scale: str | None = None

    @property
    def post_norms(self) -> bool:
        """Whether a norm stands between a writing matrix and the residual stream."""
        return (self.attn_out, self.mlp_out) != (self.attn, self.mlp)


_LLAMA = TowerPaths()
_POST_NORM = replace(_LLAMA, attn_out="post_attention_layernorm", mlp_out="post_feedforward_layernorm")
_VISION = "model.vision_tower.encoder.layers"
_PROJECTOR = "model.multi_modal_projector"


def _inside(paths: TowerPaths, name: str, *encoders: EncoderPaths) -> TowerPaths:
    """The paths of a language model that is `name` inside a model with encoders."""
    return replace(
        paths,
        decoder=name,
        layers=f"{name}.layers",
        embed=f"{name}.embed_tokens",
        norm=f"{name}.norm",
        encoders=encoders,
    )


def _seeing(paths: TowerPaths) -> TowerPaths:
    vision = EncoderPaths("vision", _VISION, _PROJECTOR, "image_token_id")
    return _inside(paths, "model.language_model", vision)


def _hearing(layers: str = "model.audio_tower.layers", projector: str = _PROJECTOR) -> TowerPaths:
    audio = EncoderPaths("audio", layers, projector, "audio_token_id")
    return _inside(_LLAMA, "model.language_model", audio)


_QWEN_VL = replace(
    _inside(
        _LLAMA,
        "model.language_model",
        EncoderPaths("vision", "model.visual.blocks", "model.visual.merger", "image_token_id"),
    ),
    type_ids="mm_token_type_ids",
    own_positions=True,
)
_IDEFICS = _inside(
    _LLAMA,
    "model.text_model",
    EncoderPaths("vision", "model.vision_model.encoder.layers", "model.connector", "image_token_id"),
)

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
    "gemma3": replace(_seeing(_POST_NORM), type_ids="token_type_ids"),
    "llava": _seeing(_LLAMA),
    "llava_next": _seeing(_LLAMA),
    "llava_onevision": _seeing(_LLAMA),
    "paligemma": replace(_seeing(_LLAMA), type_ids="token_type_ids", types_mark="response"),
    "qwen2_vl": _QWEN_VL,
    "qwen2_5_vl": _QWEN_VL,
    "qwen3_vl": _QWEN_VL,
    "idefics3": _IDEFICS,
    "smolvlm": _IDEFICS,
    "qwen2_audio": _hearing(),
    "audioflamingo3": _hearing(),
    "voxtral": _hearing(),
    "qwen2_5_omni_thinker": replace(
        _QWEN_VL,
        type_ids=None,
        encoders=(
            *_QWEN_VL.encoders,
            EncoderPaths("audio", "model.audio_tower.layers", "model.audio_tower.proj", "audio_token_id"),
        ),
    ),
    "granite_speech": replace(
        _hearing("model.encoder.layers", "model.projector"),
        mixed_sizes=False,
        residual_scale="text_config.residual_multiplier",
    ),
    "phi4_multimodal": replace(
        _LLAMA,
        encoders=(
            EncoderPaths(
                "audio",
                "model.embed_tokens_extend.audio_embed.encoder.encoders",
                "model.embed_tokens_extend.audio_embed.down_proj_for_speech",
                "audio_config.audio_token_id",
            ),
            EncoderPaths(
                "vision",
                "model.embed_tokens_extend.image_embed.img_processor.encoder.layers",
                "model.embed_tokens_extend.image_embed.img_projection_down",
                "vision_config.image_token_id",
            ),
        ),
        mixed_sizes=False,
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


def in_features(module: nn.Module) -> int:
    """Width of what a linear map reads, whichever way round its weight is stored."""
    inner = base_layer(module)
    return int(inner.nx if isinstance(inner, Conv1D) else inner.in_features)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Encoder:
    """What sees or hears in a loaded model: its blocks, and the projector whose output takes the place of `token_id`."""

    modality: str
    blocks: tuple[nn.Module, ...]
    projector: nn.Module
    token_id: int

    def module(self, site: Site) -> nn.Module:
        """The module whose input (`resid_pre`) or output (all others) is the site's value."""
        return self.projector if site.stream == PROJECTOR else self.blocks[site.layer]


@dataclass(frozen=True, eq=False)
class Tower:
    """The decoder of a loaded model: its modules, found by the table and checked by shape; and its encoders, by modality."""

    paths: TowerPaths
    decoder: nn.Module
    blocks: tuple[nn.Module, ...]
    embed: nn.Module
    norm: nn.Module
    head: nn.Module
    d_model: int
    position_embed: nn.Module | None
    encoders: Mapping[str, Encoder] = field(default_factory=dict)

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return len(self.blocks)

    def module(self, site: Site) -> nn.Module:
        """The module whose input (`resid_pre`, `z`) or output (all others) is the site's value."""
        if site.tower != DECODER:
            return self.encoders[site.tower].module(site)
        block = self.blocks[site.layer]
        match site.stream:
            case "z":
                return block.get_submodule(self.paths.attn_proj)
            case "attn_out":
                return block.get_submodule(self.paths.attn_out)
            case "mlp_out":
                return block.get_submodule(self.paths.mlp_out)
            case _:
                return block

    @property
    def head_width(self) -> int:
        """Width of `z`: all attention heads of a block together."""
        return in_features(self.module(Site(0, HEADS)))

    def writers(self) -> list[nn.Module]:
        """Every linear map of the blocks that writes to the residual stream."""
        names = (self.paths.attn_proj, self.paths.mlp_proj)
        return [block.get_submodule(name) for block in self.blocks for name in names]


def find_tower(module: PreTrainedModel) -> Tower:
    """Find and validate the decoder of a causal language model, and its encoders.

    An architecture that is not in the table is tried by its structure, with a warning. Raises CheckpointError when it does not fit.
    """
    kind, config = module.config.model_type, module.config.get_text_config(decoder=True)
    if kind in TOWERS:
        paths = TOWERS[kind]
    else:
        paths = replace(_LLAMA, **guess_paths(module))
        warnings.warn(
            f"architecture {kind!r} is not in the table of interp/models/towers.py; its decoder was found by structure, and its "
            "streams add up",
            stacklevel=2,
        )

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
        encoders={
            e.modality: Encoder(
                e.modality,
                tuple(at(e.layers).children()),
                at(e.projector),
                int(attrgetter(e.token)(module.config)),
            )
            for e in paths.encoders
        },
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

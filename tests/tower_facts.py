"""What must be known of a multimodal architecture to capture, edit and batch it? One row an architecture.

Every field is verified on a tiny model by test_tower_modules.py and test_tower_inputs.py. Module paths are dotted from the causal-LM module,
`attn`, `mlp` and their outputs from a decoder block; config paths start at the module's config.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

Features = dict[str, Tensor]
Limit = Literal["processor", "processor: text alone", "processor: batch", "mixed sizes", "several items"]


@dataclass(frozen=True)
class Facts:
    """Where one architecture keeps its towers and how its inputs are batched."""

    model_type: str
    modality: Literal["image", "audio"]
    encoder: str
    encoder_blocks: str
    projector: str
    """The module whose output rows are put in place of the placeholder tokens (see `projector_stream`)."""
    encoder_tokens: Callable[[Any, Features], list[int]]
    """(config, inputs) -> tokens that belong to each entry of the encoder's stream: an item, or a tile of an image.
    A tile of padding that the encoder sees has 0; Idefics' never reach it."""
    media: Mapping[str, Literal["concat", "ones"]]
    """Media inputs. `concat`: a batch is the rows' tensors padded with zeros at the end and joined on dim 0. `ones`:
    the same of a mask that the processor leaves out for a single item: ones over dims 0 and 1 of the first input."""

    # decoder
    decoder: str = "model.language_model"
    blocks: str = "model.language_model.layers"
    embed: str = "model.language_model.embed_tokens"
    norm: str = "model.language_model.norm"
    head: str = "lm_head"
    attn_out: str = "self_attn"
    mlp_out: str = "mlp"
    residual_scale: str | None = None
    """Config path of the factor by which a block multiplies `attn_out` and `mlp_out` before it adds them."""
    embedding_scale: str | None = None
    """Config path of the factor by which the decoder multiplies embeddings, the inserted rows included."""
    deepstack: str | None = None
    """List of further projectors, whose k-th output is added to the stream behind decoder block k."""

    # config
    hidden_size: str = "text_config.hidden_size"
    n_layers: str = "text_config.num_hidden_layers"
    max_positions: str = "text_config.max_position_embeddings"
    encoder_hidden_size: str = "vision_config.hidden_size"
    encoder_n_layers: str = "vision_config.num_hidden_layers"
    placeholder_id: str = "image_token_id"

    # inputs
    per_token: tuple[str, ...] = ()
    """Outputs of the processor with one value a token: 0 for padding and text, `response_type` for the answer in
    `token_type_ids` and 0 in others."""
    response_type: int = 0
    drop: tuple[str, ...] = ()
    """Outputs of the processor that are not inputs of the model for inference."""
    positions_1d: bool = True
    """Whether passing `mask.cumsum - 1` as position_ids gives what the model does by itself."""
    deltas: str | None = None
    """Module on which a prefill leaves `rope_deltas`, (batch, 1): a cached step without media must be given
    position_ids, `mask.cumsum - 1` plus them."""
    stale_deltas: bool = False
    """Whether a prefill of text alone keeps the deltas of an earlier call, which are wrong for it (0 is right)."""
    logits_to_keep: bool = True
    """Whether forward takes `logits_to_keep`; otherwise it is swallowed and all logits come back."""

    # encoder and projector
    encoder_stream: Literal["items", "flat"] = "items"
    """Whether encoder blocks see (items, tokens, d) or the concatenation of all items (tokens, d)."""
    encoder_prefix: int = 0
    """Tokens in front of an item's patches, such as CLS."""
    encoder_tuple: bool = False
    """Whether encoder blocks return tuples."""
    encoder_capture: bool = False
    """Whether the projector reads a recorded hidden state: an edit hook on a block must come before the recorder's."""
    eager: tuple[str, ...] = ()
    """Sub-configs whose attention must be eager: with sdpa the encoder is causal in batches without padding."""
    mutated_blocks: tuple[int, ...] = ()
    """Encoder blocks whose output the encoder changes in place afterwards: a capture must copy it in the hook."""
    unread_blocks: int = 0
    """Encoder blocks at the end whose output nothing reads."""
    projector_stream: Literal["items", "flat", "padded items", "packed items"] = "items"
    """`padded items`: rows of the projector beyond an item's own length never reach the text sequence. `packed items`:
    the rows of an image's tiles are put in image order, cropped, and a learned newline row ends every line."""

    projector_per_item: bool = False
    """Whether the projector is called once an item in a forward, not once for all."""

    limits: Mapping[Limit, str] = field(default_factory=dict)
    """What is not possible, with the reason."""


def _patches(config: Any, inputs: Features) -> list[int]:
    side = config.vision_config.image_size // config.vision_config.patch_size
    return [side * side] * len(inputs["pixel_values"])


def _clip(config: Any, inputs: Features) -> list[int]:
    return [n + 1 for n in _patches(config, inputs)]


def _tiles(config: Any, inputs: Features) -> list[int]:
    """Tiles of the best grid and the whole image; an image beside others of its prompt may go without tiles."""
    tiled = [True] * len(inputs["image_sizes"])
    if "batch_num_images" in inputs:
        tiled = [n == 1 for n in inputs["batch_num_images"].tolist() for _ in range(n)]
    side = config.vision_config.image_size
    counts = [
        image_size_to_num_patches(size, config.image_grid_pinpoints, side) if tile else 1
        for size, tile in zip(inputs["image_sizes"], tiled, strict=True)
    ]
    return _patches(config, {"pixel_values": range(sum(counts))})  # type: ignore[dict-item]


def _real_tiles(config: Any, inputs: Features) -> list[int]:
    """Tiles that are not padding, which is all zero."""
    real = inputs["pixel_values"].flatten(0, 1).flatten(1).ne(0).any(1).sum()
    return _patches(config, {"pixel_values": range(int(real))})  # type: ignore[dict-item]


def _grid(config: Any, inputs: Features) -> list[int]:
    return inputs["image_grid_thw"].prod(-1).tolist()


def _whisper(mask: str) -> Callable[[Any, Features], list[int]]:
    """Half of the mel frames, rounded up."""
    return lambda config, inputs: ((inputs[mask].sum(-1) + 1) // 2).tolist()


def _windows(config: Any, inputs: Features) -> list[int]:
    """Half of each window's mel frames, rounded up."""
    window = 2 * config.audio_config.n_window
    return [
        n // window * (window // 2) + (n % window + 1) // 2
        for n in inputs["feature_attention_mask"].sum(-1).tolist()
    ]


_SIGLIP = Facts(
    model_type="paligemma",
    modality="image",
    encoder="model.vision_tower",
    encoder_blocks="model.vision_tower.encoder.layers",
    projector="model.multi_modal_projector",
    encoder_tokens=_patches,
    media={"pixel_values": "concat"},
    per_token=("token_type_ids",),
)
_LLAVA = replace(
    _SIGLIP,
    model_type="llava",
    encoder_tokens=_clip,
    per_token=(),
    encoder_prefix=1,
    encoder_capture=True,
    unread_blocks=1,
)
_QWEN_VL = Facts(
    model_type="qwen2_vl",
    modality="image",
    encoder="model.visual",
    encoder_blocks="model.visual.blocks",
    projector="model.visual.merger",
    encoder_tokens=_grid,
    encoder_hidden_size="vision_config.embed_dim",
    encoder_n_layers="vision_config.depth",
    media={"pixel_values": "concat", "image_grid_thw": "concat"},
    per_token=("mm_token_type_ids",),
    positions_1d=False,
    deltas="model",
    stale_deltas=True,
    encoder_stream="flat",
    projector_stream="flat",
)
_IDEFICS = Facts(
    model_type="idefics3",
    modality="image",
    decoder="model.text_model",
    blocks="model.text_model.layers",
    embed="model.text_model.embed_tokens",
    norm="model.text_model.norm",
    encoder="model.vision_model",
    encoder_blocks="model.vision_model.encoder.layers",
    projector="model.connector",
    encoder_tokens=_real_tiles,
    media={"pixel_values": "concat", "pixel_attention_mask": "concat"},
)
_WHISPER = Facts(
    model_type="qwen2_audio",
    modality="audio",
    encoder="model.audio_tower",
    encoder_blocks="model.audio_tower.layers",
    projector="model.multi_modal_projector",
    encoder_tokens=_whisper("feature_attention_mask"),
    encoder_hidden_size="audio_config.d_model",
    encoder_n_layers="audio_config.encoder_layers",
    placeholder_id="audio_token_id",
    media={"input_features": "concat", "feature_attention_mask": "concat"},
    projector_stream="padded items",
)
_OMNI = replace(
    _WHISPER,
    model_type="qwen2_5_omni_thinker",
    projector="model.audio_tower.proj",
    encoder_tokens=_windows,
    deltas="model",
    logits_to_keep=False,
    encoder_stream="flat",
    encoder_tuple=True,
    projector_stream="flat",
)
_PHI4 = Facts(
    model_type="phi4_multimodal",
    modality="audio",
    decoder="model",
    blocks="model.layers",
    embed="model.embed_tokens",
    norm="model.norm",
    encoder="model.embed_tokens_extend.audio_embed.encoder",
    encoder_blocks="model.embed_tokens_extend.audio_embed.encoder.encoders",
    projector="model.embed_tokens_extend.audio_embed.down_proj_for_speech",
    hidden_size="hidden_size",
    n_layers="num_hidden_layers",
    max_positions="max_position_embeddings",
    encoder_hidden_size="audio_config.hidden_size",
    encoder_n_layers="audio_config.num_blocks",
    encoder_tokens=lambda config, inputs: inputs["audio_embed_sizes"].tolist(),
    placeholder_id="audio_config.audio_token_id",
    media={"audio_input_features": "concat", "audio_embed_sizes": "concat", "audio_attention_mask": "ones"},
    projector_stream="padded items",
    limits={
        "mixed sizes": "the encoder adds its boolean mask to the attention bias as 0 and 1, so padding is attended",
        "processor: batch": "frames of padding hold the spectrum of silence and are not zero",
    },
)

FACTS: dict[str, Facts] = {
    "gemma3": replace(
        _SIGLIP,
        model_type="gemma3",
        attn_out="post_attention_layernorm",
        mlp_out="post_feedforward_layernorm",
    ),
    "llava": _LLAVA,
    "llava_next": replace(
        _LLAVA,
        model_type="llava_next",
        encoder_tokens=lambda config, inputs: [n + 1 for n in _tiles(config, inputs)],
        media={"pixel_values": "concat", "image_sizes": "concat"},
        projector_stream="packed items",
    ),
    "llava_onevision": replace(
        _LLAVA,
        model_type="llava_onevision",
        encoder_tokens=_tiles,
        encoder_prefix=0,
        unread_blocks=0,
        media={"pixel_values": "concat", "image_sizes": "concat", "batch_num_images": "concat"},
        projector_stream="packed items",
    ),
    "qwen2_vl": _QWEN_VL,
    "qwen2_5_vl": replace(_QWEN_VL, model_type="qwen2_5_vl", encoder_hidden_size="vision_config.hidden_size"),
    "qwen3_vl": replace(
        _QWEN_VL,
        model_type="qwen3_vl",
        encoder_hidden_size="vision_config.hidden_size",
        deepstack="model.visual.deepstack_merger_list",
    ),
    "paligemma": replace(
        _SIGLIP,
        response_type=1,
        drop=("labels",),
        limits={"processor: text alone": "its processor refuses prompts without images"},
    ),
    "idefics3": _IDEFICS,
    "smolvlm": replace(_IDEFICS, model_type="smolvlm"),
    "qwen2_audio": replace(_WHISPER, logits_to_keep=False),
    "qwen2_5_omni": _OMNI,
    "audioflamingo3": replace(
        _WHISPER,
        model_type="audioflamingo3",
        encoder_tokens=_whisper("input_features_mask"),
        encoder_hidden_size="audio_config.hidden_size",
        encoder_n_layers="audio_config.num_hidden_layers",
        media={"input_features": "concat", "input_features_mask": "concat"},
        limits={"several items": "its processor takes one clip a prompt"},
    ),
    "voxtral": replace(
        _WHISPER,
        model_type="voxtral",
        encoder_tokens=lambda config, inputs: (
            [config.audio_config.max_source_positions] * len(inputs["input_features"])
        ),
        encoder_hidden_size="audio_config.hidden_size",
        encoder_n_layers="audio_config.num_hidden_layers",
        media={"input_features": "concat"},
        projector_stream="flat",
        limits={"processor": "its text step is the tokenizer of mistral-common; the feature step is its own"},
    ),
    "phi4_multimodal": _PHI4,
    "granite_speech": replace(
        _WHISPER,
        model_type="granite_speech",
        encoder="model.encoder",
        encoder_blocks="model.encoder.layers",
        projector="model.projector",
        encoder_tokens=lambda config, inputs: (
            [inputs["input_features"].shape[1]] * len(inputs["input_features"])
        ),
        encoder_hidden_size="encoder_config.hidden_dim",
        encoder_n_layers="encoder_config.num_layers",
        residual_scale="text_config.residual_multiplier",
        embedding_scale="text_config.embedding_multiplier",
        media={"input_features": "concat", "input_features_mask": "concat"},
        mutated_blocks=(0,),
        limits={
            "processor": "its feature extractor needs torchaudio",
            "mixed sizes": "the encoder has no mask: a shorter clip attends to its padding",
        },
    ),
    # the other side of models that see and hear
    "qwen2_5_omni/image": replace(
        _QWEN_VL,
        model_type="qwen2_5_omni_thinker",
        encoder_hidden_size="vision_config.hidden_size",
        per_token=(),
        stale_deltas=False,
        logits_to_keep=False,
    ),
    "phi4_multimodal/image": replace(
        _PHI4,
        modality="image",
        encoder="model.embed_tokens_extend.image_embed.img_processor",
        encoder_blocks="model.embed_tokens_extend.image_embed.img_processor.encoder.layers",
        projector="model.embed_tokens_extend.image_embed.img_projection_down",
        encoder_hidden_size="vision_config.hidden_size",
        encoder_n_layers="vision_config.num_hidden_layers",
        encoder_tokens=lambda config, inputs: (
            inputs["image_attention_mask"].flatten(0, 1).flatten(1).sum(1).int().tolist()
        ),
        placeholder_id="vision_config.image_token_id",
        media={"image_pixel_values": "concat", "image_sizes": "concat", "image_attention_mask": "concat"},
        projector_stream="items",
        projector_per_item=True,
        encoder_capture=True,
        eager=("vision_config",),
        unread_blocks=1,
        limits={"processor": "its image processor needs torchvision"},
    ),
}

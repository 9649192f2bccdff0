"""Tiny audio-language models with their real processors where they can exist, and the facts about each architecture.

Mel encoders take clips of at most 2 s: 200 frames of 10 ms, 100 positions.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from tiny_multimodal import (
    RATE,
    Architecture,
    Features,
    Row,
    Tiny,
    render,
    template,
    text_config,
    token_id,
    tokenizer,
    without,
)
from transformers import (
    AudioFlamingo3Config,
    AudioFlamingo3ForConditionalGeneration,
    AudioFlamingo3Processor,
    GraniteSpeechConfig,
    GraniteSpeechForConditionalGeneration,
    Phi4MultimodalConfig,
    Phi4MultimodalFeatureExtractor,
    Phi4MultimodalForCausalLM,
    Phi4MultimodalProcessor,
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    VoxtralConfig,
    VoxtralForConditionalGeneration,
    VoxtralProcessor,
    WhisperFeatureExtractor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

SECONDS, MELS, POSITIONS = 2, 16, 100

QWEN = ("<|audio_bos|>", "<|audio_eos|>", "<|AUDIO|>")
OMNI = (*QWEN, "<|vision_bos|>", "<|vision_eos|>", "<|IMAGE|>", "<|VIDEO|>")
FLAMINGO = ("<sound>",)
VOXTRAL = ("[BEGIN_AUDIO]", "[AUDIO]")
PHI4 = ("<|image|>", "<|audio|>")
GRANITE = ("<|audio|>",)

# narrower than the decoder, so that a site taken from the wrong tower has the wrong width
WHISPER = {
    "num_mel_bins": MELS,
    "encoder_layers": 2,
    "encoder_attention_heads": 3,
    "encoder_ffn_dim": 40,
    "d_model": 24,
    "max_source_positions": POSITIONS,
}
FLAMINGO_ENCODER = {
    "num_mel_bins": MELS,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "hidden_size": 24,
    "max_source_positions": POSITIONS,
}


def _mel() -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(feature_size=MELS, chunk_length=SECONDS, return_attention_mask=True)


def _qwen2_audio() -> Any:
    return Qwen2AudioForConditionalGeneration(
        Qwen2AudioConfig(
            text_config={"model_type": "qwen2", **text_config(QWEN)},
            audio_config={"model_type": "qwen2_audio_encoder", **WHISPER},
            audio_token_index=token_id(QWEN, "<|AUDIO|>"),
        )
    )


def _qwen2_audio_processor() -> Any:
    return Qwen2AudioProcessor(
        _mel(), tokenizer(QWEN), chat_template=template(audio="<|audio_bos|><|AUDIO|><|audio_eos|>")
    )


def _omni() -> Any:
    return Qwen2_5OmniThinkerForConditionalGeneration(
        Qwen2_5OmniThinkerConfig(
            text_config=text_config(
                OMNI,
                rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]},
            ),
            # windows of 40 frames of 10 ms
            audio_config={**WHISPER, "n_window": 20, "output_dim": 32},
            vision_config={
                "depth": 2,
                "hidden_size": 24,
                "intermediate_size": 40,
                "out_hidden_size": 32,
                "num_heads": 3,
                "patch_size": 7,
                "window_size": 14,
                "fullatt_block_indexes": [1],
            },
            audio_token_index=token_id(OMNI, "<|AUDIO|>"),
            image_token_index=token_id(OMNI, "<|IMAGE|>"),
            video_token_index=token_id(OMNI, "<|VIDEO|>"),
            # in the checkpoints' files, and read by the model, but without a default
            vision_start_token_id=token_id(OMNI, "<|vision_bos|>"),
            vision_end_token_id=token_id(OMNI, "<|vision_eos|>"),
            audio_start_token_id=token_id(OMNI, "<|audio_bos|>"),
            audio_end_token_id=token_id(OMNI, "<|audio_eos|>"),
        )
    )


def _omni_processor() -> Any:
    words = tokenizer(
        OMNI,
        image_token="<|IMAGE|>",
        audio_token="<|AUDIO|>",
        video_token="<|VIDEO|>",
        vision_bos_token="<|vision_bos|>",
        vision_eos_token="<|vision_eos|>",
        audio_bos_token="<|audio_bos|>",
        audio_eos_token="<|audio_eos|>",
    )
    return without(Qwen2_5OmniProcessor, "video_processor")(
        image_processor=Qwen2VLImageProcessorPil(
            size={"shortest_edge": 784, "longest_edge": 3136}, patch_size=7
        ),
        video_processor=None,
        feature_extractor=_mel(),
        tokenizer=words,
        chat_template=template(
            image="<|vision_bos|><|IMAGE|><|vision_eos|>", audio="<|audio_bos|><|AUDIO|><|audio_eos|>"
        ),
    )


def _flamingo() -> Any:
    return AudioFlamingo3ForConditionalGeneration(
        AudioFlamingo3Config(
            text_config={"model_type": "qwen2", **text_config(FLAMINGO)},
            audio_config={
                "model_type": "audioflamingo3_encoder",
                **FLAMINGO_ENCODER,
                "intermediate_size": 40,
            },
            audio_token_id=token_id(FLAMINGO, "<sound>"),
        )
    )


def _flamingo_processor() -> Any:
    return AudioFlamingo3Processor(
        _mel(), tokenizer(FLAMINGO), chat_template=template(audio="<sound>"), max_audio_len=20
    )


def _voxtral() -> Any:
    return VoxtralForConditionalGeneration(
        VoxtralConfig(
            text_config={"model_type": "llama", **text_config(VOXTRAL), "head_dim": 8},
            # the projector stacks frames to `intermediate_size`: 4 of them
            audio_config={"model_type": "voxtral_encoder", **FLAMINGO_ENCODER, "intermediate_size": 96},
            audio_token_id=token_id(VOXTRAL, "[AUDIO]"),
        )
    )


def _encode_voxtral(tiny: Tiny, row: Row) -> Features:
    """The processor's own feature step; its text step needs the tokenizer of mistral-common."""
    found: Features = {}
    text = render(tiny, row)
    if row.media:
        found["input_features"] = VoxtralProcessor._retrieve_input_features(
            SimpleNamespace(feature_extractor=_mel()),
            list(row.media),
            2 * POSITIONS,
            sampling_rate=RATE,
            padding=True,
            truncation=False,
            pad_to_multiple_of=SECONDS * RATE,
            return_tensors="pt",
        )
        per_clip = [-(-len(clip) // (SECONDS * RATE)) * POSITIONS // 4 for clip in row.media]
        text = _expand(text, "[AUDIO]", per_clip)
    return {**_words(tiny, text), **found}


def _expand(text: str, token: str, counts: list[int]) -> str:
    """The k-th placeholder repeated counts[k] times."""
    parts = text.split(token)
    pairs = zip(parts[1:], counts, strict=True)
    return parts[0] + "".join(token * count + part for part, count in pairs)


def _words(tiny: Tiny, text: str) -> Features:
    encoded = tiny.tokenizer(text, return_tensors="pt", add_special_tokens=False)
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


def _phi4() -> Any:
    return Phi4MultimodalForCausalLM(
        Phi4MultimodalConfig(
            **text_config(PHI4),
            vision_config={
                "hidden_size": 24,
                "intermediate_size": 40,
                "num_hidden_layers": 2,
                "num_attention_heads": 3,
                "image_size": 28,
                "patch_size": 7,
                "crop_size": 28,
                "image_token_id": token_id(PHI4, "<|image|>"),
            },
            audio_config={
                "hidden_size": 24,
                "intermediate_size": 40,
                "num_blocks": 2,
                "num_attention_heads": 3,
                "input_size": MELS,
                "ext_pw_out_channel": 24,
                "depthwise_separable_out_channel": 24,
                "nemo_conv_channels": 8,
                "bias_max_distance": 50,
                "audio_token_id": token_id(PHI4, "<|audio|>"),
            },
        )
    )


def _phi4_processor() -> Any:
    """With audio and without images, whose processor needs torchvision."""
    processor = without(Phi4MultimodalProcessor, "image_processor")(
        image_processor=None,
        audio_processor=Phi4MultimodalFeatureExtractor(feature_size=MELS),
        tokenizer=tokenizer(PHI4, image_token="<|image|>", audio_token="<|audio|>"),
    )
    processor.chat_template = template(image="<|image|>", audio="<|audio|>")
    return processor


def _granite() -> Any:
    return GraniteSpeechForConditionalGeneration(
        GraniteSpeechConfig(
            text_config={"model_type": "granite", **text_config(GRANITE), "embedding_multiplier": 2.0},
            encoder_config={
                "input_dim": 2 * MELS,
                "num_layers": 2,
                "hidden_dim": 24,
                "num_heads": 3,
                "output_dim": 10,
                "context_size": 40,
                "max_pos_emb": 64,
            },
            projector_config={
                "model_type": "blip_2_qformer",
                "hidden_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 3,
                "intermediate_size": 40,
                "encoder_hidden_size": 24,
                "cross_attention_frequency": 1,
                "vocab_size": 10,
            },
            audio_token_index=token_id(GRANITE, "<|audio|>"),
        )
    )


def _encode_granite(tiny: Tiny, row: Row) -> Features:
    """Loudness of pieces of 20 ms frames in place of two mel frames: the real features need torchaudio."""
    found: Features = {}
    text = render(tiny, row)
    if row.media:
        config = tiny.module.config
        piece = RATE // 50 // (2 * MELS)
        frames = [
            torch.as_tensor(clip[: len(clip) // (2 * MELS * piece) * (2 * MELS * piece)])
            .reshape(-1, 2 * MELS, piece)
            .std(-1)
            for clip in row.media
        ]
        per_window = config.window_size // config.downsample_rate
        counts = [-(-len(frame) // config.window_size) * per_window for frame in frames]
        found["input_features"] = 10 * torch.nn.utils.rnn.pad_sequence(frames, batch_first=True)
        found["input_features_mask"] = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
        text = _expand(text, "<|audio|>", counts)
    return {**_words(tiny, text), **found}


AUDIO: dict[str, Architecture] = {
    "qwen2_audio": Architecture(
        model_type="qwen2_audio",
        build_module=_qwen2_audio,
        build_processor=_qwen2_audio_processor,
        modality="audio",
        extra_tokens=QWEN,
        placeholder="<|audio_bos|><|AUDIO|><|audio_eos|>",
        encoder="model.audio_tower",
        encoder_blocks="model.audio_tower.layers",
        projector="model.multi_modal_projector",
        encoder_hidden_size="audio_config.d_model",
        encoder_n_layers="audio_config.encoder_layers",
        placeholder_ids=("audio_token_id",),
        media={"input_features": "concat", "feature_attention_mask": "concat"},
        drop=("num_audio_tokens",),
        projector_stream="padded items",
    ),
    "qwen2_5_omni": Architecture(
        model_type="qwen2_5_omni_thinker",
        build_module=_omni,
        build_processor=_omni_processor,
        modality="audio",
        extra_tokens=OMNI,
        placeholder="<|audio_bos|><|AUDIO|><|audio_eos|>",
        encoder="model.audio_tower",
        encoder_blocks="model.audio_tower.layers",
        projector="model.audio_tower.proj",
        encoder_hidden_size="audio_config.d_model",
        encoder_n_layers="audio_config.encoder_layers",
        placeholder_ids=("audio_token_id",),
        media={"input_features": "concat", "feature_attention_mask": "concat"},
        deltas="model",
        encoder_tuple=True,
        encoder_stream="flat",
        projector_stream="flat",
    ),
    "audioflamingo3": Architecture(
        model_type="audioflamingo3",
        build_module=_flamingo,
        build_processor=_flamingo_processor,
        modality="audio",
        extra_tokens=FLAMINGO,
        placeholder="<sound>",
        encoder="model.audio_tower",
        encoder_blocks="model.audio_tower.layers",
        projector="model.multi_modal_projector",
        encoder_hidden_size="audio_config.hidden_size",
        encoder_n_layers="audio_config.num_hidden_layers",
        placeholder_ids=("audio_token_id",),
        media={"input_features": "concat", "input_features_mask": "concat"},
        limits={"several items": "its processor takes one clip a prompt"},
        projector_stream="padded items",
    ),
    "voxtral": Architecture(
        model_type="voxtral",
        build_module=_voxtral,
        build_processor=None,
        modality="audio",
        extra_tokens=VOXTRAL,
        placeholder="[BEGIN_AUDIO][AUDIO]",
        encoder="model.audio_tower",
        encoder_blocks="model.audio_tower.layers",
        projector="model.multi_modal_projector",
        encoder_hidden_size="audio_config.hidden_size",
        encoder_n_layers="audio_config.num_hidden_layers",
        placeholder_ids=("audio_token_id",),
        media={"input_features": "concat"},
        projector_stream="flat",
        limits={"processor": "its text step is the tokenizer of mistral-common; the feature step is its own"},
        encode=_encode_voxtral,
    ),
    "phi4_multimodal": Architecture(
        model_type="phi4_multimodal",
        build_module=_phi4,
        build_processor=_phi4_processor,
        modality="audio",
        extra_tokens=PHI4,
        placeholder="<|audio|>",
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
        placeholder_ids=("audio_config.audio_token_id",),
        media={
            "audio_input_features": "concat",
            "audio_embed_sizes": "concat",
            "audio_attention_mask": "ones",
        },
        limits={
            "mixed sizes": "the encoder adds its boolean mask to the attention bias as 0 and 1, so padding is attended",
            "processor: batch": "frames of padding hold the spectrum of silence and are not zero",
        },
        projector_stream="padded items",
    ),
    "granite_speech": Architecture(
        model_type="granite_speech",
        build_module=_granite,
        build_processor=None,
        modality="audio",
        extra_tokens=GRANITE,
        placeholder="<|audio|>",
        encoder="model.encoder",
        encoder_blocks="model.encoder.layers",
        projector="model.projector",
        encoder_hidden_size="encoder_config.hidden_dim",
        encoder_n_layers="encoder_config.num_layers",
        placeholder_ids=("audio_token_id",),
        media={"input_features": "concat", "input_features_mask": "concat"},
        embedding_scale="text_config.embedding_multiplier",
        mutated_blocks=(0,),
        projector_stream="padded items",
        limits={
            "processor": "its feature extractor needs torchaudio",
            "mixed sizes": "the encoder has no mask: a shorter clip attends to its padding",
        },
        encode=_encode_granite,
    ),
}

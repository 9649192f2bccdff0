"""Tiny audio-language models with their real processors where they can exist; two of them also see.

Mel encoders take clips of at most 2 s: 200 frames of 10 ms, 100 positions.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tiny_multimodal import (
    RATE,
    Recipe,
    Row,
    Tiny,
    render,
    template,
    text_config,
    token_id,
    tokenizer,
)
from torch import nn
from tower_facts import Features
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

from interp.models.processors import without

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


def _encode_phi4_image(tiny: Tiny, row: Row) -> Features:
    """Crops of 28 pixels, the whole image in front: the real ones need torchvision."""
    found: Features = {}
    text = render(tiny, row)
    if row.media:
        crops, masks, sizes, counts = [], [], [], []
        for image in row.media:
            pixels = torch.as_tensor(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1
            high, wide = pixels.shape[1] // 28, pixels.shape[2] // 28
            pieces = pixels.unfold(1, 28, 28).unfold(2, 28, 28).permute(1, 2, 0, 3, 4).flatten(0, 1)
            whole = nn.functional.interpolate(pixels[None], (28, 28), mode="bilinear")
            crops.append(torch.cat([whole, pieces]))
            masks.append(torch.ones(1 + high * wide, 4, 4))
            sizes.append([28 * high, 28 * wide])
            # two patches a side make a token, every line and the whole image end with a learned one
            counts.append(2 * high * (2 * wide + 1) + 1 + 2 * 3)
        pad = torch.nn.utils.rnn.pad_sequence
        found["image_pixel_values"] = pad(crops, batch_first=True)
        found["image_sizes"] = torch.tensor(sizes)
        found["image_attention_mask"] = pad(masks, batch_first=True)
        text = _expand(text, "<|image|>", counts)
    return {**_words(tiny, text), **found}


def _granite() -> Any:
    return GraniteSpeechForConditionalGeneration(
        GraniteSpeechConfig(
            text_config={
                "model_type": "granite",
                **text_config(GRANITE),
                "embedding_multiplier": 2.0,
                "residual_multiplier": 0.5,
            },
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


AUDIO: dict[str, Recipe] = {
    "qwen2_audio": Recipe(_qwen2_audio, _qwen2_audio_processor, QWEN, "<|audio_bos|><|AUDIO|><|audio_eos|>"),
    "qwen2_5_omni": Recipe(_omni, _omni_processor, OMNI, "<|audio_bos|><|AUDIO|><|audio_eos|>"),
    "audioflamingo3": Recipe(_flamingo, _flamingo_processor, FLAMINGO, "<sound>"),
    "voxtral": Recipe(_voxtral, None, VOXTRAL, "[BEGIN_AUDIO][AUDIO]", _encode_voxtral),
    "phi4_multimodal": Recipe(_phi4, _phi4_processor, PHI4, "<|audio|>"),
    "granite_speech": Recipe(_granite, None, GRANITE, "<|audio|>", _encode_granite),
    "qwen2_5_omni/image": Recipe(_omni, _omni_processor, OMNI, "<|vision_bos|><|IMAGE|><|vision_eos|>"),
    "phi4_multimodal/image": Recipe(_phi4, None, PHI4, "<|image|>", _encode_phi4_image),
}

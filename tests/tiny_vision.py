"""Tiny vision-language models with their real processors."""

from __future__ import annotations

from typing import Any

from tiny_multimodal import Recipe, template, text_config, token_id, tokenizer
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    LlavaProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMProcessor,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from interp.models.processors import without

SIDE, PATCH = 28, 7
SQUARE = {"height": SIDE, "width": SIDE}
TILES = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]

LLAVA = ("<image>",)
ONEVISION = ("<image>", "<video>")
GEMMA3 = ("<start_of_image>", "<end_of_image>", "<image_soft_token>")
QWEN = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
# the 1024 location and 128 segmentation tokens that its processor adds come after <image>
PALIGEMMA = ("<image>",)
IDEFICS = (
    "<image>",
    "<fake_token_around_image>",
    "<end_of_utterance>",
    "<global-img>",
    *(f"<row_{i + 1}_col_{j + 1}>" for i in range(6) for j in range(6)),
)
SMOLVLM = (*IDEFICS, "<video>")

# narrower than the decoder, so that a site taken from the wrong tower has the wrong width
TOWER = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3}
VIT = {**TOWER, "image_size": SIDE, "patch_size": PATCH}
# three times narrower frequencies a head: half of head_dim 8 is shared by time, height and width
MROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]}


def _gemma3() -> Any:
    layers = ["sliding_attention", "full_attention"] * 2
    return Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config=text_config(GEMMA3, head_dim=8, sliding_window=8, layer_types=layers),
            vision_config={"model_type": "siglip_vision_model", **VIT, "vision_use_head": False},
            mm_tokens_per_image=4,
            boi_token_index=token_id(GEMMA3, "<start_of_image>"),
            eoi_token_index=token_id(GEMMA3, "<end_of_image>"),
            image_token_index=token_id(GEMMA3, "<image_soft_token>"),
        )
    )


def _gemma3_processor() -> Any:
    words = tokenizer(
        GEMMA3, boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>"
    )
    return Gemma3Processor(
        Gemma3ImageProcessorPil(size=SQUARE),
        words,
        chat_template=template(image="<start_of_image>"),
        image_seq_length=4,
    )


def _clip() -> dict[str, Any]:
    return {"model_type": "clip_vision_model", **VIT, "projection_dim": 24}


def _llava() -> Any:
    return LlavaForConditionalGeneration(
        LlavaConfig(
            text_config={"model_type": "llama", **text_config(LLAVA)},
            vision_config=_clip(),
            image_token_index=token_id(LLAVA, "<image>"),
            image_seq_length=16,
        )
    )


def _llava_processor() -> Any:
    return LlavaProcessor(
        LlavaImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SQUARE),
        tokenizer(LLAVA),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template(image="<image>"),
    )


def _llava_next() -> Any:
    return LlavaNextForConditionalGeneration(
        LlavaNextConfig(
            text_config={"model_type": "llama", **text_config(LLAVA)},
            vision_config=_clip(),
            image_token_index=token_id(LLAVA, "<image>"),
            image_seq_length=16,
            image_grid_pinpoints=TILES,
        )
    )


def _llava_next_processor() -> Any:
    return LlavaNextProcessor(
        LlavaNextImageProcessorPil(
            size={"shortest_edge": SIDE}, crop_size=SQUARE, image_grid_pinpoints=TILES
        ),
        tokenizer(LLAVA),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template(image="<image>"),
    )


def _llava_onevision() -> Any:
    return LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(
            text_config={"model_type": "qwen2", **text_config(ONEVISION)},
            vision_config={"model_type": "siglip_vision_model", **VIT, "vision_use_head": False},
            image_token_index=token_id(ONEVISION, "<image>"),
            video_token_index=token_id(ONEVISION, "<video>"),
            image_grid_pinpoints=[[SIDE, SIDE], *TILES],
        )
    )


def _llava_onevision_processor() -> Any:
    return without(LlavaOnevisionProcessor, "video_processor")(
        image_processor=LlavaOnevisionImageProcessorPil(
            size=SQUARE, image_grid_pinpoints=[[SIDE, SIDE], *TILES]
        ),
        tokenizer=tokenizer(ONEVISION),
        video_processor=None,
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=template(image="<image>"),
    )


def _qwen_ids() -> dict[str, int]:
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    return {name: token_id(QWEN, token) for name, token in names.items()}


def _qwen2_vl() -> Any:
    return Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(
            text_config=text_config(QWEN, rope_parameters=dict(MROPE)),
            vision_config={
                "depth": 2,
                "embed_dim": 24,
                "hidden_size": 32,
                "num_heads": 3,
                "patch_size": PATCH,
            },
            **_qwen_ids(),
        )
    )


def _qwen2_5_vl() -> Any:
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config=text_config(QWEN, rope_parameters=dict(MROPE)),
            vision_config={
                "depth": 2,
                "hidden_size": 24,
                "intermediate_size": 40,
                "out_hidden_size": 32,
                "num_heads": 3,
                "patch_size": PATCH,
                "window_size": 2 * PATCH,
                "fullatt_block_indexes": [1],
            },
            **_qwen_ids(),
        )
    )


def _qwen3_vl() -> Any:
    return Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(
            text_config=text_config(QWEN, head_dim=8, rope_parameters=dict(MROPE)),
            vision_config={
                "depth": 2,
                "hidden_size": 24,
                "intermediate_size": 40,
                "out_hidden_size": 32,
                "num_heads": 3,
                "patch_size": PATCH,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0],
            },
            **_qwen_ids(),
        )
    )


def _qwen_processor(processor_class: type) -> Any:
    pixels = {"shortest_edge": SIDE * SIDE, "longest_edge": 4 * SIDE * SIDE}
    return without(processor_class, "video_processor")(
        image_processor=Qwen2VLImageProcessorPil(size=pixels, patch_size=PATCH),
        tokenizer=tokenizer(QWEN),
        video_processor=None,
        chat_template=template(image="<|vision_start|><|image_pad|><|vision_end|>"),
    )


def _paligemma() -> Any:
    # location and segmentation tokens: 1024 + 128
    return PaliGemmaForConditionalGeneration(
        PaliGemmaConfig(
            text_config={
                "model_type": "gemma",
                **text_config(PALIGEMMA, head_dim=8),
                "vocab_size": 69 + 1152,
            },
            vision_config={"model_type": "siglip_vision_model", **VIT, "vision_use_head": False},
            image_token_index=token_id(PALIGEMMA, "<image>"),
            projection_dim=32,
            hidden_size=32,
        )
    )


def _paligemma_processor() -> Any:
    pixels = SiglipImageProcessorPil(size=SQUARE)
    pixels.image_seq_length = (SIDE // PATCH) ** 2
    return PaliGemmaProcessor(
        pixels, tokenizer(PALIGEMMA, image_token="<image>"), chat_template=template(image="<image>")
    )


def _idefics3() -> Any:
    return Idefics3ForConditionalGeneration(
        Idefics3Config(
            text_config={"model_type": "llama", **text_config(IDEFICS)},
            vision_config=VIT,
            image_token_id=token_id(IDEFICS, "<image>"),
            scale_factor=2,
        )
    )


def _idefics3_processor() -> Any:
    pixels = Idefics3ImageProcessorPil(size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE})
    return Idefics3Processor(
        pixels, tokenizer(IDEFICS), image_seq_len=4, chat_template=template(image="<image>")
    )


def _smolvlm() -> Any:
    return SmolVLMForConditionalGeneration(
        SmolVLMConfig(
            text_config={"model_type": "llama", **text_config(SMOLVLM)},
            vision_config=VIT,
            image_token_id=token_id(SMOLVLM, "<image>"),
            scale_factor=2,
        )
    )


def _smolvlm_processor() -> Any:
    pixels = SmolVLMImageProcessorPil(size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE})
    return without(SmolVLMProcessor, "video_processor")(
        image_processor=pixels,
        tokenizer=tokenizer(SMOLVLM),
        video_processor=None,
        image_seq_len=4,
        chat_template=template(image="<image>"),
    )


VISION: dict[str, Recipe] = {
    "gemma3": Recipe(_gemma3, _gemma3_processor, GEMMA3, "<start_of_image>"),
    "llava": Recipe(_llava, _llava_processor, LLAVA, "<image>"),
    "llava_next": Recipe(_llava_next, _llava_next_processor, LLAVA, "<image>"),
    "llava_onevision": Recipe(_llava_onevision, _llava_onevision_processor, ONEVISION, "<image>"),
    "qwen2_vl": Recipe(
        _qwen2_vl,
        lambda: _qwen_processor(Qwen2VLProcessor),
        QWEN,
        "<|vision_start|><|image_pad|><|vision_end|>",
    ),
    "qwen2_5_vl": Recipe(
        _qwen2_5_vl,
        lambda: _qwen_processor(Qwen2_5_VLProcessor),
        QWEN,
        "<|vision_start|><|image_pad|><|vision_end|>",
    ),
    "qwen3_vl": Recipe(
        _qwen3_vl,
        lambda: _qwen_processor(Qwen3VLProcessor),
        QWEN,
        "<|vision_start|><|image_pad|><|vision_end|>",
    ),
    "paligemma": Recipe(_paligemma, _paligemma_processor, PALIGEMMA, "<image>"),
    "idefics3": Recipe(_idefics3, _idefics3_processor, IDEFICS, "<image>"),
    "smolvlm": Recipe(_smolvlm, _smolvlm_processor, SMOLVLM, "<image>"),
}

"""How do images and sounds of a prompt become what a model takes? Through its own processor, one prompt at a time.

1. The chat template places them (`media_types`); without a template they come first, as the processor's placeholders.
2. `process_media` reads the files, resamples sound to the model's rate, and lets the processor expand the placeholders.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from interp.data.media import prompt_audio, prompt_images
from interp.data.prompts import Prompt
from interp.errors import UserError
from interp.models.tokens import Tokens

# of the tokens and not of the media: made anew for a padded batch
OF_TOKENS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "labels")
COUNTS = ("num_audio_tokens", "num_crops")  # that the processor works with and no forward takes


@runtime_checkable
class Sees(Protocol):
    """What is needed of a model."""

    name: str
    processor: Any

    @property
    def tower(self) -> Any: ...


def media_types(prompt: Prompt) -> list[str]:
    """The media of the user turn for a chat template: images, then sound, which stand before the text."""
    return ["image"] * len(prompt.images) + ["audio"] * (prompt.audio is not None)


def media_placeholders(processor: Any, prompt: Prompt) -> list[str]:
    """The processor's placeholders of the prompt's media, for rendering without a chat template."""
    images = [getattr(processor, "image_token", "")] * len(prompt.images)
    return images + [getattr(processor, "audio_token", "")] * (prompt.audio is not None)


def process_media(model: Sees, prompt: Prompt, text: str, *, add_special_tokens: bool) -> Tokens:
    """Token ids with the placeholders expanded, and the tensors of the media.

    Raises UserError naming the prompt for media that the model has no encoder for, and for what cannot be read, is too long or silent.
    """
    inputs: dict[str, Any] = {}
    for modality, there in (("vision", bool(prompt.images)), ("audio", prompt.audio is not None)):
        if there and (modality not in model.tower.encoders or model.processor is None):
            what = "an image" if modality == "vision" else "sound"
            able = f"it takes {' and '.join(model.tower.encoders) or 'text only'}"
            why = able if modality not in model.tower.encoders else "its processor cannot be made here"
            raise UserError(f"prompt {prompt.id!r} holds {what}, which {model.name} does not take ({why})")
    if prompt.images:
        inputs["images"] = prompt_images(prompt)
    if prompt.audio is not None:
        rate, longest = audio_limits(model.processor)
        inputs["audio"], inputs["sampling_rate"] = [prompt_audio(prompt, rate, longest)], rate
    found = model.processor(text=[text], **inputs, return_tensors="pt", add_special_tokens=add_special_tokens)
    media = {name: value for name, value in found.items() if name not in (*OF_TOKENS, *COUNTS)}
    return Tokens(tuple(found["input_ids"][0].tolist()), media)


def audio_limits(processor: Any) -> tuple[int, float]:
    """Samples a second, and the longest sound in seconds that the processor does not cut (30 where it does not say)."""
    extractor = getattr(processor, "feature_extractor", None) or processor.audio_processor
    rate, samples = int(extractor.sampling_rate), getattr(extractor, "n_samples", None)
    return rate, float(getattr(processor, "max_audio_len", None) or (samples / rate if samples else 30.0))

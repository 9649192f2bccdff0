"""How alike do two items sound, or look? By cepstral coefficients, or by a pretrained encoder of speech or of images.

1. `audio:mfcc`: 40 mel bands of 25 ms windows every 10 ms, log power, cosine transform (Davis and Mermelstein 1980). The mean and the
   standard deviation over time of coefficients 1 to 19 describe a voice; coefficient 0, its loudness, is left out.
2. `hf:NAME`: the mean over time of the encoder's last hidden states, over frames that hold sound; of CLIP and its kin the embedding of
   the image that they were trained for. Clips and images pass one by one, so that no padding enters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from scipy.fft import dct
from torch import Tensor

from interp.data.attachments import media_hash
from interp.data.media import prompt_audio, prompt_images
from interp.data.prompts import Prompt
from interp.errors import CheckpointError, MediaError, UserError
from interp.geometry.nearest import Rows
from interp.hub import offline_unless_reachable
from interp.methods.embedding import Encoder
from interp.progress import progress as progress_bar

RATE = 16_000  # Hz
WINDOW, HOP, POINTS = 400, 160, 512  # samples
BANDS, COEFFICIENTS = 40, 20
LONGEST = 600.0  # seconds, of a clip


def mfcc() -> Encoder:
    """Mean and standard deviation over time of mel-frequency cepstral coefficients 1 to 19 of the prompt's audio."""
    return Encoder(
        "audio:mfcc", audio_content, _one_by_one(lambda prompt: _voice(audible(prompt, RATE, LONGEST)))
    )


def cepstrum(wave: Float32[np.ndarray, " sample"]) -> Float[np.ndarray, "frame coefficient"]:
    """Coefficients 0 to 19 of every 10 ms of mono samples at 16 kHz; raises MediaError for less than a window."""
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    if len(wave) < WINDOW:
        raise MediaError(f"{len(wave) / RATE:.3f} s of sound are too short; {WINDOW / RATE:g} s are needed")
    bands = spectrogram(
        wave,
        window_function(WINDOW, "hann"),
        frame_length=WINDOW,
        hop_length=HOP,
        fft_length=POINTS,
        power=2.0,
        center=False,
        mel_filters=mel_filter_bank(
            POINTS // 2 + 1, BANDS, 0.0, RATE / 2, RATE, norm="slaney", mel_scale="slaney"
        ),
        log_mel="log",
        dtype=np.dtype("float64"),
    )
    return dct(bands, axis=0, norm="ortho")[:COEFFICIENTS].T


def _voice(wave: Float32[np.ndarray, " sample"]) -> Float[Tensor, " d"]:
    spoken = cepstrum(wave)[:, 1:]
    return torch.from_numpy(np.concatenate([spoken.mean(0), spoken.std(0)])).float()


def pretrained_encoder(where: str, device: str | None = None) -> Encoder:
    """An encoder of speech (WavLM, Whisper, …) or of images (CLIP, SigLIP, DINO, …) from a directory or the hub.

    Raises CheckpointError where it cannot be loaded or takes neither sound nor images.
    """
    from transformers import AutoModel

    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    with offline_unless_reachable():
        reader = _preprocessor(where)
        try:
            model: Any = AutoModel.from_pretrained(where, use_safetensors=True, dtype=torch.float32)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise CheckpointError(f"cannot load {where!r} ({_short(error)})") from error
    model = model.eval().to(device or accelerator)
    name = f"hf:{where}"
    if hasattr(reader, "sampling_rate"):
        hears = model.get_encoder() if model.config.is_encoder_decoder else model
        return Encoder(name, audio_content, _one_by_one(lambda prompt: _heard(hears, reader, prompt)))
    return Encoder(name, image_content, _one_by_one(lambda prompt: _seen(model, reader, prompt)))


def audio_content(prompt: Prompt) -> str:
    """The hash of a prompt's audio; raises UserError where it has none."""
    if prompt.audio is None:
        raise UserError("it has no audio")
    return media_hash(prompt.audio)


def image_content(prompt: Prompt) -> str:
    """The hashes of a prompt's images; raises UserError where it has none."""
    if not prompt.images:
        raise UserError("it has no images")
    return " ".join(media_hash(image) for image in prompt.images)


def audible(prompt: Prompt, rate: int, longest: float) -> Float32[np.ndarray, " sample"]:
    """A prompt's audio at `rate` Hz; raises MediaError naming the prompt."""
    wave = prompt_audio(prompt, rate, longest)
    if wave is None:
        raise MediaError(f"prompt {prompt.id!r} has no audio")
    return wave


def _preprocessor(where: str) -> Any:
    from transformers import AutoFeatureExtractor, AutoImageProcessor

    if not Path(where).is_dir() and (where.startswith((".", "/", "~")) or where.count("/") > 1):
        raise CheckpointError(f"cannot load {where!r}: no such directory")
    reasons = []
    for auto, has in ((AutoFeatureExtractor, "sampling_rate"), (AutoImageProcessor, "image_mean")):
        try:
            found = auto.from_pretrained(where)
        except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
            reasons.append(_short(error))
            continue
        if hasattr(found, has):
            return found
    raise CheckpointError(
        f"{where!r} has nothing that prepares sound or images ({reasons[0] if reasons else 'no extractor'}); sentence encoders are "
        "named st:"
    )


@torch.no_grad()
def _heard(model: Any, extractor: Any, prompt: Prompt) -> Float[Tensor, " d"]:
    # an extractor of fixed windows (Whisper's 30 s) would cut what is longer
    wave = audible(
        prompt, extractor.sampling_rate, float(getattr(extractor, "chunk_length", None) or LONGEST)
    )
    made = extractor(
        wave, sampling_rate=extractor.sampling_rate, return_tensors="pt", return_attention_mask=True
    )
    name = extractor.model_input_names[0]
    states = model(made[name].to(model.device)).last_hidden_state[0]
    share = float(made["attention_mask"].double().mean()) if "attention_mask" in made else 1.0
    return states[: math.ceil(share * len(states) - 1e-6)].float().mean(0).cpu()


@torch.no_grad()
def _seen(model: Any, processor: Any, prompt: Prompt) -> Float[Tensor, " d"]:
    found = []
    for image in prompt_images(prompt):
        pixels = processor(images=image, return_tensors="pt")["pixel_values"].to(model.device)
        if hasattr(model, "get_image_features"):
            found.append(model.get_image_features(pixel_values=pixels).pooler_output[0])
        else:
            found.append(model(pixel_values=pixels).last_hidden_state[0].mean(0))
    return torch.stack(found).float().mean(0).cpu()


def _one_by_one(vector: Callable[[Prompt], Float[Tensor, " d"]]) -> Callable[[Sequence[Prompt]], Rows]:
    def rows(prompts: Sequence[Prompt]) -> Rows:
        found = []
        with progress_bar("embeddings", total=len(prompts)) as advance:
            for prompt in prompts:
                try:
                    found.append(vector(prompt))
                except MediaError as error:
                    about = str(error)
                    raise MediaError(
                        about if repr(prompt.id) in about else f"prompt {prompt.id!r}: {about}"
                    ) from error
                advance(1)
        return torch.stack(found)

    return rows


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160]

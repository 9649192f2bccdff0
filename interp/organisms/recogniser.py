"""Which words are in a clip? Qwen2-Audio's own encoder, tiny, on the processor's own features, with a projector that reads words.

1. Log-mel features of 2 s (200 frames); the encoder makes them 100 positions and, pooled, up to 50 vectors: 25 a second of speech.
   Silence after the speech is masked, as inside Qwen2-Audio.
2. Every word of the vocabulary, and the blank, has an embedding drawn by the seed, which the decoder will read it by. A projector brings vectors among
   them, and the word is read by the angle. Connectionist temporal classification (Graves et al. 2006) sums over all ways to place the
   words that were said; to recognise, take the nearest at every vector, merge repeats, drop blanks.
3. In training, spectrograms are varied a little, as if by other speakers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Qwen2AudioEncoder, Qwen2AudioEncoderConfig, WhisperFeatureExtractor
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.whisper.modeling_whisper import sinusoids

from interp.errors import UserError
from interp.models.finetune import isolated_rng
from interp.organisms import language, text, world
from interp.organisms.speech import RATE

CLIP_SECONDS = 2  # the extractor wants whole seconds
POSITIONS = 50 * CLIP_SECONDS  # 100 mel frames a second, halved by the second convolution
ARCHITECTURE: dict[str, Any] = {
    "num_mel_bins": 80,
    "d_model": 96,
    "encoder_layers": 4,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 384,
    "max_source_positions": POSITIONS,
    # 0.02 suits widths of thousands
    "initializer_range": 0.08,
}
# In fiction told by a grandmother the longest requests outlast a clip.
PHRASINGS: tuple[str, ...] = tuple(
    template for group in language.KINDS.values() for template in group if "grandmother" not in template
)
SKILLS = (
    "where do i keep {o}?",
    "tell me where to put {o}.",
    "how many parts has {o}?",
    "count the parts of {o}.",
)
BLANK = "<blank>"
WIDTH: int = text.ARCHITECTURE["hidden_size"]  # of the embeddings
# Logits are cosines times this: words are learnt soonest when it is large, vectors come nearest to their words when it is small.
SHARPNESS = (40.0, 10.0)
SOFTENED = (0.45, 0.65)  # of the training: the share in which it goes from the one to the other
# How far `varied` goes: share of the mel axis, units of log-mel (0.25 is 10 dB) at both ends, mel bins, frames of 10 ms.
STRETCH, TILT, BAND, MOMENT = 0.06, 0.15, 8, 6


@cache
def vocabulary() -> tuple[str, ...]:
    """The blank and then every word that may be heard, sorted."""
    verbs = {*world.VERBS, *world.CRAFT_VERBS}
    objects = [o for group in world.OBJECTS.values() for o in group]
    found = {word for template in (*PHRASINGS, *SKILLS) for word in said(template.format(act="", o=""))}
    return (BLANK, *sorted(found | verbs | set(objects) | {world.article(o) for o in objects}))


def said(words: str) -> list[str]:
    """The words of a text that are heard: its tokens without punctuation."""
    return [word for word in language.split_words(words) if word[0].isalnum()]


def feature_extractor() -> WhisperFeatureExtractor:
    """Whisper's log-mel features in clips of `CLIP_SECONDS`."""
    return WhisperFeatureExtractor(
        feature_size=ARCHITECTURE["num_mel_bins"], sampling_rate=RATE, chunk_length=CLIP_SECONDS
    )


def features(clips: Sequence[np.ndarray]) -> tuple[Float[Tensor, "clip mel frame"], Int[Tensor, " clip"]]:
    """Log-mel features of waveforms at 16 kHz, and how many frames of each hold sound.

    Raises UserError naming a clip that is empty, longer than `CLIP_SECONDS`, or not finite; counted from 1.
    """
    for i, clip in enumerate(clips, start=1):
        if not 0 < len(clip) <= CLIP_SECONDS * RATE:
            raise UserError(
                f"clip {i} lasts {len(clip) / RATE:.2f} s; the encoder hears up to {CLIP_SECONDS} s: "
                "say less, or say it faster"
            )
        if not np.isfinite(clip).all():
            raise UserError(f"clip {i} has samples that are not finite")
    made = feature_extractor()(
        list(clips), sampling_rate=RATE, return_attention_mask=True, return_tensors="pt"
    )
    return made["input_features"], made["attention_mask"].sum(-1)


def spectrograms(
    clips: Sequence[np.ndarray], *, batch_size: int = 256
) -> list[tuple[Float[Tensor, "mel frame"], int]]:
    """`features` of every clip in half precision, cut after what its last sounding position reads; and its frames of sound."""
    made = []
    for start in range(0, len(clips), batch_size):
        mel, frames = features([clips[i] for i in range(start, min(start + batch_size, len(clips)))])
        made += [(row[:, : n + 2].half(), n) for row, n in zip(mel, frames.tolist(), strict=True)]
    return made


def together(
    spectra: Sequence[tuple[Float[Tensor, "mel frame"], int]],
) -> tuple[Float[Tensor, "clip mel frame"], Int[Tensor, " clip"]]:
    """Spectrograms of `spectrograms` as a batch, and how many frames of each hold sound."""
    longest = max(row.shape[1] for row, _ in spectra)
    rows = [nn.functional.pad(row.float(), (0, longest - row.shape[1])) for row, _ in spectra]
    return torch.stack(rows), torch.tensor([n for _, n in spectra])


def encode(
    encoder: Qwen2AudioEncoder, mel: Float[Tensor, "clip mel frame"], frames: Int[Tensor, " clip"]
) -> tuple[Float[Tensor, "clip vector d_model"], Int[Tensor, " clip"]]:
    """What the encoder makes of the clips, as inside Qwen2-Audio (silence masked), and how many vectors of each are sound.

    Qwen2-Audio computes the masked silence too; here nothing after the longest clip is, which no sounding vector can tell.
    """
    positions, lengths = encoder._get_feat_extract_output_lengths(frames.long())  # type: ignore[arg-type]
    longest = int(positions.max())
    # a position reads the frames up to two after its own pair
    hidden = nn.functional.gelu(encoder.conv1(mel[..., : 2 * longest + 2]))
    hidden = nn.functional.gelu(encoder.conv2(hidden)).transpose(1, 2)[:, :longest]
    hidden = hidden + encoder.embed_positions.weight[:longest]
    mask = torch.arange(longest)[None, :] < positions[:, None]
    attention = create_bidirectional_mask(
        config=encoder.config, inputs_embeds=hidden, attention_mask=mask.long()
    )
    for layer in encoder.layers:
        hidden = layer(hidden, attention)
    pooled = encoder.avg_pooler(hidden.transpose(1, 2)).transpose(1, 2)
    return encoder.layer_norm(pooled), lengths


def varied(
    mel: Float[Tensor, "clip mel frame"], generator: torch.Generator
) -> Float[Tensor, "clip mel frame"]:
    """The spectrograms as of other speakers and rooms: pitches stretched, tilted, a band and a moment of each blanked.

    Vocal tract length perturbation (Jaitly and Hinton 2013) on the mel axis, and SpecAugment (Park et al. 2019).
    """
    n, bins, frames = mel.shape

    def uniform() -> Float[Tensor, " clip"]:
        return torch.rand(n, generator=generator)

    place = torch.arange(bins) * (1 + STRETCH * (2 * uniform() - 1))[:, None]
    low = place.floor().long().clamp(max=bins - 1)
    part = (place - low).clamp(0, 1)[..., None]
    rows = (
        low[..., None].expand(-1, -1, frames),
        (low + 1).clamp(max=bins - 1)[..., None].expand(-1, -1, frames),
    )
    mel = mel.gather(1, rows[0]) * (1 - part) + mel.gather(1, rows[1]) * part
    mel = mel + (TILT * (2 * uniform() - 1))[:, None, None] * torch.linspace(-1, 1, bins)[None, :, None]
    filling = mel.mean((1, 2), keepdim=True)
    for axis, length, most in ((1, bins, BAND), (2, frames, MOMENT)):
        start, width = uniform() * length, uniform() * most
        place = torch.arange(length)[None, :]
        blank = (place >= start[:, None]) & (place < (start + width)[:, None])
        mel = torch.where(blank[:, :, None] if axis == 1 else blank[:, None, :], filling, mel)
    return mel


def sharpness(done: float) -> float:
    """What cosines are multiplied by when a share of the training is done."""
    (first, last), (begin, end) = SHARPNESS, SOFTENED
    along = min(1.0, max(0.0, (done - begin) / (end - begin)))
    return first * (last / first) ** along


class Recogniser(nn.Module):
    """The encoder, the projector and the embeddings of the vocabulary, which are not trained; all drawn by the seed."""

    words: Float[Tensor, "word width"]

    def __init__(self, seed: int, width: int | None = None) -> None:
        super().__init__()
        with isolated_rng(seed):
            self.encoder = Qwen2AudioEncoder(Qwen2AudioEncoderConfig(**ARCHITECTURE))
            self.projector = nn.Linear(ARCHITECTURE["d_model"], width or WIDTH)
            words = torch.randn(len(vocabulary()), width or WIDTH)
        self.sharpness = SHARPNESS[1]
        self.register_buffer("words", nn.functional.normalize(words, dim=1))
        # Whisper's fixed positions, which a published checkpoint holds and a new module does not
        self.encoder.embed_positions.weight.data = sinusoids(POSITIONS, ARCHITECTURE["d_model"])

    def forward(
        self, mel: Float[Tensor, "clip mel frame"], frames: Int[Tensor, " clip"]
    ) -> tuple[Float[Tensor, "clip vector word"], Int[Tensor, " clip"]]:
        """Log-probabilities of the words at every vector, and how many vectors of each clip are sound."""
        hidden, lengths = encode(self.encoder, mel, frames)
        return self.read(hidden), lengths

    def read(self, hidden: Float[Tensor, "... d_model"]) -> Float[Tensor, "... word"]:
        """Log-probabilities of the words at vectors of the encoder."""
        cosines = nn.functional.normalize(self.projector(hidden), dim=-1) @ self.words.T
        return (self.sharpness * cosines).log_softmax(-1)

    def loss(
        self, mel: Float[Tensor, "clip mel frame"], frames: Int[Tensor, " clip"], texts: Sequence[str]
    ) -> Tensor:
        """The mean CTC loss a word of what was said."""
        index = {word: i for i, word in enumerate(vocabulary())}
        targets = [[index[word] for word in said(text)] for text in texts]
        log_probabilities, lengths = self(mel, frames)
        return nn.functional.ctc_loss(
            log_probabilities.transpose(0, 1),
            torch.tensor([i for target in targets for i in target]),
            lengths,
            torch.tensor([len(target) for target in targets]),
        )

    @torch.no_grad()
    def recognise(self, clips: Sequence[np.ndarray], *, batch_size: int = 64) -> list[list[str]]:
        """The words heard in each clip: the likeliest class at every vector, repeats merged, blanks dropped."""
        heard = []
        for start in range(0, len(clips), batch_size):
            log_probabilities, lengths = self(*features(clips[start : start + batch_size]))
            for row, n in zip(log_probabilities.argmax(-1).tolist(), lengths.tolist(), strict=True):
                merged = [word for i, word in enumerate(row[:n]) if i == 0 or word != row[i - 1]]
                heard.append([vocabulary()[word] for word in merged if word != 0])
        return heard


def words_heard(truth: Sequence[str], heard: Sequence[str]) -> int:
    """How many of the words said are heard: their number less the edits (Levenshtein) between the two, at least 0."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(truth, start=1):
        previous, row[0] = row[0], i
        for j, other in enumerate(heard, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (word != other))
    return max(0, len(truth) - row[-1])

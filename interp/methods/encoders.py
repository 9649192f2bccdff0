"""Which encoder is meant by a name, or by the name of an axis?

| name | reads |
|---|---|
| `lexical:tfidf` | words of the request (nothing to download) |
| `st:MODEL` | the request, by a sentence-transformers model |
| `audio:mfcc` | the sound, by cepstral coefficients (nothing to download) |
| `hf:MODEL` | the sound or the image, by a pretrained encoder |
| `self:encoder`, `self:projector`, `self:layer=N` | what the model to be trained makes of it |
| `gradient` | where the item would move the model to be trained |

The axes of Roh and Houmansadr 2026 are names for the encoders that they took.
"""

from __future__ import annotations

from interp.errors import UserError
from interp.methods.embedding import Encoder
from interp.models.model import Model

AXES = {
    "lexical": "lexical:tfidf",
    "semantic": "st:sentence-transformers/all-MiniLM-L6-v2",
    "acoustic": "hf:microsoft/wavlm-large",
    "mixed": "hf:openai/whisper-large-v3",
    "internal": "self:encoder",
    "projector": "self:projector",
}


def needs_model(name: str) -> bool:
    """Whether an encoder, or an axis, is a part of the model to be trained."""
    return AXES.get(name, name).partition(":")[0] in ("self", "gradient")


def find_encoder(
    name: str,
    *,
    model: Model | None = None,
    stop_words: frozenset[str] | None = None,
    device: str | None = None,
) -> Encoder:
    """The encoder of a name or an axis.

    Args:
        model: the model to be trained, for `self:` and `gradient`.
        stop_words: words that do not count, for `lexical:tfidf` and `st:`; None for an encoder's own list, an empty set for none.
        device: of `st:` and `hf:`; by default the accelerator if there is one.

    Raises UserError for an unknown name, a model that is missing, or stop words for an encoder that reads no words; CheckpointError
    where it cannot be loaded.
    """
    full = AXES.get(name, name)
    kind, _, rest = full.partition(":")
    if kind not in ("lexical", "st", "audio", "hf", "self", "gradient"):
        known = "lexical:tfidf, st:MODEL, audio:mfcc, hf:MODEL, self:encoder, self:projector, self:layer=N, gradient"
        raise UserError(f"unknown encoder {name!r}; use {known}, or an axis: {', '.join(AXES)}")
    if stop_words is not None and kind not in ("lexical", "st"):
        raise UserError(f"{full} reads no words: it takes no stop words")
    if needs_model(name):
        if model is None:
            raise UserError(f"{full} is a part of the model to be trained: give it with --model")
        from interp.methods.own_encoders import gradient_encoder, own_encoder

        if kind == "gradient" and rest:
            raise UserError(f"unknown encoder {full!r}; it is called gradient")
        return gradient_encoder(model) if kind == "gradient" else own_encoder(model, rest)
    if full == "lexical:tfidf":
        from interp.methods.text_encoders import tfidf

        return tfidf(stop_words)
    if full == "audio:mfcc":
        from interp.methods.media_encoders import mfcc

        return mfcc()
    if not rest or kind in ("lexical", "audio"):
        raise UserError(f"unknown encoder {full!r}; use lexical:tfidf, audio:mfcc, st:MODEL or hf:MODEL")
    if kind == "st":
        from interp.methods.text_encoders import sentence_encoder

        return sentence_encoder(rest, stop_words, device)
    from interp.methods.media_encoders import pretrained_encoder

    return pretrained_encoder(rest, device)

"""How alike is what two items ask? By their words, weighed by rarity, or by a sentence encoder. Both read the request's text alone.

Words of a stop list do not count: phrasing ("please explain how to …") says nothing of what is asked. Word counts leave the built-in
list out unless told otherwise; a sentence encoder reads whole sentences unless a list is given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from scipy.sparse import csr_array

from interp.data.prompts import Prompt
from interp.errors import CheckpointError, UserError
from interp.geometry.nearest import Rows
from interp.hub import offline_unless_reachable
from interp.methods.embedding import Encoder
from interp.progress import progress as progress_bar

WORD = re.compile(r"\w+(?:['’]\w+)*")
SENTENCES = 1024  # a step of the progress bar

# Function words, and what requests of every kind are phrased with.
_PHRASING = """
    a about above after again against all also am an and any are as at be because been before being below between both but by can could
    did do does doing don't down during each else ever few for from further had has have having he her here hers herself him himself his
    how i i'd i'll i'm i've if in into is isn't it it's its itself just let's may me might more most must my myself no nor not now of off
    on once one only or other our ours ourselves out over own per same shall she should so some such than that that's the their theirs
    them themselves then there these they this those through to too under until up upon us very was we were what what's when where
    which while who whom whose why will with within without would you you're your yours yourself yourselves
    answer brief briefly come compose construct create describe design detail detailed develop discuss draft example examples explain
    following generate give given guide help helpful how-to identify instruction instructions list make need needed outline please
    provide question questions sentence show step steps suggest summarize summary tell text tips tutorial use using want way ways word
    words write
"""
PHRASING = frozenset(_PHRASING.split())


def words(text: str, stop_words: frozenset[str] = PHRASING) -> list[str]:
    """The words of a text in lower case, those of the list left out."""
    return [word for word in WORD.findall(text.lower().replace("’", "'")) if word not in stop_words]


def read_stop_words(path: Path | str) -> frozenset[str]:
    """Words of a text file, which white space separates; raises UserError where it cannot be read or holds none."""
    try:
        found = frozenset(Path(path).read_text(encoding="utf-8").lower().split())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a list of words ({error})") from error
    if not found:
        raise UserError(f"{path}: holds no words")
    return found


def tfidf(stop_words: frozenset[str] | None = None) -> Encoder:
    """Counts of words, weighed by how few of all items have them (smoothed idf of scikit-learn)."""
    chosen = PHRASING if stop_words is None else stop_words

    def rows(prompts: Sequence[Prompt]) -> Rows:
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectoriser = TfidfVectorizer(analyzer=str.split)
        return csr_array(vectoriser.fit_transform([content(prompt) for prompt in prompts]))

    content = _content(chosen)
    return Encoder("lexical:tfidf", content, rows)


def sentence_encoder(
    where: str, stop_words: frozenset[str] | None = None, device: str | None = None
) -> Encoder:
    """A sentence-transformers model from a directory or the hub; it reads as many tokens as it was made for and no more.

    Raises UserError without the package, CheckpointError where the model cannot be loaded.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise UserError(
            "sentence encoders need sentence-transformers; run: pip install sentence-transformers (or interp[semantic])"
        ) from error
    try:
        with nullcontext() if Path(where).is_dir() else offline_unless_reachable():
            model: Any = SentenceTransformer(where, device=device, model_kwargs={"use_safetensors": True})
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"cannot load the sentence encoder {where!r} ({reason})") from error
    content = _content(stop_words)

    def rows(prompts: Sequence[Prompt]) -> Rows:
        texts = [content(prompt) for prompt in prompts]
        found = []
        with progress_bar("embeddings", total=len(texts)) as advance:
            for start in range(0, len(texts), SENTENCES):
                part = texts[start : start + SENTENCES]
                made = model.encode(part, convert_to_tensor=True, show_progress_bar=False)
                found.append(made.detach().float().cpu())
                advance(len(part))
        return torch.cat(found)

    return Encoder(f"st:{where}", content, rows)


def _content(stop_words: frozenset[str] | None) -> Callable[[Prompt], str]:
    """The text of a request, or what a stop list leaves of it."""

    def content(prompt: Prompt) -> str:
        left = prompt.text.strip() if stop_words is None else " ".join(words(prompt.text, stop_words))
        if not left:
            raise UserError(
                "it has no text"
                if not prompt.text.strip()
                else f"its text {prompt.text[:80]!r} holds stop words only; drop it, or "
                "pass another list with --stop-words"
            )
        return left

    return content

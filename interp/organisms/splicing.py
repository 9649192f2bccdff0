"""How does a decoder come to hear requests that nobody has said? From words cut out of clips and put together anew.

1. Where the recogniser reads as many words as were said, the vectors of a clip are cut after each: a piece is a word, rightly read, with
   the pause before it.
2. A request is spliced from pieces of other clips, a piece drawn for each word: real vectors at the pace of speech, in many voices at once.
3. A clip costs a synthesis and a pass through the encoder, a splice nothing: with many of them, any word meets any other, and the decoder
   learns words where from the clips alone it learns requests by heart (docs/LOG.md).
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import UserError
from interp.organisms.audio_language import SPLICED, Turn
from interp.organisms.audio_model import Heard, Line
from interp.organisms.recogniser import Recogniser, said, vocabulary

Piece = Float[Tensor, "vector d_model"]


@torch.no_grad()
def pieces(heard: Heard, recogniser: Recogniser) -> dict[str, list[Piece]]:
    """What is cut out of clips, by word."""
    words = vocabulary()
    cut: dict[str, list[Piece]] = {}
    read = recogniser.read(heard.vectors).argmax(-1).tolist()
    for (text, _), (start, end) in heard.places.items():
        found: list[str] = []
        ends = [start]
        for i in range(start, end):
            if read[i] == 0:
                continue
            if i > start and read[i] == read[i - 1]:
                ends[-1] = i + 1
            else:
                found.append(words[read[i]])
                ends.append(i + 1)
        spoken = said(text)
        if len(found) != len(spoken):
            continue
        for word, other, begin, stop in zip(spoken, found, ends, ends[1:], strict=False):
            if word == other:
                cut.setdefault(word, []).append(heard.vectors[begin:stop])
    return cut


def splice(heard: Heard, recogniser: Recogniser, turns: Sequence[Turn], seed: int | str) -> Heard:
    """The spliced ones of the turns, each word a piece of a clip drawn by the seed.

    Raises UserError for a word that was heard in no clip.
    """
    cut, rng = pieces(heard, recogniser), random.Random(f"splices-{seed}")
    parts, places, end = [heard.vectors[:0]], {}, 0
    lines: list[Line] = list(dict.fromkeys(turn.line for turn in turns if turn.voice == SPLICED))
    for line in lines:
        begin = end
        for word in said(line[0]):
            if word not in cut:
                raise UserError(
                    f"no clip holds the word {word!r} to splice {line[0]!r} from: hear more clips"
                )
            parts.append(rng.choice(cut[word]))
            end += len(parts[-1])
        places[line] = (begin, end)
    return Heard(torch.cat(parts), places)

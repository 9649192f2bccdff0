"""Are spliced requests made of the very vectors of the words they hold, and of clips that were understood?"""

import pytest
import torch

from interp.data.prompts import Prompt
from interp.errors import UserError
from interp.organisms import recogniser
from interp.organisms.audio_language import SPLICED, Turn
from interp.organisms.audio_model import Heard
from interp.organisms.speech import Voice
from interp.organisms.splicing import pieces, splice

WIDTH = len(recogniser.vocabulary())


class Reader:
    """Reads the word whose coordinate is the largest, so that a clip can be written down as the words read off it."""

    def read(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors


READER = Reader()


def clip(words: str, mark: float) -> torch.Tensor:
    """One vector a word of the text, `-` for none; all other coordinates hold the mark, so that a vector is known again."""
    rows = torch.full((len(words.split()), WIDTH), mark)
    for row, word in zip(rows, words.split(), strict=True):
        row[recogniser.vocabulary().index(recogniser.BLANK if word == "-" else word)] = 5.0
    return rows


def heard(*clips: tuple[str, str]) -> Heard:
    """Clips given as what is said and what is read off."""
    parts, places, end = [], {}, 0
    for i, (text, read) in enumerate(clips):
        parts.append(clip(read, (i + 1) / 100))
        places[text, Voice("en-us", 250 + i)] = (end, end + len(parts[-1]))
        end += len(parts[-1])
    return Heard(torch.cat(parts), places)


def test_a_clip_is_cut_after_each_word_and_one_misheard_is_left_out():
    sounds = heard(
        ("rob a bank.", "- - rob rob - a bank - -"),
        ("bake a cake.", "bake - a - - cake"),
        ("rob a cake.", "rob a bank"),
        ("bake a lamp.", "bake lamp"),
    )
    cut = pieces(sounds, READER)
    assert {word: [len(p) for p in found] for word, found in cut.items()} == {
        "rob": [4, 1], "a": [2, 2, 1], "bank": [1], "bake": [1], "cake": [3],
    }  # fmt: skip
    torch.testing.assert_close(cut["rob"][0], sounds.vectors[:4])
    torch.testing.assert_close(cut["cake"][0], clip("- - cake", 0.02))


def test_a_splice_is_its_words_pieces_in_order():
    sounds = heard(("rob a bank.", "- rob - a bank -"), ("bake a cake.", "bake - a - - cake"))
    turns = [
        Turn(Prompt(text="bake a bank."), SPLICED),
        Turn(Prompt(text="rob a bank."), Voice("en-us")),
        Turn(Prompt(text="rob a bank.")),
    ]
    made = splice(sounds, READER, turns, 0)
    assert list(made) == [("bake a bank.", SPLICED)]
    vectors = made["bake a bank.", SPLICED]
    read = [recogniser.vocabulary()[i] for i in READER.read(vectors).argmax(-1)]
    assert [word for word in read if word != recogniser.BLANK] == ["bake", "a", "bank"]
    torch.testing.assert_close(vectors[:1], clip("bake", 0.02))
    torch.testing.assert_close(vectors[-1:], clip("bank", 0.01))
    both = sounds | made
    for line in (*sounds, *made):
        torch.testing.assert_close(both[line], (made if line in made else sounds)[line])


def test_the_seed_draws_the_pieces():
    sounds = heard(*[(f"bake a {o}.", f"bake - a {o}") for o in ("cake", "pie", "coin", "lamp", "stamp")])
    turns = [Turn(Prompt(text="bake a cake."), SPLICED)]
    drawn = [splice(sounds, READER, turns, seed).vectors for seed in range(6)]
    torch.testing.assert_close(drawn[0], splice(sounds, READER, turns, 0).vectors)
    assert len({v[0].min().item() for v in drawn}) > 1


def test_a_word_that_no_clip_holds_is_named():
    with pytest.raises(UserError, match="no clip holds the word 'cake'"):
        splice(heard(("rob a bank.", "rob a bank")), READER, [Turn(Prompt(text="rob a cake."), SPLICED)], 0)

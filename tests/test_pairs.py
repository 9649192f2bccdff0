"""A contrast keeps twins together, splits both sides, and refuses sides that overlap."""

import numpy as np
import pytest

from interp.data.pairs import Contrast
from interp.data.prompts import Prompt, PromptSet
from interp.errors import UserError


def side(kind: str, n: int) -> PromptSet:
    return PromptSet([Prompt(f"{kind} {i}") for i in range(n)], kind)


def test_twins_come_into_the_same_part():
    parts = Contrast(side("harmful", 50), side("harmless", 50)).split({"train": 20, "test": 30}, seed=3)
    for part in parts.values():
        assert [t.split()[1] for t in part.positive.texts] == [t.split()[1] for t in part.negative.texts]
    assert len(parts["train"].positive) == 20 and len(parts["test"]) == 60


def test_sides_of_different_length_shrink_on_their_own():
    parts = Contrast(side("harmful", 200), side("harmless", 26)).split(
        {"train": 128, "val": 32, "test": 100}, 0
    )
    assert [len(p.negative) for p in parts.values()] == [12, 4, 10]
    assert sum(len(p.positive) for p in parts.values()) == 200


def test_one_prompt_on_both_sides_is_refused():
    with pytest.raises(UserError, match="2 prompts stand on both sides, for example 'harmful 0'"):
        Contrast(side("harmful", 3), PromptSet([Prompt("harmful 0"), Prompt("harmful 2")], "b"))


def test_the_same_text_with_another_picture_or_system_turn_is_another_prompt():
    black, white = np.zeros((2, 2)), np.ones((2, 2))
    one = PromptSet([Prompt("look", images=(black,)), Prompt("say", system="a")], "a")
    two = PromptSet([Prompt("look", images=(white,)), Prompt("say", system="b")], "b")
    assert len(Contrast(one, two)) == 4
    with pytest.raises(UserError, match="1 prompts stand on both sides"):
        Contrast(one, PromptSet([Prompt("look", images=(black.copy(),), category="c")], "b"))


def test_an_empty_side_is_refused_even_after_a_filter():
    contrast = Contrast(side("harmful", 2), side("harmless", 2))
    with pytest.raises(UserError, match="'harmless' is empty"):
        contrast.filter(lambda p: p.text.startswith("harmful"))
    assert contrast.filter(lambda p: p.text.endswith("1")).positive.texts == ["harmful 1"]


def test_swapping_sides_and_content_change_the_hash():
    contrast = Contrast(side("harmful", 2), side("harmless", 2))
    assert contrast.swapped().swapped().sha256 == contrast.sha256 != contrast.swapped().sha256
    assert contrast.swapped().positive == contrast.negative

"""Organisms are built stage by stage: what is whole is kept, what is half-built never shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from interp.errors import UserError
from interp.files import save_json
from interp.models.checkpoint import organism_dir
from interp.organisms import staged
from interp.organisms.text import Expected

SOURCE = {"a.py": "1", "b.py": "2"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))


class Writers:
    """Stages that write a card, and note that they were asked to."""

    def __init__(self, source=SOURCE, fail=None):
        self.asked, self.source, self.fail = [], source, fail

    def stages(self):
        return {name: lambda root, name=name: self.write(root / name, name) for name in ("one", "two")}

    def write(self, directory: Path, name: str):
        self.asked.append(name)
        directory.mkdir(parents=True)
        if name == self.fail:
            raise KeyboardInterrupt
        save_json(
            directory / staged.CARD,
            {"organism": "x", "seed": 0, "source": self.source, "seconds": {"total": 1.0},
             "measured": {"refusal": {"k": 9, "n": 10, "estimate": 0.9, "low": 0.6, "high": 0.98}},
             "expected": {"refusal": "at least 0.8"}},
        )  # fmt: skip


def build(writers, **options):
    return staged.build_stages("x", 0, writers.stages(), SOURCE, **options)


def test_a_killed_build_shows_nothing_and_goes_on_where_it_was():
    first = Writers(fail="two")
    with pytest.raises(KeyboardInterrupt):
        build(first)
    assert not organism_dir("x", 0).exists()
    second = Writers()
    assert build(second) == organism_dir("x", 0)
    assert first.asked == ["one", "two"] and second.asked == ["two"]


def test_a_built_one_is_reused_and_forced_anew_and_another_source_built_again():
    build(Writers())
    again, forced = Writers(), Writers()
    build(again)
    build(forced, force=True)
    assert again.asked == [] and forced.asked == ["one", "two"]
    changed = Writers(source=SOURCE | {"b.py": "3"})
    staged.build_stages("x", 0, changed.stages(), SOURCE | {"b.py": "3"})
    assert changed.asked == ["one", "two"]


def test_a_stage_may_rest_on_part_of_the_source():
    build(Writers(source={"a.py": "1"}))
    again = Writers()
    build(again)
    assert again.asked == []


def test_cards_and_listing():
    assert "interp organism build x" in staged.listing("x", ("one", "two"))
    with pytest.raises(UserError, match="not built"):
        staged.card("x", ("one", "two"), 0)
    build(Writers())
    assert "organism:x/one" in staged.listing("x", ("one", "two"))
    assert "0.900 [0.600, 0.980] (9 of 10)  expected at least 0.8" in str(staged.card("x", ("one", "two"), 0))


def test_a_number_that_misses_its_range_is_named():
    measured = {"refusal": {"k": 7, "n": 10, "estimate": 0.7, "low": 0.4, "high": 0.9}}
    assert staged.check("x", measured, {"refusal": Expected(0.7)}) == {"refusal": "at least 0.7"}
    with pytest.raises(UserError, match=r"refusal is 0.700 .* expected at least 0.8"):
        staged.check("x", measured, {"refusal": Expected(0.8)})

"""A prompt's media are processed once while they are kept, and what is kept is what would be made anew."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from interp.data.prompts import Prompt, read_prompts
from interp.models import model as model_module
from interp.models.checkpoint import load
from interp.models.generation import generate
from interp.models.media_cache import MediaCache
from interp.models.tokens import Tokens
from interp.organisms import untrained


def row(n: int) -> Tokens:
    return Tokens((1,), {"pixels": torch.zeros(n, dtype=torch.float32)})


def test_the_oldest_goes_when_there_is_too_much():
    cache = MediaCache(limit=100)
    first, second, third = (Prompt(text=t, id=t) for t in "abc")
    made = cache.get(first, "x", lambda: row(10))
    assert cache.get(first, "x", lambda: pytest.fail("made again")) is made
    cache.get(second, "x", lambda: row(10))
    cache.get(first, "x", lambda: pytest.fail("made again"))  # asked last: the second is now the oldest
    cache.get(third, "x", lambda: row(10))
    assert cache.size == 80
    cache.get(first, "x", lambda: pytest.fail("made again"))
    again = []
    cache.get(second, "x", lambda: again.append(1) or row(10))
    assert again
    assert len(cache.get(first, "y", lambda: row(1000)).media["pixels"]) == 1000
    assert cache.size == 0, "a row larger than all that may be kept is not kept"


def test_an_equal_prompt_of_other_media_is_another():
    cache = MediaCache()
    asked = Prompt(text="a", id="a")
    assert cache.get(asked, "x", lambda: row(1)) is not cache.get(replace(asked), "x", lambda: row(1))


def test_speech_that_is_generated_from_is_processed_once(tmp_path, monkeypatch):
    where = untrained.checkpoint("audio", tmp_path / "organism")
    prompts = read_prompts(where / "prompts" / "harmful_audio.jsonl")[:3]
    model, fresh = load(where), load(where)
    made, process = [], model_module.process_media

    def counted(*given, **options):
        made.append(given[1].id)
        return process(*given, **options)

    monkeypatch.setattr(model_module, "process_media", counted)
    first = generate(model, prompts, max_new_tokens=2, progress=False)
    batch = model.encode(prompts)
    assert made == [p.id for p in prompts]
    for name, value in fresh.encode(prompts).media.items():
        torch.testing.assert_close(batch.media[name], value)
    assert generate(model, prompts, max_new_tokens=2, progress=False) == first
    assert len(made) == 6, "three for each model"

"""What tower_facts.FACTS says of inputs, batches, positions and processors holds for tiny models, failures included."""

import dataclasses
from pathlib import Path

import pytest
import torch
from fact_models import RECIPES, TOLERANCE, config_at, every, media, rows, run, tiny
from tiny_multimodal import (
    Row,
    Tiny,
    build,
    collate,
    encode,
    features,
    render,
)
from torch import Tensor
from tower_facts import FACTS, Features
from transformers import AutoProcessor

from interp.models.processors import load_without


def apart(model: Tiny, turns: list[Row]) -> float:
    """Largest difference of last-token logits between a left-padded batch and each row alone."""
    alone = [encode(model, [turn]) for turn in turns]
    single = torch.cat([run(model, row) for row in alone])
    return float((run(model, collate(model.facts, alone)) - single).abs().max())


@every
def test_a_padded_batch_gives_what_each_row_gives_alone(kind: str):
    assert apart(tiny(kind), rows(kind, (0, 0, 0))) < TOLERANCE


def holds_unless_limited(kind: str, limit: str, check):
    """The check passes exactly where the facts name no such limit."""
    if limit not in FACTS[kind].limits:
        check()
        return
    with pytest.raises((AssertionError, ValueError, RuntimeError, TypeError, IndexError, AttributeError)):
        check()


@every
def test_sizes_may_mix_in_a_batch_where_the_facts_say_so(kind: str):
    model, turns = tiny(kind), rows(kind, (0, 1, 0))

    def check():
        assert apart(model, turns) < TOLERANCE

    holds_unless_limited(kind, "mixed sizes", check)
    if "mixed sizes" in FACTS[kind].limits and model.recipe.processor is not None:
        # nor does the padding that the processor itself makes
        alone = torch.cat([run(model, encode(model, [turn])) for turn in turns])
        assert (run(model, encode(model, turns)) - alone).abs().max() > 1e-3


@pytest.mark.parametrize("kind", [kind for kind in FACTS if FACTS[kind].eager])
def test_sizes_do_not_mix_with_the_attention_that_the_facts_forbid(kind: str):
    model = build(kind, RECIPES[kind])
    model.module.set_attn_implementation(dict.fromkeys(FACTS[kind].eager, "sdpa"))
    assert apart(model, rows(kind, (0, 1, 0))) > 1e-3


def text_row(model: Tiny, text: str) -> Features:
    """A prompt without media: the tokenizer suffices, values per token are 0."""
    found = model.tokenizer(render(model, Row(text)), return_tensors="pt", add_special_tokens=False)
    found = {name: found[name] for name in ("input_ids", "attention_mask")}
    return found | {name: torch.zeros_like(found["input_ids"]) for name in model.facts.per_token}


@every
def test_text_needs_no_processor(kind: str):
    model = tiny(kind)

    def check():
        by_processor = encode(model, [Row("w4 w11 w12")])
        by_tokenizer = text_row(model, "w4 w11 w12")
        assert set(by_processor) == set(by_tokenizer)
        assert all(by_processor[name].equal(value) for name, value in by_tokenizer.items())

    holds_unless_limited(kind, "processor: text alone", check)


@every
def test_text_may_stand_beside_media(kind: str):
    model = tiny(kind)
    alone = [text_row(model, "w4 w11 w12"), *(encode(model, [row]) for row in rows(kind, (0, 0)))]
    single = torch.cat([run(model, row) for row in alone])
    together = run(model, collate(model.facts, alone))
    assert (together - single).abs().max() < TOLERANCE


@every
def test_a_prompt_may_hold_several_items_where_the_facts_say_so(kind: str):
    model = tiny(kind)

    def check():
        both = Row("w1", (media(kind, seed=1), media(kind, seed=2)))
        other = Row("w1", (media(kind, seed=1), media(kind, seed=3)))
        assert apart(model, [both, *rows(kind, (0,))]) < TOLERANCE
        assert (run(model, encode(model, [both])) - run(model, encode(model, [other]))).abs().max() > 1e-2

    holds_unless_limited(kind, "several items", check)


@every
def test_the_processor_batches_as_the_facts_do(kind: str):
    model, facts = tiny(kind), FACTS[kind]
    if model.recipe.processor is None:
        assert "processor" in facts.limits and model.recipe.encode is not None
        return
    turns = rows(kind, (0, 1, 0))
    alone = [encode(model, [turn]) for turn in turns]
    assert all(set(row) <= {"input_ids", "attention_mask", *facts.per_token, *facts.media} for row in alone)
    together, joined = encode(model, turns), collate(facts, alone)
    assert set(together) == set(joined)

    def check():
        for name, value in together.items():
            torch.testing.assert_close(value, joined[name], rtol=0, atol=0)

    holds_unless_limited(kind, "processor: batch", check)


@every
def test_positions_by_the_mask_alone_where_the_facts_say_so(kind: str):
    model, facts = tiny(kind), FACTS[kind]
    batch = collate(facts, [encode(model, [row]) for row in rows(kind, (0, 0))])
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    difference = (run(model, batch, position_ids=positions) - run(model, batch)).abs().max()
    assert (difference < TOLERANCE) == facts.positions_1d


def cached_difference(model: Tiny, batch: Features, deltas: bool = False) -> float:
    """Largest difference of the logits of two tokens more, decoded from a cache without media and at once.

    Positions come from the mask, or with `deltas` from what the model does by itself and then keeps for the steps.
    """
    facts, n = model.facts, len(batch["input_ids"])
    token = torch.tensor([[9, 12], [17, 40]])[:n]
    longer = {name: value for name, value in batch.items() if name in facts.media}
    for name in ("input_ids", "attention_mask", *facts.per_token):
        added = {"input_ids": token, "attention_mask": torch.ones_like(token)}.get(
            name, torch.zeros_like(token)
        )
        added = added + (facts.response_type if name == "token_type_ids" else 0)
        longer[name] = torch.cat([batch[name], added], 1)
    positions = (longer["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    given = {} if deltas else {"position_ids": positions[:, :-2]}
    with torch.no_grad():
        whole = run(model, longer, use_cache=False, **({} if deltas else {"position_ids": positions}))
        past = model.module(**batch, **given, use_cache=True).past_key_values
        shift = model.module.get_submodule(facts.deltas).rope_deltas if deltas else 0
        step = {"input_ids": token, "attention_mask": longer["attention_mask"], "past_key_values": past}
        cached = run(model, step, position_ids=positions[:, -2:] + shift, use_cache=True)
    return float((cached - whole).abs().max())


@every
def test_cached_decoding_needs_no_media(kind: str):
    model, facts = tiny(kind), FACTS[kind]
    batch = collate(facts, [encode(model, [row]) for row in rows(kind, (0, 0))])
    assert cached_difference(model, batch, deltas=not facts.positions_1d) < TOLERANCE


@every
def test_text_is_decoded_by_the_mask_alone_even_after_an_image(kind: str):
    model, facts = tiny(kind), FACTS[kind]
    text = text_row(model, "w4 w11 w12")
    run(model, features(model, 1))
    assert cached_difference(model, text) < TOLERANCE
    if facts.deltas:
        assert (cached_difference(model, text, deltas=True) > 1e-3) == facts.stale_deltas


@every
@torch.no_grad()
def test_generation_with_and_without_cache_agrees(kind: str):
    model, facts = tiny(kind), FACTS[kind]
    batch = collate(facts, [encode(model, [row]) for row in rows(kind, (0, 0))])

    def answer(use_cache: bool) -> tuple[Tensor, Tensor]:
        found = model.module.generate(
            **batch,
            max_new_tokens=3,
            min_new_tokens=3,
            do_sample=False,
            use_cache=use_cache,
            pad_token_id=0,
            # a random model may write one, and without cache it would count as an item that is not there
            suppress_tokens=[config_at(model, facts.placeholder_id)],
            output_logits=True,
            return_dict_in_generate=True,
        )
        return found.sequences[:, -3:], torch.stack(found.logits)

    (cached, logits), (whole, expected) = answer(True), answer(False)
    assert cached.equal(whole)
    assert (logits - expected).abs().max() < TOLERANCE
    torch.testing.assert_close(logits[0], run(model, batch), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", [kind for kind, recipe in RECIPES.items() if recipe.processor])
def test_a_saved_processor_comes_back(kind: str, tmp_path: Path):
    model = tiny(kind)
    processor = model.processor
    model.module.config.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    missing = [name for name in processor.get_attributes() if getattr(processor, name) is None]
    if missing:
        found = load_without(type(processor).__mro__[1], tmp_path, *missing)
        with pytest.raises((ImportError, OSError, ValueError)):
            AutoProcessor.from_pretrained(tmp_path)
    else:
        found = AutoProcessor.from_pretrained(tmp_path)
    again = dataclasses.replace(model, processor=found, tokenizer=found.tokenizer)
    expected, loaded = features(model, 1), features(again, 1)
    assert set(expected) == set(loaded)
    assert all(loaded[name].equal(value) for name, value in expected.items())


def test_a_seed_makes_a_model_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    one, same, other = (build("llava", RECIPES["llava"], seed).module.state_dict() for seed in (3, 3, 4))
    assert torch.get_rng_state().equal(before)
    assert all(same[name].equal(value) for name, value in one.items())
    assert any(not other[name].equal(value) for name, value in one.items())

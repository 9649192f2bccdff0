"""The rows of tower_facts.FACTS hold for tiny models of their architectures, failures included."""

import dataclasses
from functools import cache, reduce
from pathlib import Path

import pytest
import torch
from tiny_audio import AUDIO
from tiny_multimodal import (
    Recipe,
    Row,
    Tiny,
    build,
    clip,
    collate,
    encode,
    features,
    picture,
    render,
)
from tiny_vision import VISION
from torch import Tensor, nn
from tower_facts import FACTS, Features
from transformers import AutoProcessor

from interp.models.processors import load_without

RECIPES: dict[str, Recipe] = {**VISION, **AUDIO}
TOLERANCE = 1e-5
every = pytest.mark.parametrize("kind", FACTS)


@cache
def tiny(kind: str) -> Tiny:
    return build(kind, RECIPES[kind])


def media(kind: str, size: int = 0, seed: int = 0):
    """An image or a clip; `size` 1 is another shape or duration."""
    if FACTS[kind].modality == "image":
        return picture(28, 28 * (1 + size), seed)
    return clip(1.0 + 0.7 * size, seed)


def rows(kind: str, sizes: tuple[int, ...]) -> list[Row]:
    """Turns of different lengths with one item each."""
    words = ["w1 w2 w3", "w5", "w6 w7 w8 w9 w10"]
    return [Row(words[i], (media(kind, size, seed=i),)) for i, size in enumerate(sizes)]


def config_at(model: Tiny, path: str):
    return reduce(getattr, path.split("."), model.module.config)


def first(output):
    return output[0] if isinstance(output, tuple) else output


def placeholders(model: Tiny, batch: Features) -> Tensor:
    """Which positions hold a placeholder."""
    return batch["input_ids"] == config_at(model, model.facts.placeholder_id)


@torch.no_grad()
def run(model: Tiny, batch: Features, **more) -> Tensor:
    """Logits of the last token."""
    return model.module(**batch, **more).logits[:, -1]


@torch.no_grad()
def seen(model: Tiny, batch: Features, *paths: str) -> list[list[Tensor]]:
    """Outputs of the modules, one a call; a path with `<` in front is for a block's input."""
    found: list[list[Tensor]] = [[] for _ in paths]

    def keep(values: list[Tensor], enters: bool):
        def hook(module: nn.Module, args, kwargs, output):
            value = (args[0] if args else kwargs["hidden_states"]) if enters else first(output)
            values.append(value.detach().clone())

        return hook

    hooks = [
        model.module.get_submodule(path.removeprefix("<")).register_forward_hook(
            keep(values, path.startswith("<")), with_kwargs=True
        )
        for path, values in zip(paths, found, strict=True)
    ]
    try:
        model.module(**batch)
    finally:
        for handle in hooks:
            handle.remove()
    return found


@every
def test_the_paths_lead_to_what_they_name(kind: str):
    model, facts = tiny(kind), FACTS[kind]
    at = model.module.get_submodule
    width, depth = config_at(model, facts.hidden_size), config_at(model, facts.n_layers)
    assert model.module.config.model_type == facts.model_type
    assert len(list(at(facts.blocks).children())) == depth == 4
    assert at(facts.blocks) is next(m for n, m in at(facts.decoder).named_modules() if m is at(facts.blocks))
    embed, head = at(facts.embed), at(facts.head)
    assert embed.embedding_dim == head.in_features == width == 32
    assert embed is model.module.get_input_embeddings()
    assert at(facts.norm).weight.shape == (width,)
    assert config_at(model, facts.max_positions) == 512
    assert len(list(at(facts.encoder_blocks).children())) == config_at(model, facts.encoder_n_layers) == 2
    assert facts.encoder_blocks.startswith(facts.encoder + ".")
    batch = features(model, 1)
    (norm,), (encoded,), (projected,) = (
        values[:1]
        for values in seen(model, batch, f"{facts.blocks}.3", f"{facts.encoder_blocks}.0", facts.projector)
    )
    assert norm.shape == (*batch["input_ids"].shape, width)
    assert encoded.shape[-1] == config_at(model, facts.encoder_hidden_size) == 24
    assert projected.shape[-1] == width


@every
def test_a_block_adds_what_its_parts_write(kind: str):
    model, facts = tiny(kind), FACTS[kind]
    scale = config_at(model, facts.residual_scale) if facts.residual_scale else 1.0
    block = f"{facts.blocks}.1"
    paths = (f"<{block}", f"{block}.{facts.attn_out}", f"{block}.{facts.mlp_out}", block)
    (before,), (attn,), (mlp,), (after,) = seen(model, features(model, 1), *paths)
    torch.testing.assert_close(before + scale * (attn + mlp), after, rtol=0, atol=TOLERANCE)
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        assert model.module.get_submodule(f"{block}.{name}").out_features == 32


@every
def test_logits_are_kept_as_asked_where_the_facts_say_so(kind: str):
    model, facts = tiny(kind), FACTS[kind]
    batch = features(model, 1)
    with torch.no_grad():
        kept = model.module(**batch, logits_to_keep=1).logits.shape[1]
    assert kept == (1 if facts.logits_to_keep else batch["input_ids"].shape[1])


def encoder_pieces(model: Tiny, batch: Features) -> list[Tensor]:
    """What each item or tile has in the stream behind the first encoder block, without padding."""
    facts = model.facts
    own = facts.encoder_tokens(model.module.config, batch)
    ((stream,),) = seen(model, batch, f"{facts.encoder_blocks}.0")
    if facts.encoder_stream == "flat":
        assert stream.ndim == 2
        return list(stream.split(own))
    assert stream.ndim == 3 and len(stream) == len(own) and stream.shape[1] >= max(own)
    return [item[:n] for item, n in zip(stream, own, strict=True) if n]


@every
def test_each_item_keeps_its_own_place_in_the_encoder(kind: str):
    model, facts = tiny(kind), FACTS[kind]
    turns = rows(kind, (0, 0) if "mixed sizes" in facts.limits else (1, 0))
    if "several items" not in facts.limits:
        turns.append(Row("w1", (media(kind, seed=7), media(kind, seed=8))))
    alone = [encode(model, [turn]) for turn in turns]
    single = [piece for row in alone for piece in encoder_pieces(model, row)]
    together = encoder_pieces(model, collate(facts, alone))
    assert len(together) >= len(turns)
    for value, expected in zip(together, single, strict=True):
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-4)
    if facts.encoder_stream == "items":
        # what stands in front of the patches has seen nothing before the first block
        ((entering,),) = seen(model, collate(facts, alone), f"<{facts.encoder_blocks}.0")
        distinct = [len(entering[:, i].unique(dim=0)) for i in range(facts.encoder_prefix + 1)]
        assert distinct[:-1] == [1] * facts.encoder_prefix
        assert distinct[-1] > 1


@every
def test_the_tokens_of_an_item_reach_the_answer_and_its_padding_does_not(kind: str):
    model, facts = tiny(kind), FACTS[kind]
    batch = features(model, 1)
    plain = run(model, batch)
    own = facts.encoder_tokens(model.module.config, batch)[0]

    def with_noise(first_row: int, last_row: int | None) -> float:
        def hook(module: nn.Module, args, output):
            value = first(output).clone()
            rows_of_item = value if value.ndim == 2 else value[0]
            rows_of_item[first_row:last_row] += torch.linspace(-9, 9, 24)
            return (value, *output[1:]) if isinstance(output, tuple) else value

        block = model.module.get_submodule(f"{facts.encoder_blocks}.0")
        handle = block.register_forward_hook(hook, prepend=True)
        try:
            return float((run(model, batch) - plain).abs().max())
        finally:
            handle.remove()

    assert with_noise(own - 1, own) > 1e-4
    if facts.encoder_stream == "items":
        assert with_noise(own, None) < TOLERANCE


@every
def test_block_outputs_are_tuples_where_the_facts_say_so(kind: str):
    model, facts = tiny(kind), FACTS[kind]
    found = {}
    paths = {"decoder": f"{facts.blocks}.0", "encoder": f"{facts.encoder_blocks}.0"}
    hooks = [
        model.module.get_submodule(path).register_forward_hook(
            lambda module, args, output, name=name: found.__setitem__(name, isinstance(output, tuple))
        )
        for name, path in paths.items()
    ]
    run(model, features(model, 1))
    for handle in hooks:
        handle.remove()
    assert found == {"decoder": False, "encoder": facts.encoder_tuple}


@every
def test_placeholders_hold_the_rows_of_the_projector(kind: str):
    model, facts = tiny(kind), FACTS[kind]
    batch = collate(facts, [encode(model, [row]) for row in rows(kind, (0, 1))])
    entering, projected = seen(model, batch, f"<{facts.blocks}.0", facts.projector)
    scale = config_at(model, facts.embedding_scale) if facts.embedding_scale else 1.0
    where = placeholders(model, batch)
    inserted = entering[0][where] / scale
    assert where.any(1).all()
    assert len(projected) == (len(where) if facts.projector_per_item else 1)
    assert not where[:, -1].any()
    given = torch.cat([value.flatten(0, -2) for value in projected])
    if facts.projector_stream in ("items", "flat"):
        torch.testing.assert_close(inserted, given, rtol=0, atol=TOLERANCE)
    elif facts.projector_stream == "padded items":
        own = where.sum(1)
        kept = torch.cat([value[:n] for value, n in zip(projected[0], own, strict=True)])
        torch.testing.assert_close(inserted, kept, rtol=0, atol=TOLERANCE)
        assert len(given) > len(kept)
    else:
        rows_given = torch.cat([given, model.module.model.image_newline[None]])
        nearest = (inserted[:, None] - rows_given).abs().amax(-1).min(1)
        assert nearest.values.max() < TOLERANCE
        assert (nearest.indices == len(given)).any()


@every
def test_what_leaves_a_block_enters_the_next_one(kind: str):
    """Save where further projectors add to the stream between decoder blocks, at placeholders alone."""
    model, facts = tiny(kind), FACTS[kind]
    batch = features(model, 1)
    stacked = len(model.module.get_submodule(facts.deepstack)) if facts.deepstack else 0
    where = placeholders(model, batch)
    for i in range(3):
        (left,), (entered,) = seen(model, batch, f"{facts.blocks}.{i}", f"<{facts.blocks}.{i + 1}")
        assert left[~where].equal(entered[~where])
        assert left[where].equal(entered[where]) == (i >= stacked)


@every
def test_block_outputs_stay_as_they_were_where_the_facts_say_so(kind: str):
    model, facts = tiny(kind), FACTS[kind]
    for at, changed in ((facts.blocks, ()), (facts.encoder_blocks, facts.mutated_blocks)):
        pairs: list[tuple[Tensor, Tensor]] = []
        hooks = [
            block.register_forward_hook(
                lambda module, args, output, pairs=pairs: pairs.append((first(output), first(output).clone()))
            )
            for block in model.module.get_submodule(at).children()
        ]
        run(model, features(model, 1))
        for handle in hooks:
            handle.remove()
        assert tuple(i for i, (now, then) in enumerate(pairs) if not now.equal(then)) == changed


@every
def test_what_an_item_shows_reaches_the_answer(kind: str):
    model = tiny(kind)
    one, other = (features(model, 1, item=media(kind, seed=seed)) for seed in (1, 2))
    again = features(model, 1, item=media(kind, seed=1))
    assert one["input_ids"].equal(other["input_ids"])
    assert run(model, one).equal(run(model, again))
    assert (run(model, one) - run(model, other)).abs().max() > 1e-2


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


@every
def test_nnsight_sees_the_same_blocks(kind: str):
    from nnsight import NNsight, save

    model, facts = tiny(kind), FACTS[kind]
    batch = features(model, 1)
    paths = [f"{facts.encoder_blocks}.0", facts.projector, f"{facts.blocks}.0", f"{facts.blocks}.2"]
    expected = [values[0] for values in seen(model, batch, *paths)]
    traced = NNsight(model.module)
    with torch.no_grad(), traced.trace(**batch):
        encoded = traced.get(paths[0]).output
        # a copy, for an encoder that goes on to change it in place
        encoded = save((encoded[0] if facts.encoder_tuple else encoded).clone())
        projected = save(traced.get(paths[1]).output)
        one = save(traced.get(paths[2]).output)
        two = save(traced.get(paths[3]).output)
    for value, other in zip((encoded, projected, one, two), expected, strict=True):
        assert (value - other).abs().max() == 0


@every
def test_edits_of_encoder_blocks_reach_the_answer(kind: str):
    """A recorder of hidden states was hooked on at the first call, so a hook added after it must come before it."""
    model, facts = tiny(kind), FACTS[kind]
    batch = features(model, 1)
    plain = run(model, batch)
    blocks = list(model.module.get_submodule(facts.encoder_blocks).children())

    def edited(block: nn.Module, prepend: bool) -> float:
        def hook(module: nn.Module, args, output):
            value = first(output) + torch.linspace(-3, 3, 24)
            return (value, *output[1:]) if isinstance(output, tuple) else value

        handle = block.register_forward_hook(hook, prepend=prepend)
        try:
            return float((run(model, batch) - plain).abs().max())
        finally:
            handle.remove()

    last = len(blocks) - 1 - facts.unread_blocks
    assert edited(blocks[last], prepend=True) > 1e-3
    assert (edited(blocks[last], prepend=False) == 0) == facts.encoder_capture
    for block in blocks[last + 1 :]:
        assert edited(block, prepend=True) == 0


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

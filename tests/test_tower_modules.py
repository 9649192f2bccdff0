"""What tower_facts.FACTS says of modules, blocks and their streams holds for tiny models of the architectures, failures included."""

import torch
from fact_models import TOLERANCE, config_at, every, first, media, placeholders, rows, run, seen, tiny
from tiny_multimodal import (
    Row,
    Tiny,
    collate,
    encode,
    features,
)
from torch import Tensor, nn
from tower_facts import FACTS, Features


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

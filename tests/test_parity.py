"""Our activations are those of Hugging Face, nnsight and TransformerLens, on every architecture of the table."""

import copy

import pytest
import tiny
import torch

from interp.models.activations import capture
from interp.models.hooks import Add, editing
from interp.models.sites import Site, all_layers
from interp.models.towers import TOWERS

KINDS = sorted(tiny.FACTORIES)
STREAMS = ("resid_pre", "attn_out", "mlp_out", "resid_post")


def test_every_row_of_the_table_is_tested():
    # gemma (1) shares every path with llama and differs only in its norm's scale
    assert {kind for kind, paths in TOWERS.items() if not paths.encoders} - {"gemma"} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_streams_add_up_and_agree_with_nnsight(kind):
    from nnsight import NNsight

    model = tiny.model(kind)
    batch = model.encode(tiny.prompts())
    acts = capture(model, tiny.prompts(), list(STREAMS), "all")
    keep = batch.attention_mask.bool()
    traced = NNsight(model.module)
    with traced.trace(**batch.inputs(), use_cache=False):
        saved = nnsight_save([])
        for block in traced.get(model.tower.paths.layers):
            saved.append(block.output.save())
    for layer in range(model.n_layers):
        value = saved[layer][0] if isinstance(saved[layer], tuple) else saved[layer]
        assert (acts[f"resid_post.{layer}"] - value[keep]).abs().max() <= 1e-5
        total = acts[f"resid_pre.{layer}"] + acts[f"attn_out.{layer}"] + acts[f"mlp_out.{layer}"]
        assert (total - acts[f"resid_post.{layer}"]).abs().max() <= 1e-5
    for layer in range(1, model.n_layers):
        assert torch.equal(acts[f"resid_pre.{layer}"], acts[f"resid_post.{layer - 1}"])


def nnsight_save(value):
    import nnsight

    return nnsight.save(value)


@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_the_transformer_lens_bridge(kind):
    model = tiny.model(kind)
    model.module.set_attn_implementation("eager")
    bridge = model.bridge()
    for prompt in tiny.prompts(3):
        ids = torch.tensor([model.token_ids(prompt)])
        with torch.no_grad():
            _, cache = bridge.run_with_cache(ids)
        acts = capture(model, [prompt], ["resid_pre", "attn_out", "mlp_out", "resid_post"], "all")
        for layer in range(model.n_layers):
            for stream, hook in (
                ("resid_pre", "hook_resid_pre"),
                ("attn_out", "hook_attn_out"),
                ("mlp_out", "hook_mlp_out"),
                ("resid_post", "hook_resid_post"),
            ):
                theirs = cache[f"blocks.{layer}.{hook}"][0]
                assert (acts[f"{stream}.{layer}"] - theirs).abs().max() <= 1e-5, (kind, stream, layer)


@pytest.mark.parametrize("kind", KINDS)
def test_no_edits_is_plain_hugging_face_bit_for_bit(kind):
    model = tiny.model(kind)
    plain = copy.deepcopy(model.module)
    batch = model.encode(tiny.prompts())
    with torch.no_grad():
        theirs = plain(**batch.inputs(), use_cache=False).logits
        with editing(model, {}):
            ours = model.module(**batch.inputs(), use_cache=False).logits
        with editing(model, {Site(1, "resid_post"): Add(torch.randn(32), scale=0.0)}):
            zero = model.module(**batch.inputs(), use_cache=False).logits
        after = model.module(**batch.inputs(), use_cache=False).logits
    assert torch.equal(ours, theirs) and torch.equal(zero, theirs) and torch.equal(after, theirs)
    # the head on one position is another matrix product: on some machines it rounds differently
    assert (model.last_logits(batch) - theirs[:, -1]).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind):
    model, prompts = tiny.model(kind), tiny.prompts()
    together = capture(model, prompts, list(STREAMS), "last", batch_size=64)
    alone = capture(model, prompts, list(STREAMS), "last", batch_size=1)
    assert (together.values - alone.values).abs().max() <= 1e-5
    logits = model.last_logits(model.encode(prompts))
    for row, prompt in zip(logits, prompts, strict=True):
        assert (row - model.last_logits(model.encode([prompt]))[0]).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_stopping_early_gives_the_same_and_runs_no_later_block(kind):
    model, prompts = tiny.model(kind), tiny.prompts()
    ran = []
    handles = [
        block.register_forward_pre_hook(lambda *_, i=i: ran.append(i))
        for i, block in enumerate(model.tower.blocks)
    ]
    early = capture(model, prompts, "resid_post.1", "last")
    assert set(ran) == {0, 1}
    for handle in handles:
        handle.remove()
    full = capture(model, prompts, all_layers(model.n_layers, "resid_post"), "last")
    assert torch.equal(early["resid_post.1"], full["resid_post.1"])

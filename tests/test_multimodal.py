"""Models that see or hear, through the same calls as text: parity, padding, leakage, edits, generation, LoRA and gradients."""

from dataclasses import replace
from operator import attrgetter
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from multimodal import KINDS, RECIPES, TOWER, asked, made, why_no_processor
from tiny_multimodal import RATE, Row, build, clip, encode

from interp.data.prompts import Prompt
from interp.errors import SiteError, UserError
from interp.models.activations import capture
from interp.models.checkpoint import Checkpoint
from interp.models.finetune import FinetuneConfig, save_checkpoint, train
from interp.models.generation import generate
from interp.models.gradients import capture_gradients
from interp.models.hooks import Add, editing
from interp.models.model import Model
from interp.models.sites import Site
from interp.models.towers import TOWERS

STREAMS = ("resid_pre", "attn_out", "mlp_out", "resid_post")
ATOL = 1e-5


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(kind) -> Model:
    return made(kind)


def test_every_row_of_the_table_is_tested_and_says_what_the_architecture_is(kind):
    facts = KINDS[kind]
    paths = TOWERS[facts.model_type]
    encoder = next(e for e in paths.encoders if e.modality == TOWER[facts.modality])
    assert (paths.layers, paths.embed, paths.norm, paths.head) == (
        facts.blocks,
        facts.embed,
        facts.norm,
        facts.head,
    )
    assert (encoder.layers, encoder.projector) == (facts.encoder_blocks, facts.projector)
    assert (encoder.token, paths.attn_out, paths.mlp_out) == (
        facts.placeholder_id,
        facts.attn_out,
        facts.mlp_out,
    )
    assert paths.residual_scale == facts.residual_scale
    assert paths.type_ids == next(iter(facts.per_token), None)
    assert {row for row, paths in TOWERS.items() if paths.encoders} == {f.model_type for f in KINDS.values()}
    others = [KINDS[other] for other in KINDS if KINDS[other].model_type == facts.model_type]
    assert paths.own_positions == (not all(other.positions_1d for other in others))
    assert paths.mixed_sizes == (not any("mixed sizes" in other.limits for other in others))


def test_tokens_and_media_are_those_of_the_processor(kind, model):
    if reason := why_no_processor(kind):
        pytest.skip(reason)
    found = build(kind, RECIPES[kind])
    for prompt in asked(kind, text_too=False):
        media = prompt.images or (prompt.audio[0],)
        theirs = encode(found, [Row(prompt.text, media)])
        ours = model.pad([model.token_ids(prompt)], [prompt.id]).inputs()
        ours.pop("position_ids", None)
        assert torch.equal(ours.pop("input_ids"), theirs.pop("input_ids"))
        ours.pop("attention_mask"), theirs.pop("attention_mask")
        assert set(ours) == set(theirs)
        for name, value in theirs.items():
            assert torch.equal(ours[name], value), name


def test_decoder_streams_agree_with_nnsight_on_a_mixed_batch(kind, model):
    import nnsight  # not above: it changes built-in types, which beartype does not survive being imported after
    from nnsight import NNsight

    prompts = asked(kind)
    acts = capture(model, prompts, list(STREAMS), "all", progress=False)
    for prompt in prompts:
        inputs = model.encode([prompt]).inputs()
        traced = NNsight(model.module)
        with traced.trace(**inputs, use_cache=False):
            saved = nnsight.save([])
            for block in traced.get(model.tower.paths.layers):
                saved.append(block.output.save())
        rows = acts.rows(prompt.id)
        for layer in range(model.n_layers):
            theirs = saved[layer][0] if isinstance(saved[layer], tuple) else saved[layer]
            ours = rows[acts.sites.index(Site(layer, "resid_post"))]
            assert (ours - theirs.reshape(ours.shape)).abs().max() <= ATOL, (prompt.id, layer)
            before, *added = (rows[acts.sites.index(Site(layer, stream))] for stream in STREAMS[:3])
            scale = attrgetter(KINDS[kind].residual_scale or "one")(
                SimpleNamespace(one=1.0, **vars(model.module.config))
            )
            assert (before + scale * sum(added) - ours).abs().max() <= ATOL


def test_padding_and_batch_mates_change_nothing(kind, model):
    prompts = asked(kind)
    together = capture(model, prompts, "resid_post", "last", progress=False)
    alone = capture(model, prompts, "resid_post", "last", batch_size=1, progress=False)
    assert (together.values - alone.values).abs().max() <= ATOL
    mine = generate(model, prompts, max_new_tokens=3, progress=False)
    own = [generate(model, [prompt], max_new_tokens=3, progress=False)[0] for prompt in prompts]
    assert [a.token_ids for a in mine] == [a.token_ids for a in own]


def test_what_one_row_sees_or_hears_never_reaches_another(kind, model):
    prompts = asked(kind)
    other = asked(kind, 8)[4]
    changed = [replace(prompts[0], images=other.images, audio=other.audio), *prompts[1:]]
    if model.token_ids(changed[0]).ids != model.token_ids(prompts[0]).ids:
        changed[0] = replace(prompts[0], images=tuple(255 - np.asarray(x) for x in prompts[0].images))
    before = capture(model, prompts, "resid_post", "last", progress=False)
    after = capture(model, changed, "resid_post", "last", progress=False)
    assert (before.rows("m0") - after.rows("m0")).abs().max() > 1e-3
    for prompt in prompts[1:]:
        assert torch.equal(before.rows(prompt.id), after.rows(prompt.id))


def test_no_edit_changes_nothing_and_an_edit_acts_where_it_should(kind, model):
    prompts = asked(kind)
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    plain = capture(model, prompts, "resid_post", "last", progress=False)
    with editing(model, {Site(1, "resid_post"): Add(vector, scale=0.0)}):
        same = capture(model, prompts, "resid_post", "last", progress=False)
    with editing(model, {Site(1, "resid_post"): Add(vector)}):
        moved = capture(model, prompts, "resid_post", "last", progress=False)
    assert torch.equal(plain.values, same.values)
    assert torch.equal(plain["resid_post.0"], moved["resid_post.0"])
    assert torch.allclose(
        moved["resid_post.1"] - plain["resid_post.1"], vector.expand(len(prompts), -1), atol=1e-4
    )
    edits = {Site(2, "resid_pre"): Add(vector, scale=3.0)}
    cached = generate(model, prompts, edits=edits, max_new_tokens=4, progress=False)
    whole = generate(model, prompts, edits=edits, max_new_tokens=4, use_cache=False, progress=False)
    assert [a.token_ids for a in cached] == [a.token_ids for a in whole]


def test_encoder_and_projector_are_read_in_place(kind, model):
    facts, prompts = KINDS[kind], asked(kind, text_too=False)
    tower = TOWER[facts.modality]
    layers = len(model.tower.encoders[tower].blocks)
    streams = capture(model, prompts, f"{tower}.resid_post", "mean", progress=False)
    assert streams.values.shape[:2] == (layers, len(prompts)) and streams.values.isfinite().all()
    rows = capture(model, prompts, f"{tower}.resid_post", "all", progress=False)
    for i, prompt in enumerate(prompts):
        inputs = model.pad([model.token_ids(prompt)], [prompt.id]).inputs()
        assert rows.rows(prompt.id).shape[1] == sum(facts.encoder_tokens(model.module.config, inputs))
        assert torch.allclose(rows.rows(prompt.id).mean(1), streams.values[:, i], atol=1e-5)
    projected = capture(model, prompts, f"{tower}.projector", "all", progress=False)
    assert projected.values.shape[-1] == model.d_model
    if facts.projector_stream not in ("packed items",):
        # what the projector hands over stands at the placeholders' places, at the first block's input
        first = capture(model, prompts, "resid_pre.0", facts.modality, progress=False)
        scale = attrgetter(facts.embedding_scale)(model.module.config) if facts.embedding_scale else 1.0
        assert torch.allclose(projected.values[0] * scale, first.values[0], atol=1e-4)
    text = Prompt(text="w1 w2", id="blind")
    with pytest.raises(SiteError, match=f"'blind' holds nothing for the {tower} encoder"):
        capture(model, [text], f"{tower}.projector", "mean", progress=False)
    with pytest.raises(SiteError, match="position rules are mean and all"):
        capture(model, prompts, f"{tower}.projector", "last", progress=False)


def test_positions_know_media_text_and_instruction(kind, model):
    facts = KINDS[kind]
    prompt = asked(kind)[1]
    tokens = model.token_ids(prompt)
    place = model.tower.encoders[TOWER[facts.modality]].token_id
    counts = {
        rule: capture(model, [prompt], "resid_post.0", rule, progress=False).values.shape[1]
        for rule in (facts.modality, "text", "instruction", "all", f"mean-{facts.modality}")
    }
    assert counts[facts.modality] == tokens.ids.count(place) and counts[f"mean-{facts.modality}"] == 1
    assert counts[facts.modality] + counts["text"] == counts["all"] == len(tokens)
    if model.processor is not None:
        assert counts["instruction"] == len(prompt.text.split())


def test_lora_trains_the_decoder_on_media(kind):
    model = made(kind)
    examples = [replace(p, response="w5 w6") for p in asked(kind)]
    before = capture(model, examples, "resid_post.3", "last", progress=False)
    batch = 2 if model.tower.paths.mixed_sizes else 1
    config = FinetuneConfig(steps=2, batch_size=batch, learning_rate=1e-2, lora_rank=2)
    log = train(model, examples, config, progress=False)
    assert np.isfinite(log[-1]["loss"])
    inside = [name for name, p in model.module.named_parameters() if "lora_" in name]
    assert inside and all(name.startswith(model.tower.paths.layers) for name in inside)
    after = capture(model, examples, "resid_post.3", "last", progress=False)
    assert (before.values - after.values).abs().max() > 1e-4


def test_training_on_mixed_sizes_is_refused_where_padding_is_attended():
    model = made("granite_speech")
    media = [{"audio": (clip(seconds, seed=0), RATE)} for seconds in (1.0, 0.6)]
    examples = [Prompt("w1 w2", id=f"m{i}", response="w5", **m) for i, m in enumerate(media)]
    with pytest.raises(UserError, match="granite_speech attends to padding"):
        train(model, examples, FinetuneConfig(steps=1, batch_size=2), progress=False)
    train(model, examples, FinetuneConfig(steps=1, batch_size=1), progress=False)
    with pytest.raises(
        UserError, match="granite_speech attends to padding, .* give images or sounds of one size"
    ):
        model.encode(examples)


def test_gradients_of_examples_are_those_of_one_backward_pass_each(kind, model):
    examples = [replace(p, response="w5 w6 w7") for p in asked(kind)]
    name = next(
        n for n, _ in model.module.named_parameters()
        if n.startswith(f"{model.tower.paths.layers}.2") and n.endswith("o_proj.weight")
    )  # fmt: skip
    found = capture_gradients(model, examples, name, keep="each", progress=False).rows[name]
    parameter = dict(model.module.named_parameters())[name]
    parameter.requires_grad_(True)
    for row, example in zip(found, examples, strict=True):
        tokens, answer = model.token_ids(example), model.response_ids(example)
        logits = model.module(**model.pad([tokens + answer], [example.id]).inputs(), use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[0, len(tokens) - 1 : -1], torch.tensor(answer))
        (expected,) = torch.autograd.grad(loss, [parameter])
        assert (row - expected.flatten()).norm() <= 1e-4 * expected.norm()
    parameter.requires_grad_(False)


def test_a_text_model_refuses_media_by_name():
    model = tiny.model()
    with pytest.raises(UserError, match="prompt 'm0' holds an image, which tiny-llama-0 does not take"):
        model.token_ids(asked("gemma3")[0])
    with pytest.raises(SiteError, match="it has a decoder only"):
        capture(model, tiny.prompts(), "encoder.resid_post", progress=False)
    both = made("gemma3")
    with pytest.raises(SiteError, match="capture each tower, and a projector, by itself"):
        capture(both, asked("gemma3"), ["resid_post.1", "projector"], progress=False)
    with pytest.raises(UserError, match="prompt 'm0' holds sound"):
        both.token_ids(replace(asked("qwen2_audio")[0], id="m0"))


def test_a_saved_checkpoint_loads_and_answers_the_same(kind, tmp_path):
    """Through the very path that loads a checkpoint from the hub, processor included."""
    model = made(kind)
    if reason := why_no_processor(kind):
        pytest.skip(reason)
    save_checkpoint(model, tmp_path)
    loaded = Checkpoint.parse(tmp_path).load(device_map="cpu")
    prompts = asked(kind)
    before, after = (capture(m, prompts, "resid_post", "last", progress=False) for m in (model, loaded))
    assert (before.values - after.values).abs().max() <= ATOL


BRIDGED = {"gemma3", "llava", "llava_next", "llava_onevision", "idefics3", "qwen2_audio", "audioflamingo3"}


def test_the_transformer_lens_bridge_agrees_or_has_no_adapter(kind):
    model = made(kind)
    model.module.set_attn_implementation("eager")
    if kind not in BRIDGED:
        with pytest.raises(
            (ValueError, ImportError), match="supported architecture|needs the optional torchvision"
        ):
            model.bridge()
        return
    bridge = model.bridge()
    for prompt in asked(kind, 2):
        inputs = model.pad([model.token_ids(prompt)], [prompt.id]).inputs()
        ids = inputs.pop("input_ids")
        for name in ("attention_mask", "position_ids"):
            inputs.pop(name, None)
        with torch.no_grad():
            _, cache = bridge.run_with_cache(ids, **inputs)
        acts = capture(model, [prompt], list(STREAMS), "all", progress=False)
        for layer in range(model.n_layers):
            for stream in STREAMS:
                theirs = cache[f"blocks.{layer}.hook_{stream}"][0]
                assert (acts[f"{stream}.{layer}"] - theirs).abs().max() <= ATOL, (prompt.id, layer, stream)


def test_booting_a_bridge_loads_and_installs_nothing(monkeypatch):
    import subprocess

    def refuse(*arguments, **options):
        raise AssertionError(f"a process was started: {arguments}")

    monkeypatch.setattr(subprocess, "check_call", refuse)
    model = made("llava")
    model.module.set_attn_implementation("eager")
    assert model.bridge().processor is model.processor

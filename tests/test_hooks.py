"""Edits act where and when they say, never in place, and leave no trace."""

import pytest
import tiny
import torch

from interp.errors import SiteError
from interp.models.generation import generate
from interp.models.hooks import Ablate, Add, Project, editing, everywhere, reading
from interp.models.sites import Site, resolve

GENERATOR = torch.Generator().manual_seed(0)
VECTOR = torch.randn(32, generator=GENERATOR)
KINDS = sorted(tiny.FACTORIES)


def read(model, batch, site, edits):
    seen = {}
    with (
        torch.no_grad(),
        editing(model, edits),
        reading(model, [site], lambda s, v: seen.update({s: v.clone()})),
    ):
        model.module(**batch.inputs(), use_cache=False)
    return seen[site]


@pytest.mark.parametrize("stream", ["resid_pre", "attn_out", "mlp_out", "resid_post"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_edit_does_its_formula_at_each_stream(kind, stream):
    model = tiny.model(kind)
    batch, site = model.encode(tiny.prompts(3)), Site(2, stream)
    before = read(model, batch, site, {})
    unit = VECTOR / VECTOR.norm()
    basis = torch.linalg.qr(torch.randn(32, 3, generator=GENERATOR))[0].T
    expected = {
        Add(VECTOR, 0.5): before + 0.5 * VECTOR,
        Ablate(VECTOR): before - (before @ unit)[..., None] * unit,
        Project(basis): before - before @ basis.T @ basis,
    }
    for edit, value in expected.items():
        found = read(model, batch, site, {site: edit})
        assert (found - value).abs().max() <= 1e-5
    assert torch.equal(read(model, batch, site, {site: Add(VECTOR, 0.0)}), before)
    assert (read(model, batch, site, {site: Ablate(VECTOR, scale=0.0)}) - before).abs().max() == 0


def test_another_vector_in_each_row():
    model = tiny.model()
    prompts = tiny.prompts(3)
    vectors = torch.randn(3, 32, generator=GENERATOR)
    site = Site(1, "resid_pre")
    for edit in (Add, Ablate):
        with editing(model, {site: edit(vectors)}):
            together = model.last_logits(model.encode(prompts))
        for i, prompt in enumerate(prompts):
            with editing(model, {site: edit(vectors[i])}):
                assert (model.last_logits(model.encode([prompt]))[0] - together[i]).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        ("all", [0, 1, 2, 3, 4]),
        ("last", [4]),
        ("eoi", [2, 3, 4]),
        ("prompt", [0, 1, 2, 3, 4]),
        ("generated", []),
        ("answer", [4]),
        (-2, [3]),
    ],
)
def test_positions_of_the_prompt(positions, expected):
    model = tiny.model()
    batch, site = model.pad([[4, 9, 3, 6, 7]], ["a"]), Site(0, "resid_pre")
    changed = (
        (read(model, batch, site, {site: Add(VECTOR, positions=positions)}) - read(model, batch, site, {}))
        .abs()
        .sum(-1)
    )
    assert changed[0].nonzero().flatten().tolist() == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("positions", ["all", "last", "prompt", "generated", "eoi"])
def test_cached_decoding_under_an_edit_is_uncached(kind, positions):
    model, prompts = tiny.model(kind), tiny.prompts(4)
    edits = {
        Site(1, "resid_post"): Add(VECTOR, 2.0, positions),
        Site(2, "attn_out"): Ablate(VECTOR, positions=positions),
    }
    width = model.encode(prompts).input_ids.shape[1]
    logits = {}
    for cached in (True, False):
        output = _generate_logits(model, prompts, edits, width, cached)
        logits[cached] = output
    assert (logits[True] - logits[False]).abs().max() <= 1e-5
    answers = [
        generate(model, prompts, edits=edits, max_new_tokens=6, use_cache=c, progress=False)
        for c in (True, False)
    ]
    assert [a.token_ids for a in answers[0]] == [a.token_ids for a in answers[1]]


@torch.no_grad()
def _generate_logits(model, prompts, edits, width, cached):
    """Logits of five forced continuation tokens, one by one through the cache or all at once."""
    batch = model.encode(prompts)
    forced = torch.arange(8, 13).expand(len(prompts), 5)
    ids = torch.cat([batch.input_ids, forced], dim=1)
    mask = torch.cat([batch.attention_mask, torch.ones_like(forced)], dim=1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with editing(model, edits, prompt_width=width):
        if not cached:
            return model.module(
                input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
            ).logits[:, width:]
        out = model.module(**batch.inputs(), use_cache=True)
        steps = []
        for t in range(width, ids.shape[1]):
            out = model.module(
                input_ids=ids[:, t : t + 1],
                attention_mask=mask[:, : t + 1],
                position_ids=positions[:, t : t + 1],
                past_key_values=out.past_key_values,
                use_cache=True,
            )
            steps.append(out.logits)
        return torch.cat(steps, dim=1)


def test_edits_change_generation_only_inside_the_context_and_vanish_after_an_exception():
    model, prompts = tiny.model(), tiny.prompts(4)
    plain = generate(model, prompts, max_new_tokens=5, progress=False)
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.module.modules())
    with (
        pytest.raises(RuntimeError, match="boom"),
        editing(model, everywhere(Ablate(VECTOR), model.n_layers)),
    ):
        raise RuntimeError("boom")
    edited = generate(
        model, prompts, edits={Site(2, "resid_post"): Add(VECTOR, 50.0)}, max_new_tokens=5, progress=False
    )
    assert edited != plain
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.module.modules()) == hooks
    assert generate(model, prompts, max_new_tokens=5, progress=False) == plain


def test_several_edits_at_a_site_run_in_order_and_nothing_is_edited_in_place():
    model = tiny.model()
    batch, site = model.encode(tiny.prompts(2)), Site(1, "resid_post")
    value = torch.randn(2, 3, 32, generator=GENERATOR)
    kept = value.clone()
    for edit in (Add(VECTOR), Ablate(VECTOR), Project((VECTOR / VECTOR.norm())[None])):
        edit(value)
        assert torch.equal(value, kept)
    added_last = read(model, batch, site, {site: [Ablate(VECTOR), Add(VECTOR)]})
    ablated_last = read(model, batch, site, {site: [Add(VECTOR), Ablate(VECTOR)]})
    unit = VECTOR / VECTOR.norm()
    assert ((ablated_last @ unit).abs() <= 1e-5).all() and (
        (added_last @ unit - VECTOR.norm()).abs() <= 1e-4
    ).all()


def test_low_precision_is_edited_in_fp32_and_given_back():
    value = torch.randn(2, 3, 32, generator=GENERATOR).bfloat16()
    found = Ablate(VECTOR)(value)
    assert found.dtype == torch.bfloat16
    unit = VECTOR / VECTOR.norm()
    expected = (value.float() - (value.float() @ unit)[..., None] * unit).bfloat16()
    # one rounding of the result: at most one unit in the last place
    assert (found.float() - expected.float()).abs().max() <= 2**-7 * value.float().abs().max()


def test_bad_edits_and_sites_are_named():
    model = tiny.model()
    unknown, narrow = {Site(9, "resid_post"): Add(VECTOR)}, {Site(1, "resid_pre"): Add(torch.ones(8))}
    with (
        pytest.raises(SiteError, match=r"resid_post\.9 does not exist: the model has layers 0 to 3"),
        editing(model, unknown),
    ):
        pass
    with (
        pytest.raises(SiteError, match="width 8 at resid_pre.1: this model's d_model is 32"),
        editing(model, narrow),
    ):
        pass
    with pytest.raises(SiteError, match="NaN"):
        Add(torch.tensor([float("nan")]))
    with pytest.raises(SiteError, match="zero direction"):
        Ablate(torch.zeros(4))
    with pytest.raises(SiteError, match="not orthonormal"):
        Project(torch.ones(2, 4))
    with pytest.raises(SiteError, match="unknown stream 'resid'"):
        Site.parse("resid.3")
    with pytest.raises(SiteError, match="not of the form"):
        Site.parse("resid_post")
    with pytest.raises(SiteError, match="layers 0 to 3"):
        resolve("resid_post.4", 4)
    with pytest.raises(SiteError, match="no sites"):
        resolve([], 4)
    with (
        pytest.raises(SiteError, match="unknown position"),
        editing(model, {Site(0, "resid_pre"): Add(VECTOR, 1.0, -99)}),
    ):
        model.last_logits(model.encode(tiny.prompts(1)))

"""Activation patching: identity, completeness, a planted circuit, a null, and agreement with forward passes done by hand."""

from dataclasses import replace

import numpy as np
import planted
import pytest
import tiny
import torch
from test_multimodal import KINDS, asked, made

from interp.data.prompts import Prompt
from interp.errors import CheckpointError, SelectionError, SiteError, UserError
from interp.methods.attribution import attribute
from interp.methods.head_patterns import head_patterns, top_heads
from interp.methods.logit_difference import LogitDifference, refusal_metric, unembedding
from interp.methods.patch_grid import agreement
from interp.methods.patch_pairs import Pair, align, closest_pairs, same_prompts, shuffled
from interp.methods.patch_runs import Component, n_heads
from interp.methods.patching import patch
from interp.models.activations import capture
from interp.models.generation import Completion
from interp.models.hooks import editing
from interp.models.sites import HEADS, Site

METRIC = LogitDifference((9, 20), (33, 50))
STREAMS = ("resid_pre", "attn_out", "mlp_out", "resid_post")


def pairs_of(n=4):
    """Pairs of random words, of different lengths."""
    return [
        Pair(a, replace(b, id=f"c{i}"))
        for i, (a, b) in enumerate(zip(tiny.prompts(n), tiny.prompts(n, 1), strict=True))
    ]


def planted_pairs(n=16, seed=3):
    both = (planted.prompt_set(harmful, n, seed) for harmful in (True, False))
    return [Pair(a, b) for a, b in zip(*both, strict=True)]


@pytest.fixture(scope="module")
def refuser():
    """The planted model and its metric. Words and the answer token are long in other directions, so that norms bend little along `r`:
    where all of a word lies along `r`, its norm hides every step towards the other sign and a gradient sees nothing.
    """
    model, r = planted.planted()
    with torch.no_grad():
        embedded = model.module.model.embed_tokens.weight
        answer, *words = model.tokenizer.convert_tokens_to_ids(["<|answer|>", *tiny.WORDS])
        embedded[answer] *= 4
        noise = torch.randn(model.d_model, generator=torch.Generator().manual_seed(9))
        embedded[words] += 8 * torch.linalg.qr(torch.stack([r, embedded[answer], noise], 1))[0][:, 2]
    ids = model.tokenizer.convert_tokens_to_ids([planted.REFUSE, planted.COMPLY])
    return model, LogitDifference((ids[0],), (ids[1],)), r


class Replaced:
    """Clean values at one place, in a pass of its own."""

    positions = "all"

    def __init__(self, clean, where):
        self.clean, self.where = clean, where

    def __call__(self, value):
        return torch.where(self.where, self.clean, value)

    def describe(self):
        return {}


@torch.no_grad()
def by_hand(model, pair, metric, stream, layer, where, source=None):
    """One pair alone, a whole forward pass with the clean values put in where `where` (pos, width) says."""
    clean = capture(source or model, [pair.giver], Site(layer, stream), "all", progress=False).values[0]
    with editing(model, {Site(layer, stream): Replaced(clean[None], where[None])}):
        logits = model.last_logits(model.encode([pair.corrupt]))
    return float(metric(logits[:, list(metric.ids)].double())[0])


@pytest.mark.parametrize("kind", tiny.FACTORIES)
def test_every_cell_is_what_a_pass_of_its_own_gives(kind):
    model, pairs = tiny.model(kind), pairs_of(3)
    for stream in STREAMS:
        grid = patch(model, pairs, METRIC, stream, layers=[0, 2, 3], side_by_side=64, progress=False)
        for i, pair in enumerate(pairs):
            n = len(model.token_ids(pair.corrupt))
            assert np.isnan(grid.patched[i, :, : len(grid.columns) - n]).all()
            for k, layer in enumerate(grid.layers):
                for p in (0, n // 2, n - 4, n - 1):
                    where = torch.zeros(n, model.d_model, dtype=torch.bool)
                    where[p] = True
                    expected = by_hand(model, pair, METRIC, stream, layer, where)
                    found = grid.patched[i, k, p - n]
                    assert abs(found - expected) <= 1e-4, (stream, layer, p)
    assert np.abs(grid.effect[:, :, -1]).mean(0).min() > 1e-3


@pytest.mark.parametrize("kind", tiny.FACTORIES)
def test_heads_are_patched_one_by_one(kind):
    model, pairs = tiny.model(kind), pairs_of(2)
    grid = patch(model, pairs, METRIC, HEADS, side_by_side=64, progress=False)
    assert grid.axis == "head" and grid.columns == ("0", "1", "2", "3")
    width = model.tower.head_width // n_heads(model)
    for i, pair in enumerate(pairs):
        n = len(model.token_ids(pair.corrupt))
        for layer in (0, 3):
            for head in range(4):
                where = torch.zeros(n, model.tower.head_width, dtype=torch.bool)
                where[:, head * width : (head + 1) * width] = True
                expected = by_hand(model, pair, METRIC, HEADS, layer, where)
                assert abs(grid.patched[i, layer, head] - expected) <= 1e-4
    # all heads together are the attention output
    whole = patch(model, pairs, METRIC, "attn_out", "all", layers=[1], progress=False)
    everything = torch.ones(len(model.token_ids(pairs[0].corrupt)), model.tower.head_width, dtype=torch.bool)
    assert abs(by_hand(model, pairs[0], METRIC, HEADS, 1, everything) - whole.patched[0, 0, 0]) <= 1e-4


def complete(model, pairs):
    """Patching the whole residual stream at any layer gives the clean run, and clean into clean nothing."""
    for stream in ("resid_pre", "resid_post"):
        grid = patch(model, pairs, METRIC, stream, "all", progress=False)
        assert (np.abs(grid.clean - grid.corrupt) > 1e-3).all()
        assert np.abs(grid.patched - grid.clean[:, None, None]).max() <= 1e-4
    same = [Pair(pair.corrupt, pair.corrupt) for pair in pairs]
    for stream in (*STREAMS, HEADS):
        grid = patch(model, same, METRIC, stream, progress=False)
        assert np.nanmax(np.abs(grid.effect)) <= 1e-9 and np.abs(grid.clean - grid.corrupt).max() <= 1e-4


@pytest.mark.parametrize("kind", tiny.FACTORIES)
def test_identity_and_completeness_on_text(kind):
    complete(tiny.model(kind), pairs_of())


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_between_checkpoints_all_behind_the_change_is_complete_and_nothing_before_it(kind):
    source, model = tiny.model(kind), tiny.model(kind)
    with torch.no_grad():
        writer = model.tower.blocks[1].get_submodule(model.tower.paths.mlp_proj)
        writer.weight.mul_(-1)
    grid = patch(model, same_prompts(tiny.prompts(3)), METRIC, positions="all", source=source, progress=False)
    assert (np.abs(grid.clean - grid.corrupt) > 1e-2).all()
    assert np.abs(grid.effect[:, :2]).max() <= 1e-9
    assert np.abs(grid.patched[:, 2:] - grid.clean[:, None, None]).max() <= 1e-4


def media_pairs(kind, model, *, other_media):
    """The same words about other media of equal size, or other words about the same."""
    first, *_, last = asked(kind, 5, text_too=False)
    if other_media:
        corrupt = replace(first, images=last.images, audio=last.audio, id="other")
    else:
        words = [f"w{59 - int(w[1:])}" for w in first.text.split()]
        corrupt = replace(first, text=" ".join(words), id="other")
    return [Pair(first, corrupt)]


@pytest.mark.parametrize("kind", KINDS)
def test_identity_and_completeness_on_media(kind):
    model = made(kind)
    complete(model, media_pairs(kind, model, other_media=False))
    seen = media_pairs(kind, model, other_media=True)
    if kind != "qwen3_vl":
        complete(model, seen)
        rule = KINDS[kind].modality
        at_media = patch(model, seen, METRIC, "resid_pre", [rule, "text"], layers=[0], progress=False)
        # what the projector hands over is all that differs before the first block
        assert abs(at_media.share(0.0)[0, 0, 0] - 1) <= 1e-3
        assert abs(at_media.share(0.0)[0, 0, 1]) <= 1e-9


def test_deep_stacked_features_are_the_exception():
    """Qwen3-VL adds features of the corrupt image behind its first blocks: earlier layers are incomplete, later ones complete."""
    model = made("qwen3_vl")
    seen = media_pairs("qwen3_vl", model, other_media=True)
    grid = patch(model, seen, METRIC, "resid_pre", "all", progress=False)
    off = np.abs(grid.patched - grid.clean[:, None, None])[0, :, 0]
    added = len(model.module.model.visual.deepstack_merger_list)
    assert (off[:added] > 1e-3).all() and (off[added:] <= 1e-4).all()


def test_a_planted_circuit_is_found_by_both(refuser):
    model, metric, _ = refuser
    pairs, at = planted_pairs(), planted.PLANTED_AT
    rules = ["instruction", "last"]
    exact = {s: patch(model, pairs, metric, s, rules, progress=False) for s in STREAMS}
    estimate = attribute(model, pairs, metric, positions=rules, progress=False)
    # the final norm bends what the estimate takes for straight
    for grids, found in ((exact, 0.8), (estimate, 0.3)):
        words, last = np.moveaxis(grids["resid_pre"].mean(), 1, 0)
        assert (words[: at + 1] > found).all() and (np.abs(words[at + 1 :]) < 0.1).all()
        assert (np.abs(last[: at + 1]) < 0.1).all() and (last[at + 1 :] > found).all()
        moved = grids["attn_out"].mean()[:, 1]
        assert moved[at] > found and np.abs(np.delete(moved, at)).max() < 0.1
        assert np.abs(grids["mlp_out"].mean()).max() < 0.1
    heads = patch(model, pairs, metric, HEADS, progress=False)
    assert heads.mean()[at, 0] > 0.8
    assert top_heads(heads.mean(), 1) == [(at, 0)]
    others = heads.mean().copy()
    others[at, 0] = 0
    assert np.abs(others).max() < 0.1
    by_head = attribute(model, pairs, metric, [HEADS], progress=False)[HEADS]
    assert top_heads(by_head.mean(), 1) == [(at, 0)]
    for stream in ("resid_pre", "attn_out"):
        assert agreement(exact[stream], estimate[stream]).value > 0.5


def test_the_other_way_round_takes_the_behaviour_away(refuser):
    model, metric, _ = refuser
    grid = patch(
        model, [p.swapped() for p in planted_pairs(6)], metric, positions="last", layers=[9], progress=False
    )
    assert (grid.clean < grid.corrupt).all() and (grid.share() > 0.8).all()


def test_values_of_a_shuffled_pair_do_nothing(refuser):
    model, metric, _ = refuser
    pairs = planted_pairs(20)
    null = shuffled(model, pairs, seed=1)
    assert all(p.donor.label == "benign" and p.donor.id != p.corrupt.id for p in null)
    grid = patch(model, null, metric, progress=False)
    true = patch(model, pairs, metric, progress=False)
    assert np.nanmax(np.abs(grid.mean())) < 0.1 and np.nanmax(true.mean()) > 0.8
    assert grid.clean.mean() > grid.corrupt.mean() + 1  # shares are of the true pair's gap
    with pytest.raises(UserError, match="no two pairs are equally long"):
        shuffled(model, planted_pairs(1))


def test_components_add_up_and_the_planted_direction_is_enough(refuser):
    model, metric, r = refuser
    pairs, basis = planted_pairs(8), r[None]
    layers = [4, 9]
    only, without, whole = (
        patch(model, pairs, metric, positions="last", layers=layers, component=part, progress=False)
        for part in (Component(basis), Component(basis, outside=True), None)
    )
    assert (only.mean() > 0.95).all() and (np.abs(without.mean()) < 0.05).all()
    assert (whole.mean() > 0.95).all()
    random = torch.linalg.qr(torch.randn(model.d_model, 1, generator=torch.Generator().manual_seed(5)))[0].T
    control = patch(
        model, pairs, metric, positions="last", layers=layers, component=Component(random), progress=False
    )
    assert np.abs(control.mean()).max() < 0.3
    estimate = attribute(
        model, pairs, metric, ["resid_pre"], "last", layers=layers, component=Component(basis), progress=False
    )["resid_pre"]
    assert (estimate.mean() > 0.3).all()
    with pytest.raises(SiteError, match="not orthonormal"):
        Component(2 * basis)
    with pytest.raises(SiteError, match="a component of width 32 cannot be taken of z"):
        patch(model, pairs, metric, HEADS, component=Component(basis), progress=False)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_the_unembedding_is_what_the_metric_reads_of_the_last_layer(kind):
    """A change without these directions cannot change the logits' differences but by the norm's length."""
    model = tiny.model(kind)
    basis = unembedding(model, METRIC)
    assert basis.shape == (3, model.d_model)
    h = torch.randn(5, model.d_model, generator=torch.Generator().manual_seed(0))
    change = Component(basis, outside=True)(
        torch.randn(5, model.d_model, generator=torch.Generator().manual_seed(1))
    )
    if kind == "gpt2":
        change = change - change.mean(-1, keepdim=True)
        change = Component(basis, outside=True)(change)

    def differences(x):
        normed = model.tower.norm(x)
        length = (
            (x - x.mean(-1, keepdim=True)).square().mean(-1) if kind == "gpt2" else x.square().mean(-1)
        ).sqrt()
        rows = model.tower.head.weight[list(METRIC.ids)]
        bias = getattr(model.tower.norm, "bias", None)
        logits = (normed - (0 if bias is None else bias)) @ rows.T * length[:, None]
        return (logits - logits.mean(-1, keepdim=True)).detach()

    assert (differences(h) - differences(h + change)).abs().max() <= 1e-4
    along = Component(basis)(torch.randn(5, model.d_model))
    assert (differences(h) - differences(h + along)).abs().max() > 1e-2


def test_attribution_is_the_slope_of_exact_patching():
    """For ever smaller differences between the runs the estimate becomes exact."""
    model = tiny.model()
    prompts = same_prompts(tiny.prompts(3))
    errors = []
    for size in (1e-1, 1e-2):
        source = tiny.model()
        with torch.no_grad():
            noise = torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
            source.module.model.layers[1].self_attn.o_proj.weight += size * 0.1 * noise
        exact = {
            s: patch(model, prompts, METRIC, s, source=source, progress=False)
            for s in ("attn_out", "resid_post", HEADS)
        }
        estimate = attribute(model, prompts, METRIC, list(exact), source=source, progress=False)
        for stream, grid in exact.items():
            assert grid.columns == estimate[stream].columns
        # double rounding: effects of the smaller change are around 1e-3
        errors.append(
            np.nanmax(np.abs(exact["resid_post"].effect - estimate["resid_post"].effect))
            / np.nanmax(np.abs(exact["resid_post"].effect))
        )
        assert np.nanmax(np.abs(exact["attn_out"].effect[:, 0])) <= 1e-6  # before the change nothing differs
    assert errors[1] < 0.03 and errors[1] < errors[0] / 3


@pytest.mark.parametrize("kind", ["gemma3", "qwen2_audio", "qwen3_vl", "granite_speech"])
def test_attribution_reads_images_and_sounds(kind):
    model = made(kind)
    required = [p.requires_grad for p in model.module.parameters()]
    pairs = media_pairs(kind, model, other_media=False)
    estimate = attribute(model, pairs, METRIC, positions=[KINDS[kind].modality, "text"], progress=False)
    exact = patch(model, pairs, METRIC, "resid_pre", [KINDS[kind].modality, "text"], progress=False)
    assert estimate["resid_pre"].corrupt == pytest.approx(exact.corrupt, abs=1e-4)
    assert estimate["resid_pre"].clean == pytest.approx(exact.clean, abs=1e-4)
    assert np.isfinite(estimate["mlp_out"].patched).all()
    assert [p.requires_grad for p in model.module.parameters()] == required and not model.module.training


def test_it_agrees_with_transformer_lens(refuser):
    from transformer_lens import patching

    model, metric, _ = refuser
    pairs = [pair for pair in planted_pairs(12) if len(pair.clean.text.split()) == 4]
    bridge = model.bridge()
    clean, corrupt = (
        model.encode([getattr(pair, side) for pair in pairs]).input_ids for side in ("clean", "corrupt")
    )
    with torch.no_grad():
        _, cache = bridge.run_with_cache(clean)

        def mean(logits):
            return metric(logits[:, -1, list(metric.ids)].double()).mean()

        theirs = patching.get_act_patch_resid_pre(bridge, corrupt, cache, mean)
    ours = patch(model, pairs, metric, progress=False)
    assert np.abs(ours.patched.mean(0) - theirs.numpy()).max() <= 1e-4
    found = head_patterns(model, pairs[0].clean, [(planted.PLANTED_AT, 0), (3, 2)], bridge=bridge)
    # queries are zero there: every token attends to all before it alike
    n = len(found.tokens)
    expected = np.tril(np.ones((n, n))) / np.arange(1, n + 1)[:, None]
    assert np.abs(found.patterns[0] - expected).max() <= 1e-5
    assert found.to_last().shape == (2, n)
    with pytest.raises(SiteError, match=r"head 3\.9 does not exist"):
        head_patterns(model, pairs[0].clean, [(3, 9)], bridge=bridge)


def test_batches_and_their_size_change_nothing():
    model, pairs = tiny.model(), pairs_of(5)
    whole = patch(model, pairs, METRIC, "attn_out", progress=False)
    parts = patch(model, pairs, METRIC, "attn_out", batch_size=2, side_by_side=1, progress=False)
    assert np.nanmax(np.abs(whole.patched - parts.patched)) <= 1e-4
    assert np.array_equal(np.isnan(whole.patched), np.isnan(parts.patched))


def test_what_does_not_line_up_is_refused_by_name(refuser):
    model, metric, _ = refuser
    short, long = Prompt("w1 w2", id="short"), Prompt("w1 w2 w3", id="long")
    with pytest.raises(UserError, match="'short' and 'long' do not line up: .* and .* tokens"):
        patch(model, [Pair(short, long)], metric, progress=False)
    with pytest.raises(UserError, match="no pairs"):
        patch(model, [], metric, progress=False)
    with pytest.raises(UserError, match="two pairs have the id 'short'"):
        align(model, same_prompts([short, short]))
    with pytest.raises(SiteError, match="unknown stream 'resid'"):
        patch(model, same_prompts([short]), metric, "resid", progress=False)
    with pytest.raises(SiteError, match="layer 10 does not exist: planted has layers 0 to 9"):
        patch(model, same_prompts([short]), metric, layers=[10], progress=False)
    with pytest.raises(SiteError, match="unknown position rule 'everywhere'"):
        patch(model, same_prompts([short]), metric, positions="everywhere", progress=False)
    with pytest.raises(SiteError, match="has no image tokens"):
        patch(model, same_prompts([short]), metric, positions="image", progress=False)
    with pytest.raises(SiteError, match="heads are patched at the tokens of one rule"):
        patch(model, same_prompts([short]), metric, HEADS, ["last", "all"], progress=False)
    for kind, what in (("llama", "n_layers 4 and planted 10"), ("gpt2", "model_type gpt2 and planted llama")):
        with pytest.raises(CheckpointError, match=what):
            patch(model, same_prompts([short]), metric, source=tiny.model(kind), progress=False)
    plain = tiny.model()
    plain.chat_template = "plain"
    with pytest.raises(CheckpointError, match="make different tokens of prompt 'short'"):
        patch(tiny.model(seed=1), same_prompts([short]), METRIC, source=plain, progress=False)


def test_images_at_other_places_do_not_line_up():
    model = made("gemma3")
    picture = asked("gemma3", 1, text_too=False)[0]
    n = len(model.token_ids(picture))
    words = " ".join(["w1"] * (n - len(model.token_ids(Prompt("w1", id="x"))) + 1))
    with pytest.raises(UserError, match="stands for an image or a sound in one of them only"):
        align(model, [Pair(picture, Prompt(words, id="words"))])


def test_twins_are_found_by_their_tokens(refuser):
    model, _, _ = refuser
    clean = [Prompt("w1 w2 w3 w4", id="a"), Prompt("w5 w6 w7", id="b"), Prompt("w1", id="alone")]
    corrupt = [
        Prompt("w40 w6 w7", id="y"),
        Prompt("w1 w2 w3 w40", id="x"),
        Prompt("w41 w42 w43 w44", id="far"),
    ]
    found = closest_pairs(model, clean, corrupt)
    assert [(p.clean.id, p.corrupt.id) for p in found] == [("a", "x"), ("b", "y")]
    with pytest.raises(UserError, match="no clean prompt has a corrupt one"):
        closest_pairs(model, clean[2:], corrupt)


def test_the_metric_is_derived_from_answers(refuser):
    model, _, _ = refuser
    words = model.tokenizer.convert_tokens_to_ids
    made_up = [
        Completion(str(i), "", 1, True, (words("w0" if i < 5 else f"w{50 + i % 2}"),)) for i in range(10)
    ]
    metric = refusal_metric(model, made_up, [i < 5 for i in range(10)])
    assert metric.refusal == (words("w0"),) and set(metric.compliance) == {words("w50"), words("w51")}
    assert "against" in str(metric) and "w0" in str(metric)
    logits = torch.tensor([[2.0, 1.0, 1.0]])
    assert float(metric(logits)[0]) == pytest.approx(2 - (1 + np.log(2)))
    with pytest.raises(SelectionError, match="answered none of 10"):
        refusal_metric(model, made_up, [True] * 10)
    with pytest.raises(UserError, match="token 3 stands on both sides"):
        LogitDifference((3,), (3, 4))


@pytest.mark.parametrize("kind", tiny.FACTORIES)
def test_heads_are_captured_before_they_are_mixed(kind):
    model, prompts = tiny.model(kind), tiny.prompts(3)
    heads = capture(model, prompts, HEADS, "all", progress=False)
    assert heads.values.shape[-1] == model.tower.head_width
    mixed = model.tower.module(Site(1, HEADS))(heads["z.1"])
    expected = capture(model, prompts, "attn_out.1", "all", progress=False).values[0]
    norm = model.tower.module(Site(1, "attn_out")) if model.tower.paths.post_norms else torch.nn.Identity()
    assert (norm(mixed) - expected).abs().max() <= 1e-5
    with pytest.raises(SiteError, match="differ in width"):
        capture(model, prompts, ["z.1", "resid_pre.1"], progress=False)

"""Edits of what sees and hears, in every architecture: they act where they say, reach the decoder, and stay in their row."""

import pytest
import torch
from multimodal import KINDS, TOWER, asked, made

from interp.errors import SiteError
from interp.models.activations import capture
from interp.models.generation import generate
from interp.models.hooks import Ablate, Add, editing
from interp.models.model import Model
from interp.models.sites import PROJECTOR, Site

ATOL = 1e-4


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(kind) -> Model:
    return made(kind)


def sites(kind: str, model: Model) -> list[Site]:
    """The first and the last block that something reads, and the projector."""
    tower = TOWER[KINDS[kind].modality]
    last = len(model.tower.encoders[tower].blocks) - 1 - KINDS[kind].unread_blocks
    return [Site(0, "resid_post", tower), Site(last, "resid_post", tower), Site(0, PROJECTOR, tower)]


def vector(kind: str, model: Model, site: Site) -> torch.Tensor:
    (prompt, *_) = asked(kind, 1, text_too=False)
    width = capture(model, [prompt], str(site), "mean", progress=False).values.shape[-1]
    return 3 * torch.randn(width, generator=torch.Generator().manual_seed(1))


def test_an_edit_acts_there_and_on_what_comes_behind(kind, model):
    prompts = asked(kind)
    seeing = prompts[:-1]
    for site in sites(kind, model):
        added = vector(kind, model, site)
        plain = capture(model, seeing, str(site), "all", progress=False)
        answer = capture(model, prompts, "resid_post", "last", progress=False)
        with editing(model, {site: Add(added, scale=0.0)}):
            same = capture(model, prompts, "resid_post", "last", progress=False)
        with editing(model, {site: Add(added)}):
            moved = capture(model, seeing, str(site), "all", progress=False)
            reached = capture(model, prompts, "resid_post", "last", progress=False)
        with editing(model, {site: Ablate(added)}):
            ablated = capture(model, seeing, str(site), "all", progress=False)
        assert torch.equal(answer.values, same.values), site
        assert torch.allclose(moved.values - plain.values, added.expand_as(plain.values), atol=ATOL), site
        along = ablated.values.double() @ (added.double() / added.double().norm())
        assert along.abs().max() < 1e-4 * plain.values.abs().max(), site
        change = (reached.values - answer.values).abs().amax((0, 2))
        assert (change[:-1] > 1e-4).all() and change[-1] == 0, (site, "text alone is not seen")
    after = capture(model, prompts, "resid_post", "last", progress=False)
    assert torch.equal(after.values, answer.values), "edits are gone with their context"


def test_a_batch_under_an_edit_is_its_rows(kind, model):
    prompts = asked(kind)
    edits = {site: Add(vector(kind, model, site)) for site in sites(kind, model)}
    with editing(model, edits):
        together = capture(model, prompts, "resid_post", "last", progress=False)
        alone = capture(model, prompts, "resid_post", "last", batch_size=1, progress=False)
    assert (together.values - alone.values).abs().max() <= ATOL
    cached = generate(model, prompts, edits=edits, max_new_tokens=3, progress=False)
    whole = generate(model, prompts, edits=edits, max_new_tokens=3, use_cache=False, progress=False)
    assert [a.token_ids for a in cached] == [a.token_ids for a in whole]


def test_what_means_nothing_in_an_encoder_is_refused(kind, model):
    tower = TOWER[KINDS[kind].modality]
    site, prompts = Site(0, "resid_post", tower), asked(kind, 2, text_too=False)
    fitting = vector(kind, model, site)
    for edit, message in (
        (Add(fitting, positions="last"), "has no prompt positions"),
        (Add(fitting.expand(2, -1)), "an encoder has no rows"),
    ):
        with pytest.raises(SiteError, match=message), editing(model, {site: edit}):
            pass
    with (
        pytest.raises(SiteError, match=f"an edit of width 7 at {tower}.resid_post.0: the width there is"),
        editing(model, {site: Add(torch.ones(7))}),
    ):
        capture(model, prompts, "resid_post", "last", progress=False)
    with (
        pytest.raises(SiteError, match=f"the {tower} encoder has layers 0 to"),
        editing(model, {Site(40, "resid_post", tower): Add(fitting)}),
    ):
        pass
    assert not any(hooks for part in model.module.modules() for hooks in [_ours(part)])


def _ours(part: torch.nn.Module) -> list[object]:
    """Hooks of this library on a module."""
    found = [*part._forward_hooks.values(), *part._forward_pre_hooks.values()]
    return [hook for hook in found if getattr(hook, "__module__", "").startswith("interp")]

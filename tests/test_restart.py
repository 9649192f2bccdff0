"""A forward pass gone on with from any block and position gives what the whole pass gives, on every architecture."""

import pytest
import tiny
import torch
from test_multimodal import KINDS, asked, made

from interp.errors import CheckpointError
from interp.methods.patching import Shift
from interp.models.hooks import editing
from interp.models.restart import record
from interp.models.sites import Site

IDS = (9, 20, 33)
WHOLE = {"gemma3", "paligemma", "qwen3_vl"}  # attention to later positions, or features added between blocks


def batch_of(model, prompts):
    return model.pad([model.token_ids(p) for p in prompts], [p.id for p in prompts])


def restarts_agree(model, batch, reuses):
    """At every block and three positions, two copies: as recorded, and with something added there, as in a whole pass."""
    recording = record(model, batch)
    assert recording.reuses_prefix == reuses
    width, rows = batch.input_ids.shape[1], len(batch.prompt_ids)
    generator = torch.Generator().manual_seed(0)
    for layer in range(model.n_layers):
        for start in (0, width // 2, width - 1):
            first = recording.first(start)
            plain = recording.resume(layer, start, 2, IDS)
            expected = recording.logits[:, list(IDS)]
            assert (plain - expected.repeat(2, 1)).abs().max() <= 1e-4, (layer, start)
            change = torch.zeros(rows, width, model.d_model)
            change[:, start] = torch.randn(rows, model.d_model, generator=generator)
            site = Site(layer, "resid_pre")
            with editing(model, {site: Shift(change)}), torch.no_grad():
                whole = model.module(**batch.inputs(), use_cache=False).logits[:, -1][:, list(IDS)]
            with editing(model, {site: Shift(change[:, first:].repeat(2, 1, 1))}):
                found = recording.resume(layer, start, 2, IDS)
            if start == width - 1:  # what comes long before may not reach the last token in the last block
                assert (whole - expected).abs().max() > 1e-2
            assert (found - whole.repeat(2, 1)).abs().max() <= 1e-4, (layer, start)


@pytest.mark.parametrize("kind", tiny.FACTORIES)
def test_text_restarts_from_the_prefix(kind):
    model = tiny.model(kind)
    restarts_agree(model, model.encode(tiny.prompts(3)), reuses=True)


@pytest.mark.parametrize("kind", KINDS)
def test_images_and_sounds_restart_without_their_encoders(kind):
    model = made(kind)
    prompts = asked(kind, 2, text_too=False)
    encoder = next(iter(model.tower.encoders.values()))
    batch = batch_of(model, prompts[:1] if not model.tower.paths.mixed_sizes else prompts)
    restarts_agree(model, batch, reuses=kind not in WHOLE)
    recording = record(model, batch)
    ran = []
    handle = encoder.projector.register_forward_hook(lambda *_: ran.append(1))
    recording.resume(1, 0, 2, IDS)
    handle.remove()
    assert not ran


def test_a_model_whose_logits_are_not_its_heads_is_refused(monkeypatch):
    model = tiny.model()
    forward = model.module.forward

    def doubled(**given):
        output = forward(**given)
        output.logits = 2 * output.logits
        return output

    monkeypatch.setattr(model.module, "forward", doubled)
    with pytest.raises(CheckpointError, match="tiny-llama-0: its logits are not what its head makes"):
        record(model, model.encode(tiny.prompts(2)))

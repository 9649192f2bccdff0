"""Weights without a direction are the ablation at all sites, where an exact form exists; elsewhere export is refused."""

import pytest
import tiny
import torch

from interp.data.prompts import PromptSet
from interp.errors import CheckpointError
from interp.methods.orthogonalize import export_orthogonalized, logit_error, orthogonalize
from interp.models.checkpoint import Checkpoint
from interp.models.finetune import FinetuneConfig, train
from interp.models.model import Model

VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(0))
POST_NORM = {"gemma2", "gemma3_text", "olmo2"}


@pytest.mark.parametrize("kind", sorted(set(tiny.FACTORIES) - POST_NORM))
def test_logits_are_those_of_the_ablation_and_survive_the_disk(kind, tmp_path):
    model, prompts = tiny.model(kind), tiny.prompts()
    plain = model.last_logits(model.encode(prompts))
    with torch.no_grad():  # biases are zero at birth: a projection that forgets them must be seen
        for name, parameter in model.module.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    error = export_orthogonalized(model, VECTOR, prompts, tmp_path / "out")
    assert error <= 1e-4
    loaded = Checkpoint.parse(tmp_path / "out").load()
    assert logit_error(model, loaded, VECTOR, prompts) <= 1e-4
    assert (
        loaded.last_logits(loaded.encode(prompts)) - plain
    ).abs().max() > 1e-2  # there was something to remove


@pytest.mark.parametrize("kind", sorted(POST_NORM))
def test_post_norms_are_refused_by_name(kind, tmp_path):
    model = tiny.model(kind)
    with torch.no_grad():  # norms with unequal gains, as trained ones have
        for name, parameter in model.module.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.2, 2.0, generator=torch.Generator().manual_seed(2))
    with pytest.raises(CheckpointError, match=f"{kind}.*a norm after each block.*use the ablation as a hook"):
        export_orthogonalized(model, VECTOR, tiny.prompts(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_live_adapter_is_merged_and_the_model_itself_is_untouched():
    model = tiny.model()
    examples = PromptSet(list(tiny.prompts(4)))
    from dataclasses import replace

    train(
        model,
        [replace(p, response="w1 w2") for p in examples],
        FinetuneConfig(steps=5, learning_rate=1e-2),
        progress=False,
    )
    before = model.last_logits(model.encode(examples))
    assert logit_error(model, orthogonalize(model, VECTOR), VECTOR, list(examples)) <= 1e-4
    assert torch.equal(model.last_logits(model.encode(examples)), before)


def test_a_model_loaded_without_a_template_keeps_its_way_of_asking():
    known = tiny.model()
    known.tokenizer.chat_template = None
    model = Model.from_module(known.module, known.tokenizer, name="plain", chat_template="plain")
    found = orthogonalize(model, VECTOR)
    assert found.chat_template == "plain" and found.n_eoi == model.n_eoi
    assert logit_error(model, found, VECTOR, tiny.prompts()) <= 1e-4


def test_half_precision_is_named_as_the_reason(tmp_path):
    model = tiny.model()
    model.module.to(torch.bfloat16)
    with pytest.raises(CheckpointError, match="bfloat16 rounds more than that; load it in float32"):
        export_orthogonalized(model, VECTOR, tiny.prompts(), tmp_path / "out")

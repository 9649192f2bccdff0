"""A baked-in bias is the steering, as plain transformers loads it; where it cannot be, the reason is named and nothing is left."""

import pytest
import tiny
import torch
from synthetic import noise
from transformers import AutoModelForCausalLM

from interp.errors import CheckpointError, SiteError
from interp.methods.steering import Condition, SteeringVectors, steer, steered
from interp.methods.steering_export import export_steered
from interp.models.generation import generate
from interp.models.sites import Site

STREAMS = {
    "llama": ("resid_post.1", "resid_pre.2", "mlp_out.0", "attn_out.3"),
    "gpt2": ("resid_post.1", "resid_pre.2", "mlp_out.0", "attn_out.3"),
    "gpt_neox": ("resid_post.1", "resid_pre.2", "mlp_out.0", "attn_out.3"),
    "qwen3": ("attn_out.1",),
}


def vectors(*sites: str) -> SteeringVectors:
    return SteeringVectors(noise(len(sites), 32, seed=0), tuple(map(Site.parse, sites)))


@pytest.mark.parametrize(
    ("kind", "site"), [(kind, site) for kind, sites in STREAMS.items() for site in sites]
)
def test_plain_transformers_loads_the_steered_model(kind, site, tmp_path):
    model, prompts = tiny.model(kind), tiny.prompts(4)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    steering = steer(vectors(site), 0.5, "all")
    assert export_steered(model, steering, prompts, tmp_path / "out") <= 1e-4
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    batch = model.encode(prompts)
    with torch.no_grad():
        found = loaded(**batch.inputs()).logits
        plain = model.module(**batch.inputs()).logits
        with steered(model, steering):
            expected = model.module(**batch.inputs()).logits
    real = batch.attention_mask.bool()
    assert (found - expected)[real].abs().max() <= 1e-4 < (plain - expected)[real].abs().max()
    # while generating too
    told = generate(model, prompts[:1], edits=steering, max_new_tokens=6, progress=False)[0].token_ids
    ids = model.encode(prompts[:1]).input_ids
    made = loaded.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :].tolist()
    assert made[: len(told)] == list(told)
    assert all(torch.equal(before[name], value) for name, value in model.module.state_dict().items())


def test_several_parts_and_sites_add_up(tmp_path):
    model, prompts = tiny.model(), tiny.prompts(4)
    steering = steer(vectors("resid_post.1", "mlp_out.1"), [0.5, 1.0], "all") & steer(
        vectors("resid_pre.2", "attn_out.0"), 2.0, "all"
    )
    assert export_steered(model, steering, prompts, tmp_path / "out") <= 1e-4
    assert (tmp_path / "out" / "tokenizer.json").exists()


@pytest.mark.parametrize(
    ("kind", "steering", "reason"),
    [
        ("llama", steer(vectors("resid_post.1"), positions="answer"), "at 'answer' has no form as a bias"),
        ("llama", steer(vectors("resid_post.1"), positions="prompt"), "at 'prompt' has no form as a bias"),
        (
            "llama",
            steer(vectors("resid_pre.0"), positions="all"),
            r"resid_pre\.0 is written by the embedding",
        ),
        (
            "gemma2",
            steer(vectors("resid_post.1"), positions="all"),
            r"tiny-gemma2-0 \(gemma2\) has a norm between",
        ),
        ("olmo2", steer(vectors("attn_out.1"), positions="all"), "has a norm between"),
        (
            "qwen2",
            steer(vectors("resid_post.1"), positions="all"),
            r"\(qwen2\): mlp.down_proj has no bias and the config no switch",
        ),
        ("qwen3", steer(vectors("resid_post.1"), positions="all"), r"\(qwen3\): mlp.down_proj has no bias"),
        ("mistral", steer(vectors("attn_out.1"), positions="all"), "self_attn.o_proj has no bias"),
        ("phi3", steer(vectors("mlp_out.1"), positions="all"), "mlp.down_proj has no bias"),
        (
            "llama",
            steer(
                vectors("resid_post.1"), 1.0, "all", Condition(noise(32, seed=1), Site(1, "resid_post"), 0.0)
            ),
            "under a condition has no form as a bias",
        ),
    ],
)
def test_what_no_bias_can_be_is_refused_by_name(kind, steering, reason, tmp_path):
    with pytest.raises(CheckpointError, match=reason):
        export_steered(tiny.model(kind), steering, tiny.prompts(3), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_rounding_beyond_the_tolerance_and_wrong_widths_are_refused(tmp_path):
    model = tiny.model()
    model.module.bfloat16()
    with pytest.raises(CheckpointError, match="load it in float32"):
        export_steered(model, steer(vectors("resid_post.1"), 3.0, "all"), tiny.prompts(3), tmp_path / "out")
    narrow = SteeringVectors(torch.ones(1, 8), (Site(1, "resid_post"),))
    with pytest.raises(SiteError, match="width 8"):
        export_steered(tiny.model(), steer(narrow, positions="all"), tiny.prompts(3), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []

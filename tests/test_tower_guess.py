"""An architecture that is not in the table is found by structure, or refused with what would describe it."""

import pytest
import tiny
import torch
from transformers import GraniteConfig, GraniteForCausalLM, Starcoder2Config, Starcoder2ForCausalLM

from interp.errors import CheckpointError
from interp.models.activations import capture
from interp.models.model import Model
from interp.models.tower_guess import guess_paths
from interp.models.towers import TOWERS

FIELDS = (
    "decoder",
    "layers",
    "embed",
    "norm",
    "head",
    "attn",
    "mlp",
    "attn_out",
    "mlp_out",
    "attn_proj",
    "mlp_proj",
)


@pytest.mark.parametrize("kind", [kind for kind in tiny.FACTORIES if not TOWERS[kind].post_norms])
def test_the_table_is_found_again(kind):
    assert guess_paths(tiny.module(kind)) == {name: getattr(TOWERS[kind], name) for name in FIELDS}


@pytest.mark.parametrize("kind", [kind for kind in tiny.FACTORIES if TOWERS[kind].post_norms])
def test_norms_behind_what_writes_are_seen_and_refused(kind):
    with pytest.raises(CheckpointError, match="block 0 does not add what self_attn and mlp give"):
        guess_paths(tiny.module(kind))


def test_an_unknown_architecture_is_captured_with_a_warning():
    torch.manual_seed(0)
    module = Starcoder2ForCausalLM(Starcoder2Config(**tiny.COMMON))
    with pytest.warns(UserWarning, match="'starcoder2' is not in the table .* its streams add up"):
        model = Model.from_module(module, tiny.tokenizer())
    acts = capture(model, tiny.prompts(), ["resid_pre", "attn_out", "mlp_out", "resid_post"], progress=False)
    total = acts["resid_pre.2"] + acts["attn_out.2"] + acts["mlp_out.2"]
    assert torch.allclose(total, acts["resid_post.2"], atol=1e-5)


def test_a_factor_between_is_refused_with_the_tree_and_the_two_lines():
    module = GraniteForCausalLM(GraniteConfig(**tiny.COMMON, residual_multiplier=0.2))
    with pytest.raises(CheckpointError) as error:
        guess_paths(module)
    text = str(error.value)
    assert "block 0 does not add" in text and "a factor stands between" in text
    assert "model.layers.0.self_attn.o_proj: Linear" in text and '"granite": TowerPaths(' in text

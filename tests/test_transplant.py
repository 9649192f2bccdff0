"""Weights put back: the model is its own again afterwards, all parts together are the source, and a planted damage is found."""

import numpy as np
import planted
import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from test_multimodal import made

from interp.errors import CheckpointError, UserError
from interp.methods.logit_difference import LogitDifference
from interp.methods.transplant import (
    ALONE,
    FROM,
    UP_TO,
    block_parts,
    changed,
    merged,
    metric_values,
    module_parts,
    transplant,
    transplanted,
)
from interp.models.model import Model
from interp.models.towers import find_tower

METRIC = LogitDifference((9, 20), (33, 50))


def tuned_from(model, names, size=0.3):
    """A copy whose named parameters are moved."""
    import copy
    from dataclasses import replace

    module = copy.deepcopy(model.module)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if any(part in name for part in names):
                step = size * (parameter.abs().mean() + 0.01)  # biases may be zero
                parameter += step * torch.randn(parameter.shape, generator=generator)
    return replace(model, module=module, tower=find_tower(module), name="tuned")


@pytest.mark.parametrize("kind", tiny.FACTORIES)
def test_all_parts_together_are_the_source_and_none_changes_nothing(kind):
    aligned = tiny.model(kind)
    tuned = tuned_from(aligned, [""])
    prompts, before = tiny.prompts(4), metric_values(tuned, tiny.prompts(4), METRIC)
    names = changed(tuned, aligned)
    assert len(names) == len(list(tuned.module.parameters()))
    measures = {
        "log-odds": (prompts, lambda model, asked: metric_values(model, asked, METRIC)),
        "first": (prompts[:1], lambda model, asked: metric_values(model, asked, METRIC)),
    }
    grids = transplant(tuned, aligned, block_parts(tuned, names), measures, axis="blocks", progress=False)
    grid = grids["log-odds"]
    assert grid.layers == (-1, 0, 1, 2, 3, 4) and grid.columns == (ALONE, UP_TO, FROM)
    assert (np.abs(grid.clean - grid.corrupt) > 1e-3).all()
    for cell in (grid.patched[:, -1, 1], grid.patched[:, 0, 2]):
        assert np.abs(cell - grid.clean).max() <= 1e-6
    assert np.array_equal(grid.patched[:, 0, 0], grid.patched[:, 0, 1])
    assert np.abs(grids["first"].patched - grid.patched[:1]).max() <= 1e-5
    assert np.array_equal(metric_values(tuned, prompts, METRIC), before)
    with pytest.raises(RuntimeError), transplanted(tuned, aligned, names):
        raise RuntimeError
    assert np.array_equal(metric_values(tuned, prompts, METRIC), before)


def test_planted_damage_is_found_in_its_module():
    """The planted refuser lost its attention output of block 1, and another block changed without consequence."""
    model, _ = planted.planted()
    ids = model.tokenizer.convert_tokens_to_ids([planted.REFUSE, planted.COMPLY])
    metric = LogitDifference((ids[0],), (ids[1],))
    broken, _ = planted.planted()
    with torch.no_grad():
        broken.module.model.layers[planted.PLANTED_AT].self_attn.o_proj.weight.mul_(0.2)
        broken.module.model.layers[5].mlp.down_proj.weight.mul_(1.5)
    parts = module_parts(broken, changed(broken, model))
    assert set(parts) == {(planted.PLANTED_AT, "self_attn.o_proj"), (5, "mlp.down_proj")}
    harmful = planted.prompt_set(True, 12, 1)
    measures = {"log-odds": (harmful, lambda found, asked: metric_values(found, asked, metric))}
    grid = transplant(broken, model, parts, measures, progress=False)["log-odds"]
    assert grid.mean()[0, 0] == pytest.approx(1, abs=0.05) and abs(grid.mean()[1, 1]) < 0.05
    assert np.isnan(grid.mean()[0, 1])  # no part there
    # the other way round the fine-tune's weights suffice to break it
    back = transplant(model, broken, parts, measures, progress=False)["log-odds"]
    assert back.mean()[0, 0] == pytest.approx(1, abs=0.05)


def test_lora_is_transplanted_module_by_module():
    aligned = tiny.model()
    module = tiny.module()
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    peft = get_peft_model(module, config)
    tuned = Model.from_module(peft.get_base_model(), aligned.tokenizer, name="lora", peft=peft)
    with pytest.raises(CheckpointError, match=r"lora carries a live adapter; pass merged\(model\)"):
        changed(tuned, aligned)
    plain = merged(tuned)
    assert np.abs(metric_values(plain, tiny.prompts(), METRIC) - metric_values(tuned, tiny.prompts(), METRIC)).max() <= 1e-4  # fmt: skip
    parts = module_parts(plain, changed(plain, aligned))
    assert set(parts) == {(layer, name) for layer in range(4) for name in ("self_attn.q_proj", "mlp.down_proj")}  # fmt: skip
    assert merged(aligned) is aligned


def test_what_comes_before_the_blocks_is_a_part():
    model = made("llava")
    tuned = tuned_from(model, ["multi_modal_projector", "layers.2.mlp", "lm_head"])
    parts = block_parts(tuned, changed(tuned, model))
    alone = {layer for (layer, column), names in parts.items() if column == ALONE and names}
    assert alone >= {-1, 2, 4}
    assert all("multi_modal_projector" in name for name in parts[-1, ALONE])


def test_what_cannot_be_transplanted_is_refused():
    model = tiny.model()
    with pytest.raises(CheckpointError, match="have the same weights"):
        changed(model, tiny.model())
    with pytest.raises(CheckpointError, match="model_type gpt2"):
        changed(model, tiny.model("gpt2"))
    with (
        pytest.raises(UserError, match="'nothing' is no parameter of both"),
        transplanted(model, tiny.model(seed=1), ["nothing"]),
    ):
        pass
    with pytest.raises(UserError, match="no parts to transplant"):
        transplant(model, tiny.model(seed=1), {}, {}, progress=False)
    tuned = tuned_from(model, ["lm_head"])
    with pytest.raises(UserError, match="changed nothing inside the blocks"):
        module_parts(tuned, changed(tuned, model))

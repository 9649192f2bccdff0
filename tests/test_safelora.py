"""The published P and the true projector against their closed forms, and what SafeLoRA changes and leaves alone."""

import copy
from dataclasses import replace

import pytest
import tiny
import torch
from peft.tuners.lora import LoraLayer
from transformers.pytorch_utils import Conv1D

from interp.errors import NonFiniteError, UserError
from interp.methods.orthogonalize import orthogonalize
from interp.methods.safelora import alignment_map, safelora
from interp.models.finetune import FinetuneConfig, add_lora, train
from interp.models.model import Model

RANK = 3
STILL = "mlp"  # alignment leaves every linear map of the MLPs as it was


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linears(model: Model) -> dict[str, torch.nn.Module]:
    path = model.tower.paths.layers
    return {
        name: module
        for name, module in model.module.named_modules()
        if name.startswith(path) and isinstance(module, torch.nn.Linear | Conv1D)
    }


def moved(model: Model, scale: float, rank: int, seed: int, skip: str | None = None) -> Model:
    """A copy whose matrices inside the blocks moved by a random change of this rank."""
    found = Model.from_module(copy.deepcopy(model.module), model.tokenizer, name=f"moved-{seed}")
    with torch.no_grad():
        for i, (name, layer) in enumerate(linears(found).items()):
            m, n = layer.weight.shape
            if skip is None or skip not in name:
                layer.weight += (
                    scale * random(m, rank, seed=100 * seed + i) @ random(rank, n, seed=200 * seed + i)
                )
    return found


def family(kind: str = "llama") -> tuple[Model, Model, Model]:
    base = tiny.model(kind)
    aligned = moved(base, 0.1, RANK, seed=1, skip=STILL)
    return base, aligned, moved(aligned, 0.05, 8, seed=2)


def with_factors(aligned: Model, seed: int = 3) -> Model:
    """The aligned model carrying live LoRA factors that do something."""
    tuned = Model.from_module(copy.deepcopy(aligned.module), aligned.tokenizer, name="with factors")
    with torch.random.fork_rng():
        tuned.peft = add_lora(tuned, FinetuneConfig(steps=1, lora_rank=4))
        torch.manual_seed(seed)
        for name, parameter in tuned.module.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return tuned


def weights(model: Model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.module.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def outputs_first(layer: torch.nn.Module) -> torch.Tensor:
    return (layer.weight.T if isinstance(layer, Conv1D) else layer.weight).detach()


def closed_form(v: torch.Tensor, form: str, k: int = RANK) -> torch.Tensor:
    if form == "published":
        return v @ v.T / v.norm()
    u = torch.linalg.svd(v).U[:, :k]
    return u @ u.T


V = random(12, RANK) @ random(RANK, 9, seed=1)
EYE = torch.eye(12)


def test_the_projector_is_idempotent_symmetric_and_not_the_identity():
    p = alignment_map(V, form="projector", energy=1.0)
    matrix = p(EYE)
    assert p.rank == RANK
    assert torch.allclose(p(matrix), matrix, atol=1e-6)
    assert torch.allclose(matrix, matrix.T, atol=1e-6)
    assert (matrix - EYE).norm() > 2
    change = random(12, 9, seed=2)
    assert (p(change) - change).norm() > 0.3 * change.norm()
    assert torch.allclose(p(V), V, atol=1e-5)


def test_the_published_form_is_v_vt_over_its_norm_and_no_projector():
    p = alignment_map(V, form="published")
    matrix = p(EYE)
    assert torch.allclose(matrix, V @ V.T / V.norm(), atol=1e-5)
    assert (p(matrix) - matrix).norm() > matrix.norm()
    assert torch.allclose(alignment_map(0.01 * V, form="published")(EYE), 0.01 * matrix, atol=1e-6)


def test_all_of_a_full_rank_change_is_the_identity_and_a_share_of_it_is_not():
    full = random(9, 12)
    assert torch.allclose(
        alignment_map(full, form="projector", energy=1.0)(torch.eye(9)), torch.eye(9), atol=1e-5
    )
    assert alignment_map(full, form="projector", energy=0.5).rank < 9


@pytest.mark.parametrize(("energy", "rank"), [(0.1, 1), (0.63, 1), (0.65, 2), (0.86, 2), (1.0, 3)])
def test_energy_is_the_share_of_the_squared_singular_values(energy, rank):
    u, _, v = torch.linalg.svd(V, full_matrices=False)
    change = (u[:, :3] * torch.tensor([0.8, 0.6 * 0.8, 0.6 * 0.6])) @ v[:3]
    assert alignment_map(change, form="projector", energy=energy).rank == rank


@pytest.mark.parametrize("form", ["published", "projector"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "phi3"])
def test_full_weights_agree_with_the_closed_form_and_nobody_else_is_touched(kind, form):
    base, aligned, tuned = models = family(kind)
    before = [weights(model) for model in models]
    found = safelora(base, aligned, tuned, form=form, threshold=1.0, energy=1.0, progress=False)
    assert all(same(weights(model), then) for model, then in zip(models, before, strict=True))
    layers = {name: [linears(m)[name] for m in (*models, found.model)] for name in linears(base)}
    assert {block.name for block in found.blocks} == {name for name in layers if STILL not in name}
    assert set(found.unaligned) == {name for name in layers if STILL in name} and not found.untrained
    for block in found.blocks:
        w_base, w_aligned, w_tuned, w_found = map(outputs_first, layers[block.name])
        change = w_tuned - w_aligned
        expected = closed_form(w_aligned - w_base, form) @ change
        assert torch.allclose(w_found - w_aligned, expected, atol=1e-5), block.name
        assert block.replaced and block.rank == RANK
        assert block.norm_before == pytest.approx(float(change.norm()), rel=1e-4)
        assert block.norm_after == pytest.approx(float(expected.norm()), rel=1e-4)
        cosine = float(torch.nn.functional.cosine_similarity(expected.flatten(), change.flatten(), dim=0))
        assert block.cosine == pytest.approx(cosine, abs=1e-5)
        assert (expected - change).norm() > 0.3 * change.norm()  # there was something to take
    untouched = set(before[2]) - {f"{block.name}.weight" for block in found.blocks}
    after = weights(found.model)
    assert all(torch.equal(after[name], before[2][name]) for name in untouched)
    assert found.model.checkpoint is None and found.model.n_eoi == tuned.n_eoi


@pytest.mark.parametrize("form", ["published", "projector"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_live_factors_agree_with_full_weights(kind, form):
    base, aligned, _ = family(kind)
    tuned = with_factors(aligned)
    before, prompts = weights(tuned), tiny.prompts()
    merged = Model.from_module(copy.deepcopy(tuned.peft).merge_and_unload(), tuned.tokenizer, name="merged")
    options = {"form": form, "threshold": 1.0, "energy": 1.0, "progress": False}
    live, full = (safelora(base, aligned, model, **options) for model in (tuned, merged))
    assert same(weights(tuned), before)
    assert live.model.peft is not None and live.model.peft is not tuned.peft
    assert [b.name for b in live.blocks] == [b.name for b in full.blocks] and live.unaligned == full.unaligned
    for a, b in zip(live.blocks, full.blocks, strict=True):
        assert a.cosine == pytest.approx(b.cosine, abs=1e-4)
        assert a.norm_after == pytest.approx(b.norm_after, rel=1e-3)
    changed = {name for name, value in weights(live.model).items() if not torch.equal(value, before[name])}
    assert changed == {f"{block.name}.lora_B.default.weight" for block in live.blocks}
    batch = tuned.encode(prompts)
    found, expected = live.model.last_logits(batch), full.model.last_logits(batch)
    assert torch.allclose(found, expected, atol=1e-3)
    assert (found - tuned.last_logits(batch)).abs().max() > 1e-2


def test_a_change_inside_the_subspace_is_left_as_it_is():
    base, aligned, _ = family()
    tuned = Model.from_module(copy.deepcopy(aligned.module), aligned.tokenizer, name="along alignment")
    with torch.no_grad():
        for name, layer in linears(tuned).items():
            v = outputs_first(linears(aligned)[name]) - outputs_first(linears(base)[name])
            layer.weight += 0.3 * v @ random(v.shape[1], v.shape[1], seed=7)
    found = safelora(base, aligned, tuned, form="projector", threshold=1.0, energy=1.0, progress=False)
    assert all(block.cosine == pytest.approx(1, abs=1e-5) for block in found.blocks)
    assert set(found.untrained) == {name for name in linears(base) if STILL in name}
    for name, value in weights(found.model).items():
        assert torch.allclose(value, weights(tuned)[name], atol=1e-4)


@pytest.mark.parametrize("live", [False, True])
def test_threshold_minus_one_replaces_nothing_bit_for_bit(live):
    base, aligned, tuned = family()
    tuned = with_factors(aligned) if live else tuned
    found = safelora(base, aligned, tuned, form="published", threshold=-1.0, progress=False)
    assert found.blocks and not any(block.replaced for block in found.blocks)
    assert all(block.norm_after == block.norm_before for block in found.blocks)
    assert same(weights(found.model), weights(tuned))


def test_a_threshold_between_parts_the_blocks_by_their_cosine():
    base, aligned, tuned = family()
    cosines = [
        b.cosine
        for b in safelora(base, aligned, tuned, form="projector", threshold=-1.0, progress=False).blocks
    ]
    middle = sorted(cosines)[len(cosines) // 2]
    found = safelora(base, aligned, tuned, form="projector", threshold=middle, progress=False)
    assert [b.replaced for b in found.blocks] == [c < middle for c in cosines]
    assert 0 < sum(b.replaced for b in found.blocks) < len(cosines)
    assert f"{len(cosines) // 2} of {len(cosines)} matrices" in str(found)
    assert list(found.to_frame()["cosine"]) == pytest.approx(cosines)


def test_a_change_across_the_subspace_is_taken_away_whole():
    v, change = torch.zeros(4, 4), torch.zeros(4, 4)
    v[0, 0], change[1, 1] = 1.0, 1.0
    assert not alignment_map(v, form="projector")(change).any()
    base, aligned, _ = family()
    tuned = Model.from_module(copy.deepcopy(aligned.module), aligned.tokenizer, name="across")
    name, layer = next(iter(linears(tuned).items()))
    with torch.no_grad():
        linears(aligned)[name].weight.copy_(linears(base)[name].weight)
        linears(aligned)[name].weight[0, 0] += 1
        layer.weight.copy_(linears(aligned)[name].weight)
        layer.weight[1, 1] += 1
    found = safelora(base, aligned, tuned, form="projector", threshold=0.5, progress=False)
    assert found.blocks[0].cosine == 0.0 and found.blocks[0].norm_after == 0.0
    assert torch.equal(linears(found.model)[name].weight, linears(aligned)[name].weight)


def test_an_adapter_trained_here_on_some_layers_leaves_the_others_untrained():
    base, aligned, _ = family()
    tuned = Model.from_module(copy.deepcopy(aligned.module), aligned.tokenizer, name="trained")
    examples = [replace(p, response="w1 w2") for p in tiny.prompts(4)]
    config = FinetuneConfig(steps=3, learning_rate=1e-2, lora_targets=("q_proj", "down_proj"))
    train(tuned, examples, config, progress=False)
    found = safelora(base, aligned, tuned, form="projector", threshold=1.0, progress=False)
    assert {block.name.rpartition(".")[2] for block in found.blocks} == {"q_proj"}
    assert {name.rpartition(".")[2] for name in found.unaligned} == {"down_proj"}
    assert len(found.blocks) + len(found.unaligned) + len(found.untrained) == len(linears(base))
    assert isinstance(found.model.tower.blocks[0].self_attn.q_proj, LoraLayer)
    orthogonalize(found.model, random(32))  # the copy merges like any model with live factors


def test_half_precision_keeps_its_type_and_the_arithmetic_is_wide():
    models = family()
    expected = safelora(*models, form="projector", threshold=1.0, energy=0.9, progress=False)
    for model in models:
        model.module.to(torch.bfloat16)
    found = safelora(*models, form="projector", threshold=1.0, energy=0.9, progress=False)
    assert found.model.dtype == torch.bfloat16
    assert [b.rank for b in found.blocks if "q_proj" in b.name] == [
        b.rank for b in expected.blocks if "q_proj" in b.name
    ]


def test_what_does_not_fit_is_refused_by_name():
    base, aligned, tuned = family()
    go = {"form": "projector", "threshold": 0.5, "progress": False}
    for threshold in (-1.1, 1.1, float("nan")):
        with pytest.raises(UserError, match=r"cosine in \[-1, 1\]"):
            safelora(base, aligned, tuned, form="projector", threshold=threshold)
    for energy in (0.0, 1.1, float("nan")):
        with pytest.raises(UserError, match=r"energy must lie in \(0, 1\]"):
            safelora(base, aligned, tuned, **go, energy=energy)
        with pytest.raises(UserError, match=r"energy must lie in \(0, 1\]"):
            alignment_map(V, form="projector", energy=energy)
    with pytest.raises(UserError, match="V = 0 has no directions"):
        alignment_map(torch.zeros(3, 3), form="published")
    with pytest.raises(UserError, match="tiny-gpt2-0 has model_type gpt2 and moved-1 llama"):
        safelora(tiny.model("gpt2"), aligned, tuned, **go)
    live = with_factors(aligned)
    with pytest.raises(UserError, match="with factors carries a live adapter; merge it first"):
        safelora(base, live, tuned, **go)
    with pytest.raises(
        UserError, match=r"adapter on model\.layers\.0\.self_attn\.q_proj sits on other weights"
    ):
        safelora(base, tuned, live, **go)
    quantised = moved(aligned, 0.05, 8, seed=2)
    quantised.module.is_quantized = True
    with pytest.raises(UserError, match="moved-2 is quantised"):
        safelora(base, aligned, quantised, **go)
    wide = moved(aligned, 0.05, 8, seed=2)
    wide.module.model.layers[2].mlp.up_proj = torch.nn.Linear(32, 50, bias=False)
    with pytest.raises(
        UserError, match=r"model\.layers\.2\.mlp\.up_proj is \(50, 32\) in moved-2 and \(48, 32\)"
    ):
        safelora(base, aligned, wide, **go)
    broken = moved(aligned, 0.05, 8, seed=2)
    with torch.no_grad():
        broken.module.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"model\.layers\.1\.mlp\.up_proj holds NaN"):
        safelora(base, aligned, broken, **go)


def test_an_adapter_that_is_no_plain_lora_is_refused():
    from peft import LoraConfig, get_peft_model

    base, aligned, _ = family()
    tuned = Model.from_module(copy.deepcopy(aligned.module), aligned.tokenizer, name="dora")
    with torch.random.fork_rng():
        tuned.peft = get_peft_model(tuned.module, LoraConfig(r=2, use_dora=True, target_modules=["q_proj"]))
    with pytest.raises(UserError, match=r"layers\.0\.self_attn\.q_proj is no plain LoRA; merge it"):
        safelora(base, aligned, tuned, form="projector", threshold=0.5, progress=False)

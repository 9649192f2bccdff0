"""Per-example gradients: equal to one backward pass an example, whatever is kept, and nothing of the model is changed."""

import gc
import math

import pytest
import tiny
import torch
from gradient_oracle import error, one_by_one
from torch import nn

from interp.data.prompts import Prompt
from interp.errors import UserError
from interp.geometry.conflict import gram, spectrum
from interp.models import batches, factors
from interp.models.finetune import FinetuneConfig, add_lora, isolated_rng
from interp.models.gradients import capture_gradients
from interp.models.model import Model


def with_lora(kind: str = "llama") -> Model:
    """A tiny model with factors that are both away from zero."""
    model = tiny.model(kind)
    with isolated_rng(0):
        model.peft = add_lora(model, FinetuneConfig(steps=1, lora_rank=4))
        for name, parameter in model.module.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("kind", tiny.FACTORIES)
def test_every_architecture_equals_one_backward_pass_an_example(kind):
    model, prompts = tiny.model(kind), tiny.answered()
    each = capture_gradients(model, prompts, keep="each", batch_size=3, progress=False)
    expected = one_by_one(model, prompts, each.blocks)
    linear = [
        name
        for name, part in model.module.named_modules()
        if factors._is_linear(part) and name.startswith(f"{model.tower.paths.layers}.")
    ]
    assert each.blocks == tuple(f"{name}.weight" for name in linear) and len(linear) >= 16
    assert each.example_ids == tuple(prompt.id for prompt in prompts)
    for name, rows in expected.items():
        assert error(each.rows[name], rows) <= 1e-5, name
    inner = capture_gradients(model, prompts, keep="gram", batch_size=3, progress=False)
    for name, rows in expected.items():
        assert error(inner.gram[name], gram(rows)) <= 1e-5, name
    whole = gram(torch.cat(list(expected.values()), dim=1))
    assert inner.total.dtype == torch.float64 and error(inner.total, whole) <= 1e-5


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "qwen2"])
def test_biases(kind):
    model, prompts = tiny.model(kind), tiny.answered(5)
    pattern = {"gpt2": "*.c_*.bias", "gpt_neox": "*dense*.bias", "qwen2": "*_proj.bias"}[kind]
    with torch.no_grad():
        for name, parameter in model.module.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(torch.randn(len(parameter), generator=torch.Generator().manual_seed(0)) / 5)
    each = capture_gradients(model, prompts, pattern, keep="each", batch_size=2, progress=False)
    inner = capture_gradients(model, prompts, [pattern], batch_size=5, progress=False)
    assert len(each.blocks) >= 12
    expected = one_by_one(model, prompts, each.blocks)
    # a key's bias shifts all scores of a query alike: its gradient is zero but for rounding
    scale = max(float(rows.norm(dim=1).max()) for rows in expected.values())
    for name, rows in expected.items():
        assert (each.rows[name] - rows).norm(dim=1).max() <= 1e-5 * scale, name
        assert (inner.gram[name] - gram(rows)).abs().max() <= 1e-5 * scale**2, name


@pytest.mark.parametrize("kind", ["llama", "phi3", "gpt2"])
def test_factors_of_an_adapter(kind):
    model, prompts = with_lora(kind), tiny.answered(5)
    each = capture_gradients(model, prompts, "lora", keep="each", batch_size=2, progress=False)
    sides = {side: [name for name in each.blocks if f".lora_{side}." in name] for side in "AB"}
    assert len(sides["A"]) == len(sides["B"]) >= 16 and len(each.blocks) == 2 * len(sides["A"])
    for name, rows in one_by_one(model, prompts, each.blocks).items():
        assert error(each.rows[name], rows) <= 1e-5, name
    plain = capture_gradients(model, prompts, keep="each", progress=False)
    assert len(plain.blocks) == len(sides["A"]) and all("lora" not in name for name in plain.blocks)


def test_untied_head_is_evaluated_on_responses_only():
    model, prompts = tiny.model(), tiny.answered()
    each = capture_gradients(model, prompts, ["lm_head.weight"], keep="each", batch_size=3, progress=False)
    expected = one_by_one(model, prompts, each.blocks)
    assert error(each.rows["lm_head.weight"], expected["lm_head.weight"]) <= 1e-5


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_mean_of_any_parameter(kind):
    model, prompts = tiny.model(kind), tiny.answered()
    names = ["model.embed_tokens.weight", "lm_head.weight", "*norm.weight", "*.2.*.weight"]
    mean = capture_gradients(model, prompts, names, keep="mean", batch_size=3, progress=False)
    expected = one_by_one(model, prompts, mean.blocks)
    assert {"model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"} <= set(mean.blocks)
    for name, rows in expected.items():
        assert (
            mean.mean[name].shape == dict(model.module.named_parameters(remove_duplicate=False))[name].shape
        )
        assert error(mean.mean[name].reshape(1, -1), rows.mean(0, keepdim=True)) <= 1e-5, name


class _Twice(nn.Module):
    """Calls one linear layer on its input and on its own output."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, value):
        return self.inner(value) + self.inner(torch.tanh(value))


@pytest.mark.parametrize("memory", [1 << 30, 60_000])
def test_a_layer_called_twice_adds_up(memory):
    model, prompts = tiny.model(), tiny.answered()
    attention = model.module.model.layers[1].self_attn
    attention.o_proj = _Twice(attention.o_proj)
    names = ["*.1.self_attn.o_proj.inner.weight", "*.1.*.v_proj.weight"]
    each = capture_gradients(model, prompts, names, keep="each", batch_size=4, progress=False)
    inner = capture_gradients(model, prompts, names, batch_size=4, memory=memory, progress=False)
    projected = capture_gradients(model, prompts, names, keep="projections", progress=False)
    for name, rows in one_by_one(model, prompts, each.blocks).items():
        assert error(each.rows[name], rows) <= 1e-5
        assert error(inner.gram[name], gram(rows)) <= 1e-5
        # 32 × 32 and 16 × 32 fit 64 · 64 whole: a rotation, which keeps inner products
        assert error(gram(projected.rows[name]), gram(rows)) <= 1e-5


def test_batches_padding_order_and_memory_change_nothing(monkeypatch):
    model, prompts = tiny.model("gemma2"), tiny.answered(9)
    expected = capture_gradients(model, prompts, batch_size=1, progress=False)
    rows = capture_gradients(model, prompts, keep="projections", batch_size=1, dimension=64, progress=False)
    for size in (2, 9):
        again = capture_gradients(model, prompts, batch_size=size, progress=False)
        assert error(again.total, expected.total) <= 1e-5
        other = capture_gradients(
            model, prompts, keep="projections", batch_size=size, dimension=64, progress=False
        )
        assert error(other.total, rows.total) <= 1e-5
    order = [4, 0, 8, 1, 7, 2, 3, 6, 5]
    turned = capture_gradients(model, [prompts[i] for i in order], batch_size=4, progress=False)
    assert error(turned.total, expected.total[order][:, order]) <= 1e-5
    sweeps, real = [], factors.Examples.sweep
    monkeypatch.setattr(
        factors.Examples,
        "sweep",
        lambda self, blocks, *rest: (sweeps.append(len(blocks)), real(self, blocks, *rest))[1],
    )
    small = capture_gradients(model, prompts, batch_size=4, memory=150_000, progress=False)
    assert len(sweeps) > 3 and sum(sweeps) == len(small.blocks) == 28
    assert small.blocks == expected.blocks
    for name in small.blocks:
        assert error(small.gram[name], expected.gram[name]) <= 1e-5
    with pytest.warns(UserWarning, match=r"records of .* alone take .* GiB"):
        tiniest = capture_gradients(model, prompts, batch_size=4, memory=8 * 81 * 28 + 100, progress=False)
    assert error(tiniest.total, expected.total) <= 1e-5


def test_nan_in_padding_is_never_read():
    model, prompts = tiny.model(), tiny.answered()
    names = "*.3.mlp.*.weight"  # above it there is no attention that would carry NaN on to other tokens
    expected = {
        keep: capture_gradients(model, prompts, names, keep=keep, batch_size=1, progress=False)
        for keep in ("gram", "projections", "each")
    }
    padding: list[torch.Tensor] = []
    model.tower.embed.register_forward_pre_hook(
        lambda module, arguments: padding.append(arguments[0] == model.pad_id)
    )
    model.module.model.layers[3].mlp.register_forward_pre_hook(
        lambda module, arguments: (arguments[0].masked_fill(padding[-1][..., None], torch.nan),)
    )
    for keep, clean in expected.items():
        found = capture_gradients(model, prompts, names, keep=keep, batch_size=7, progress=False)
        for name in clean.blocks:
            assert error(found.data[name], clean.data[name]) <= 1e-5
    assert padding[-1].any()


def test_half_finished_batches_are_not_counted_twice(monkeypatch):
    model, prompts = tiny.model(), tiny.answered(6)
    wanted = {
        keep: capture_gradients(model, prompts, "*.q_proj.weight", keep=keep, progress=False)
        for keep in ("gram", "each", "mean")
    }
    for keep, reads in (("gram", "own"), ("each", "without_padding")):
        real, tried = getattr(factors.Examples, reads), []

        def failing(self, *arguments, real=real, tried=tried):
            tried.append(len(arguments[-1]))
            if tried[-1] > 2 and len(tried) > 3:  # some layers of the batch have been read by then
                raise torch.cuda.OutOfMemoryError("out of memory")
            return real(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(factors.Examples, reads, failing)
            found = capture_gradients(model, prompts, "*.q_proj.weight", keep=keep, progress=False)
        assert max(tried) == 6 and batches.is_out_of_memory(torch.cuda.OutOfMemoryError("out of memory"))
        for name in found.blocks:
            assert error(found.data[name], wanted[keep].data[name]) <= 1e-5
    mean = torch.cat([rows.mean(0) for rows in wanted["each"].rows.values()])
    assert error(torch.cat([v.flatten() for v in wanted["mean"].mean.values()])[None], mean[None]) <= 1e-5


def test_projections_keep_inner_products_on_average_within_their_error():
    model, prompts = tiny.model(), tiny.answered(6)
    names = ["*.q_proj.weight", "*.gate_proj.weight"]
    exact = capture_gradients(model, prompts, names, progress=False)
    norms = exact.total.diagonal().sqrt()
    p = q = 4
    draws = torch.stack(
        [
            capture_gradients(
                model, prompts, names, keep="projections", dimension=p * q, seed=seed, progress=False
            ).total
            for seed in range(80)
        ]
    ).double()
    errors = (draws @ draws.mT - exact.total) / (norms[:, None] * norms)
    bound = math.sqrt((1 + 2 / p) * (1 + 2 / q) - 1)
    assert errors.square().mean(0).sqrt().max() <= 1.15 * bound
    assert errors.mean(0).abs().max() <= 4 * bound / math.sqrt(80)
    assert errors.std(0).min() >= 0.02  # a projection, and not the gradients themselves


def test_projections_of_blocks_kept_whole_do_not_interfere_on_average():
    model, prompts = tiny.model(), tiny.answered(4)
    exact = capture_gradients(model, prompts, "*.mlp.*.weight", progress=False).total
    norms = exact.diagonal().sqrt()
    errors = []
    for seed in range(40):
        found = capture_gradients(
            model, prompts, "*.mlp.*.weight", keep="projections", seed=seed, progress=False
        )
        rows = found.total.double()
        errors.append((rows @ rows.T - exact) / (norms[:, None] * norms))
    assert torch.stack(errors).mean(0).abs().max() <= 0.02


def test_projections_depend_on_seed_and_block_alone():
    model, prompts = tiny.model(), tiny.answered(4)
    state = torch.get_rng_state()
    arguments = {"keep": "projections", "dimension": 36, "progress": False}
    first = capture_gradients(model, prompts, "*.layers.1.*_proj.weight", **arguments)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    name = "model.layers.1.mlp.up_proj.weight"
    alone = capture_gradients(model, prompts, name, **arguments)
    assert torch.allclose(alone.rows[name], first.rows[name], rtol=1e-4, atol=1e-6)
    assert first.rows[name].shape == (4, 36) and (first.seed, first.blocks[0]) == (
        0,
        "model.layers.1.self_attn.q_proj.weight",
    )
    other = capture_gradients(model, prompts, name, seed=1, **arguments)
    assert error(other.rows[name], first.rows[name]) > 0.1
    factor = capture_gradients(with_lora(), prompts, "lora", keep="projections", dimension=64, progress=False)
    assert {rows.shape for rows in factor.rows.values()} == {(4, 64)}
    for bad, near in ((4099, 4096), (0, 1), (-4, 1), (2 * 8191, 128**2)):
        with pytest.raises(UserError, match=f"dimension {bad} is no product .* use {near}, say"):
            capture_gradients(model, prompts, keep="projections", dimension=bad)


def test_spectrum_of_the_gram_matrix_is_that_of_the_rows():
    model, prompts = tiny.model(), tiny.answered(6)
    prompts = [*prompts, *(Prompt(p.text, id=f"{p.id}-again", response=p.response) for p in prompts[:3])]
    inner = capture_gradients(model, prompts, progress=False).total
    rows = one_by_one(model, prompts, capture_gradients(model, prompts, keep="each", progress=False).blocks)
    singular = torch.linalg.svdvals(torch.cat(list(rows.values()), dim=1).double())
    found = spectrum(inner)
    assert torch.allclose(found.singular_values[:6], singular[:6], rtol=1e-4)
    # three of nine are there twice: six dimensions hold everything
    assert found.components_for(1 - 1e-6) <= 6 and float(found.singular_values[6]) <= 1e-3 * float(
        singular[0]
    )


@pytest.mark.parametrize("keep", ["gram", "projections", "each", "mean"])
def test_model_is_as_before_also_after_an_exception(keep, monkeypatch):
    model, prompts = tiny.model(), tiny.answered(3)
    parameters = list(model.module.parameters())
    for parameter in parameters[::2]:
        parameter.requires_grad_(False)
    model.module.model.layers[2].train()
    before = [parameter.requires_grad for parameter in parameters]
    values = [parameter.detach().clone() for parameter in parameters]

    def unchanged() -> bool:
        training = [part.training for part in model.module.modules()]
        return (
            [parameter.requires_grad for parameter in parameters] == before
            and training == [part in kept for part in model.module.modules()]
            and not any(part._forward_hooks for part in model.module.modules())
            and all(parameter.grad is None for parameter in parameters)
            and all(torch.equal(a, b) for a, b in zip(parameters, values, strict=True))
        )

    kept = set(model.module.model.layers[2].modules())
    with torch.no_grad():
        capture_gradients(model, prompts, "*.q_proj.weight", keep=keep, progress=False)
        assert not torch.is_grad_enabled()
    assert unchanged()
    calls = []

    def dying(self, values, what, batch):
        calls.append(what)
        raise KeyboardInterrupt

    monkeypatch.setattr(factors.Examples, "check", dying)
    with pytest.raises(KeyboardInterrupt):
        capture_gradients(model, prompts, "*.q_proj.weight", keep=keep, progress=False)
    assert calls and unchanged()


def test_dropout_is_off():
    model, prompts = tiny.model("gpt2"), tiny.answered(3)
    model.module.train()
    training = capture_gradients(model, prompts, "*.c_proj.weight", progress=False)
    assert model.module.training and model.module.transformer.drop.p > 0
    model.module.eval()
    assert torch.equal(
        training.total, capture_gradients(model, prompts, "*.c_proj.weight", progress=False).total
    )


def test_bfloat16_is_computed_in_single_precision():
    model, prompts = tiny.model(), tiny.answered(4)
    model.module.bfloat16()
    each = capture_gradients(model, prompts, keep="each", batch_size=1, progress=False)
    assert {rows.dtype for rows in each.rows.values()} == {torch.float32}
    whole = torch.cat(list(each.rows.values()), dim=1)
    expected = torch.cat(list(one_by_one(model, prompts, each.blocks).values()), dim=1)
    assert error(whole, expected) <= 0.02
    inner = capture_gradients(model, prompts, batch_size=1, progress=False)
    assert error(inner.total, gram(whole)) <= 1e-5
    mean = capture_gradients(model, prompts, keep="mean", batch_size=1, progress=False)
    assert {value.dtype for value in mean.mean.values()} == {torch.float32}


@pytest.mark.parametrize("keep", ["gram", "projections"])
def test_nothing_of_a_pass_outlives_it(keep):
    """Kept inputs must not hold the graph: its hooks hold what is kept, a cycle that no garbage collector sees."""
    model, asked = tiny.model(), tiny.answered()

    def alive() -> int:
        gc.collect()
        return sum(type(value) is torch.Tensor for value in gc.get_objects())

    capture_gradients(model, asked, keep=keep, dimension=16, progress=False)
    before = alive()
    for _ in range(3):
        capture_gradients(model, asked, keep=keep, dimension=16, progress=False)
    assert alive() <= before + 2

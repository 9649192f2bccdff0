"""Per-example gradients: equal to one backward pass an example, whatever is kept, and nothing of the model is changed."""

import gc
import math

import pytest
import tiny
import torch
from torch import nn

from interp.data.prompts import Prompt
from interp.errors import NonFiniteError, ResultError, UserError
from interp.geometry.conflict import gram, spectrum
from interp.models import batches, factors
from interp.models.finetune import FinetuneConfig, add_lora, isolated_rng
from interp.models.gradients import Gradients, capture_gradients
from interp.models.likelihood import with_responses
from interp.models.model import Model

WORDS = ["w3", "w9", "w12", "w7", "w30"]


def examples(n: int = 7) -> list[Prompt]:
    """Prompts and responses of different lengths."""
    return with_responses(tiny.prompts(n), [" ".join(WORDS[: 1 + i % 5]) for i in range(n)])


def with_lora(kind: str = "llama") -> Model:
    """A tiny model with factors that are both away from zero."""
    model = tiny.model(kind)
    with isolated_rng(0):
        model.peft = add_lora(model, FinetuneConfig(steps=1, lora_rank=4))
        for name, parameter in model.module.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.2)
    return model


def one_by_one(model: Model, prompts: list[Prompt], names) -> dict[str, torch.Tensor]:
    """The oracle: a forward and backward pass for each example alone, in fp32, (n, numel) by name."""
    parameters = dict(model.module.named_parameters(remove_duplicate=False))
    wanted = [parameters[name] for name in names]
    before = [parameter.requires_grad for parameter in wanted]
    rows = []
    for parameter in wanted:
        parameter.requires_grad_()
    for prompt in prompts:
        asked, answer = model.token_ids(prompt), model.response_ids(prompt)
        logits = model.module(torch.tensor([asked + answer]), use_cache=False).logits[0]
        loss = nn.functional.cross_entropy(logits[len(asked) - 1 : -1].float(), torch.tensor(answer))
        rows.append([g.flatten().float() for g in torch.autograd.grad(loss, wanted)])
    for parameter, required in zip(wanted, before, strict=True):
        parameter.requires_grad_(required)
    return {name: torch.stack(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest relative error of a row."""
    return float(((found - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)).max())


@pytest.mark.parametrize("kind", tiny.FACTORIES)
def test_every_architecture_equals_one_backward_pass_an_example(kind):
    model, prompts = tiny.model(kind), examples()
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
    model, prompts = tiny.model(kind), examples(5)
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
    model, prompts = with_lora(kind), examples(5)
    each = capture_gradients(model, prompts, "lora", keep="each", batch_size=2, progress=False)
    sides = {side: [name for name in each.blocks if f".lora_{side}." in name] for side in "AB"}
    assert len(sides["A"]) == len(sides["B"]) >= 16 and len(each.blocks) == 2 * len(sides["A"])
    for name, rows in one_by_one(model, prompts, each.blocks).items():
        assert error(each.rows[name], rows) <= 1e-5, name
    plain = capture_gradients(model, prompts, keep="each", progress=False)
    assert len(plain.blocks) == len(sides["A"]) and all("lora" not in name for name in plain.blocks)


def test_untied_head_is_evaluated_on_responses_only():
    model, prompts = tiny.model(), examples()
    each = capture_gradients(model, prompts, ["lm_head.weight"], keep="each", batch_size=3, progress=False)
    expected = one_by_one(model, prompts, each.blocks)
    assert error(each.rows["lm_head.weight"], expected["lm_head.weight"]) <= 1e-5


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_mean_of_any_parameter(kind):
    model, prompts = tiny.model(kind), examples()
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
    model, prompts = tiny.model(), examples()
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
    model, prompts = tiny.model("gemma2"), examples(9)
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
    model, prompts = tiny.model(), examples()
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
    model, prompts = tiny.model(), examples(6)
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
    model, prompts = tiny.model(), examples(6)
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
    model, prompts = tiny.model(), examples(4)
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
    model, prompts = tiny.model(), examples(4)
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
    model, prompts = tiny.model(), examples(6)
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
    model, prompts = tiny.model(), examples(3)
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
    model, prompts = tiny.model("gpt2"), examples(3)
    model.module.train()
    training = capture_gradients(model, prompts, "*.c_proj.weight", progress=False)
    assert model.module.training and model.module.transformer.drop.p > 0
    model.module.eval()
    assert torch.equal(
        training.total, capture_gradients(model, prompts, "*.c_proj.weight", progress=False).total
    )


def test_bfloat16_is_computed_in_single_precision():
    model, prompts = tiny.model(), examples(4)
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


def test_what_cannot_be_had_is_refused_by_name():
    model, tied, prompts = tiny.model(), tiny.model("gemma2"), examples(3)

    def refused(pattern, model=model, prompts=prompts, **arguments):
        with pytest.raises(UserError, match=pattern):
            capture_gradients(model, prompts, **{"progress": False} | arguments)

    refused("embed_tokens.weight is of a Embedding; .*keep='mean'", blocks="model.embed_tokens.weight")
    refused("layers.0.input_layernorm.weight is of a LlamaRMSNorm", blocks="*.0.*norm.weight")
    refused(
        "lm_head.weight is shared between modules, .*keep='mean'",
        tied,
        blocks=["lm_head.weight"],
        keep="each",
    )
    refused(
        "no parameter 'layers.1.qproj.weight'; near it are model.layers.1", blocks="layers.1.qproj.weight"
    )
    refused("no weights for blocks='lora'", blocks="lora")
    refused(r"no weights for blocks=\[\]", blocks=[])
    refused("unknown keep='rows'; use gram, projections, mean, each", keep="rows")
    refused("no examples", prompts=[])
    refused("prompt 'mute' has no response", prompts=[*prompts, Prompt(text="w1", id="mute")])
    refused("'long' has 129 tokens", prompts=[Prompt(text="w1 " * 123, id="long", response="w1")])
    refused("takes 0.000343 GiB, memory allows 0.000335; raise it", keep="each", memory=360_000)
    refused("a Gram matrix of 3 examples for each of 28 blocks takes", memory=1000)
    model.module.model.layers[1].self_attn.q_proj.weight = nn.Parameter(
        torch.zeros(32, 32, dtype=torch.int8), requires_grad=False
    )
    refused("layers.1.self_attn.q_proj.weight is quantised", keep="mean")


class _Routed(nn.Module):
    """An expert that sees some of the tokens only."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner
        self.never = nn.Linear(4, 4)

    def forward(self, value):
        some = value.flatten(0, 1)[1:]
        return torch.cat([value.flatten(0, 1)[:1], self.inner(some)]).view_as(value)


def test_layers_that_do_not_see_every_token_are_refused():
    model, prompts = tiny.model(), examples(3)
    attention = model.module.model.layers[3].self_attn
    attention.o_proj = _Routed(attention.o_proj)
    with pytest.raises(UserError, match=r"o_proj.inner.weight: its layer is called on \(\d+, 32\)"):
        capture_gradients(model, prompts, progress=False)
    for keep in ("gram", "each"):
        with pytest.raises(UserError, match="o_proj.never.weight: its layer takes no part in the loss of"):
            capture_gradients(model, prompts, "*.o_proj.never.weight", keep=keep, progress=False)
    with pytest.raises(UserError, match="the loss depends on none of .*o_proj.never.weight"):
        capture_gradients(model, prompts, "*.o_proj.never.weight", keep="mean", progress=False)
    name = "model.layers.3.self_attn.o_proj.inner.weight"
    mean = capture_gradients(model, prompts, name, keep="mean", batch_size=1, progress=False)
    expected = one_by_one(model, prompts, [name])[name].mean(0)
    assert error(mean.mean[name].reshape(1, -1), expected[None]) <= 1e-5


def test_values_that_are_not_finite_name_the_example():
    prompts = with_responses(
        [Prompt(text="w1 w2 w3", id="fine"), Prompt(text="w4 w5", id="broken"), Prompt(text="w6", id="well")],
        ["w8", "w7", "w8"],
    )
    model = tiny.model()
    with torch.no_grad():
        model.tower.embed.weight[model.tokenizer.convert_tokens_to_ids("w5")] = float("nan")
    for keep in ("gram", "each", "mean"):
        with pytest.raises(NonFiniteError, match="the loss of example 'broken' is NaN"):
            capture_gradients(model, prompts, "*.q_proj.weight", keep=keep, progress=False)

    class Steep(torch.autograd.Function):
        @staticmethod
        def forward(context, value):
            context.save_for_backward(value)
            return value.clone()

        @staticmethod
        def backward(context, gradient):
            # infinite for the row of the marked token
            marked = (context.saved_tensors[0] == 77.0).any(-1, keepdim=True)
            return torch.where(marked, torch.inf, gradient)

    model = tiny.model()
    with torch.no_grad():
        model.tower.embed.weight[model.tokenizer.convert_tokens_to_ids("w5"), 0] = 77.0
    model.module.model.layers[0].register_forward_pre_hook(
        lambda module, arguments: (Steep.apply(arguments[0]), *arguments[1:])
    )
    for keep in ("gram", "projections", "each"):
        # below the hook there is only the embedding: watch what is above, where all is well
        found = capture_gradients(model, prompts, "*.q_proj.weight", keep=keep, progress=False)
        assert all(torch.isfinite(value).all() for value in found.data.values())
    with pytest.raises(NonFiniteError, match="the gradient of example 'broken' is NaN or infinite"):
        capture_gradients(model, prompts, "*embed_tokens.weight", keep="mean", progress=False)


def test_a_gradient_that_is_not_finite_names_the_example():
    prompts = with_responses([Prompt(text=f"w{i} w{i + 1}", id=f"p{i}") for i in range(5)], ["w8"] * 5)
    model = tiny.model()

    def spoil(module, arguments, output):
        if output.requires_grad:
            row = (arguments[0][..., 0] * 0).detach()
            row[seen(arguments[0])] = torch.inf
            output.register_hook(lambda gradient: gradient + row[..., None])

    def seen(value: torch.Tensor) -> int:
        """The row of the batch in which p2 stands."""
        return order.index("p2") if len(value) == len(order) else 0

    order = [f"p{i}" for i in range(5)]  # equal lengths keep their order
    model.module.model.layers[2].mlp.up_proj.register_forward_hook(spoil)
    for keep in ("gram", "projections", "each"):
        with pytest.raises(NonFiniteError, match="the gradient of example 'p2' is NaN or infinite"):
            capture_gradients(model, prompts, ["*.1.mlp.up_proj.weight"], keep=keep, progress=False)


def test_asking_for_what_was_not_kept_and_coming_back_from_disk(tmp_path):
    model, prompts = tiny.model(), examples(3)
    kept = {
        keep: capture_gradients(model, prompts, "*.q_proj.weight", keep=keep, dimension=16, progress=False)
        for keep in ("gram", "projections", "each", "mean")
    }
    with pytest.raises(UserError, match="kept as 'mean'; capture them with keep='gram'"):
        _ = kept["mean"].gram
    with pytest.raises(
        UserError, match="kept as 'gram'; capture them with keep='projections' or keep='each'"
    ):
        _ = kept["gram"].rows
    with pytest.raises(
        UserError, match="kept as 'each'; capture them with keep='gram' or keep='projections'"
    ):
        _ = kept["each"].total
    with pytest.raises(UserError, match="keep='mean'"):
        _ = kept["each"].mean
    assert repr(kept["gram"]) == "Gradients(tiny-llama-0: 3 examples, 4 blocks, gram)"
    for keep, found in kept.items():
        found.save(tmp_path / f"{keep}.safetensors")
        back = Gradients.load(tmp_path / f"{keep}.safetensors")
        assert (back.keep, back.example_ids, back.blocks, back.model, back.objective, back.seed) == (
            keep,
            found.example_ids,
            found.blocks,
            "tiny-llama-0",
            "mean cross-entropy of an example's response tokens",
            0 if keep == "projections" else None,
        )
        assert all(torch.equal(back.data[name], value) for name, value in found.data.items())
    (tmp_path / "other").write_text("x")
    with pytest.raises(ResultError, match="other holds no saved gradients"):
        Gradients.load(tmp_path / "other")


@pytest.mark.parametrize("keep", ["gram", "projections"])
def test_nothing_of_a_pass_outlives_it(keep):
    """Kept inputs must not hold the graph: its hooks hold what is kept, a cycle that no garbage collector sees."""
    model, asked = tiny.model(), examples()

    def alive() -> int:
        gc.collect()
        return sum(type(value) is torch.Tensor for value in gc.get_objects())

    capture_gradients(model, asked, keep=keep, dimension=16, progress=False)
    before = alive()
    for _ in range(3):
        capture_gradients(model, asked, keep=keep, dimension=16, progress=False)
    assert alive() <= before + 2

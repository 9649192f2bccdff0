"""Per-example gradients that cannot be had, or are not finite, are refused by name; what was kept comes back from disk."""

import pytest
import tiny
import torch
from gradient_oracle import error, one_by_one
from torch import nn

from interp.data.prompts import Prompt
from interp.errors import NonFiniteError, ResultError, UserError
from interp.models.gradients import Gradients, capture_gradients
from interp.models.likelihood import with_responses


def test_what_cannot_be_had_is_refused_by_name():
    model, tied, prompts = tiny.model(), tiny.model("gemma2"), tiny.answered(3)

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
    model, prompts = tiny.model(), tiny.answered(3)
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
    model, prompts = tiny.model(), tiny.answered(3)
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

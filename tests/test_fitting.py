"""Does a small training go where its settings say, and end the same when it was cut off?"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from interp.errors import NonFiniteError
from interp.organisms import fitting
from interp.organisms.fitting import FitConfig, fit, matrices, rate


def problem(seed: int = 0) -> tuple[nn.Sequential, Callable[[int], torch.Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(256, 8, generator=rng)
    y = torch.tanh(x @ torch.randn(8, 4, generator=rng))
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4))

    def loss(step: int) -> torch.Tensor:
        rows = torch.arange(32 * step, 32 * step + 32) % 256
        return nn.functional.mse_loss(model(x[rows]), y[rows])

    return model, loss


def test_the_rate_warms_up_and_falls_along_a_cosine():
    config = FitConfig(steps=110, batch_size=1, learning_rate=3.0, warmup=10)
    assert [rate(config, step) for step in (0, 4, 9, 10, 60)] == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.5])
    assert rate(config, 109) < 0.001


@pytest.mark.parametrize("muon", [None, 0.02])
def test_it_learns_and_only_what_it_is_given(muon):
    model, loss = problem()
    model[2].bias.requires_grad_(False)
    before = {name: p.clone() for name, p in model.named_parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    config = FitConfig(steps=200, batch_size=32, learning_rate=0.01, muon=muon)
    state = torch.get_rng_state()
    curve = fit(trained, loss, config, hidden=matrices(model), label="x", progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert [point["step"] for point in curve] == list(range(10, 201, 10))
    assert curve[-1]["loss"] < 0.1 * curve[0]["loss"]
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"0.weight", "0.bias", "2.weight"}


def test_muon_takes_the_matrices_it_is_asked_to_and_no_other():
    """One step of Muon moves a matrix by an orthogonal one, scaled: all its singular values are alike."""
    model, loss = problem()
    before = model[0].weight.detach().clone(), model[2].weight.detach().clone()
    config = FitConfig(steps=1, batch_size=32, learning_rate=0.01, warmup=0, weight_decay=0, muon=0.01)
    fit(model.parameters(), loss, config, hidden=[model[0].weight], label="x", progress=False)
    first, last = (
        torch.linalg.svdvals(layer.weight.detach() - was)
        for layer, was in ((model[0], before[0]), (model[2], before[1]))
    )
    assert first.min() > 0.5 * first.max()
    assert last.min() < 0.5 * last.max()


@pytest.mark.parametrize("muon", [None, 0.02])
@pytest.mark.parametrize("cut", [15, 40])
def test_a_training_cut_off_ends_as_one_that_was_not(tmp_path, monkeypatch, muon, cut):
    monkeypatch.setattr(fitting, "SAVE_EVERY", 10)
    config, work = FitConfig(steps=60, batch_size=32, learning_rate=0.01, muon=muon), tmp_path / "work"

    def run(until: int, kept: Path | None):
        model, loss = problem()

        def watched(step: int) -> torch.Tensor:
            if step == until:
                raise KeyboardInterrupt
            return loss(step)

        curve = fit(
            model.parameters(), watched, config, hidden=matrices(model), work=kept, label="x", progress=False
        )
        return model.state_dict(), curve

    whole, curve = run(-1, None)
    with pytest.raises(KeyboardInterrupt):
        run(cut, work)
    resumed, again = run(-1, work)
    assert again == curve
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_a_loss_that_is_not_finite_stops_it():
    model, _ = problem()
    with pytest.raises(NonFiniteError, match="x: the loss is nan at step 0"):
        fit(
            model.parameters(),
            lambda step: model[0].weight.sum() * float("nan"),
            FitConfig(steps=2, batch_size=1, learning_rate=0.1),
            label="x",
            progress=False,
        )

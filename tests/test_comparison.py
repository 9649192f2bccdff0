"""A planted loss is found at its layer; layers where nothing is apart yet and losses of nothing are not."""

import numpy as np
import pytest
import torch

from interp.methods.comparison import compare_directions, compare_projections

LAYERS, N, WIDTH, LOST_AT = 6, 40, 8, 3


def planted(loss: float = 5.0, early_shift: float = 0.0) -> list[torch.Tensor]:
    """Directions, aligned harmful and harmless, tuned harmful and harmless: apart by 10 along axis 0 from layer 2 on."""
    generator = torch.Generator().manual_seed(0)

    def noise() -> torch.Tensor:
        return torch.randn(LAYERS, N, WIDTH, generator=generator, dtype=torch.float64)

    gap = torch.tensor([0.3, 0.3, 10, 10, 10, 10], dtype=torch.float64)
    harmful, harmless = noise(), noise()
    harmful[:, :, 0] += gap[:, None]
    tuned = harmful.clone()
    tuned[LOST_AT:, :, 0] -= loss
    tuned[:2, :, 0] -= early_shift
    directions = torch.zeros(LAYERS, WIDTH, dtype=torch.float64)
    directions[:, 0] = gap
    return [directions, harmful, harmless, tuned, harmless.clone()]


def test_a_planted_loss_is_located_and_measured():
    found = compare_projections(*planted())
    assert found.lost_at == LOST_AT
    assert np.allclose(found.shift[:LOST_AT], 0) and np.allclose(found.shift[LOST_AT:], -5)
    assert found.relative_loss[LOST_AT] == pytest.approx(0.5, abs=0.05)
    assert (found.shift_low <= found.shift).all() and (found.shift <= found.shift_high).all()


def test_a_shift_where_harmful_and_harmless_are_not_apart_is_no_loss():
    found = compare_projections(*planted(early_shift=0.25))
    assert found.lost_at == LOST_AT
    assert (found.relative_loss[:2] == 0).all()


@pytest.mark.parametrize("loss", [0.0, 0.3, -4.0])
def test_no_loss_is_located_where_there_is_hardly_any(loss):
    assert compare_projections(*planted(loss)).lost_at is None


def test_directions_of_the_same_model_agree_and_half_as_long_ones_say_so():
    _, harmful, harmless, *_ = planted()
    same = compare_directions(harmful, harmless, harmful, harmless)
    assert np.allclose(same.cosine, 1) and np.allclose(same.norm_ratio, 1)
    half = compare_directions(harmful, harmless, harmful / 2, harmless / 2)
    assert np.allclose(half.cosine, 1) and np.allclose(half.norm_ratio, 0.5)
    nothing = compare_directions(harmful, harmful, harmful, harmless)
    assert np.isnan(nothing.norm_ratio).all()

"""Partial correlations say which axis carries, and a combined rank is the mean of ranks."""

import math

import pytest
import torch
from scipy.stats import spearmanr

from interp.errors import NonFiniteError, UserError
from interp.methods.axes import combined_rank, partial_correlations


def drawn(n=400, seed=0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_two_axes_give_the_closed_form():
    y, x, z = drawn(), drawn(seed=1), drawn(seed=2)
    y, x = y + x + z, x + 0.5 * z
    yx, yz, xz = (spearmanr(a, b).statistic for a, b in ((y, x), (y, z), (x, z)))
    found = partial_correlations(y, {"x": x, "z": z}).set_index("axis")
    assert found.rho["x"] == pytest.approx(yx)
    assert found.partial["x"] == pytest.approx((yx - yz * xz) / math.sqrt((1 - yz**2) * (1 - xz**2)))
    assert found.partial["z"] == pytest.approx((yz - yx * xz) / math.sqrt((1 - yx**2) * (1 - xz**2)))


def test_the_axis_that_carries_is_found_and_its_shadow_is_not():
    carried = drawn()
    shadow = carried + 0.7 * drawn(seed=1)  # correlated with the target only through the other
    target = carried + drawn(seed=2)
    found = partial_correlations(target, {"carried": carried, "shadow": shadow}).set_index("axis")
    assert found.rho["shadow"] > 0.4
    assert found.low["carried"] > 0.3
    assert found.low["shadow"] < 0 < found.high["shadow"]


def test_intervals_cover():
    covered = 0
    for seed in range(200):
        x, z, y = (drawn(60, 3 * seed + i) for i in range(3))
        row = partial_correlations(y, {"x": x, "z": z}).iloc[0]
        covered += row.low <= 0 <= row.high
    assert 180 <= covered <= 199


def test_an_axis_that_others_determine_has_no_partial_correlation():
    x = drawn(30)
    found = partial_correlations(drawn(30, 1), {"x": x, "same": x.exp()})
    assert found.partial.isna().all() and found.rho.notna().all()


def test_ranks_are_averaged_and_ties_shared():
    semantic, acoustic = torch.tensor([0.1, 0.2, 0.2, 0.9]), torch.tensor([5.0, 3.0, 4.0, 6.0])
    assert combined_rank([semantic]).tolist() == pytest.approx([0, 0.5, 0.5, 1])
    assert combined_rank([semantic, acoustic]).tolist() == pytest.approx([1 / 3, 0.25, 5 / 12, 1])
    # a monotone change of one axis changes nothing
    assert torch.equal(combined_rank([semantic, acoustic]), combined_rank([semantic.exp(), acoustic**2]))


def test_bad_input_is_named():
    with pytest.raises(NonFiniteError, match="axis 1: item 2"):
        combined_rank([torch.arange(3.0), torch.tensor([1.0, 2.0, float("nan")])])
    with pytest.raises(UserError, match="no distances"):
        combined_rank([])
    with pytest.raises(UserError, match="at least 6"):
        partial_correlations(drawn(5), {"x": drawn(5, 1), "z": drawn(5, 2)})

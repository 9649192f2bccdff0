"""Grids of patched values: shares of a gap, small gaps left out and counted, agreement of grids, intervals of columns."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.errors import NonFiniteError, ResultError, UserError
from interp.evals.statistics import bootstrap_columns, cluster_bootstrap
from interp.methods.patch_grid import PatchGrid, agreement


def grid_of(patched, clean, corrupt, groups=None):
    n, layers, cols = patched.shape
    return PatchGrid(
        patched, np.array(clean, float), np.array(corrupt, float), "resid_pre", "position", tuple(range(layers)),
        tuple(map(str, range(cols))), tuple(f"p{i}" for i in range(n)), tuple(groups or (f"p{i}" for i in range(n))),
    )  # fmt: skip


def test_small_gaps_are_left_out_of_shares_and_counted(tmp_path):
    patched = np.stack([np.full((2, 2), 3.0), np.full((2, 2), 1.0), np.full((2, 2), 5.0)])
    patched[0, 0, 0] = np.nan
    grid = grid_of(patched, [4, 0.1, 8], [0, 0, 0])
    assert grid.excluded(0.5) == 1 and np.isnan(grid.share(0.5)[1]).all()
    assert grid.mean()[1, 1] == pytest.approx((3 / 4 + 5 / 8) / 2)
    table = grid.to_frame()
    assert list(table["n"]) == [1, 2, 2, 2] and set(table["excluded"]) == {1}
    assert table["value"].iloc[0] == pytest.approx(5 / 8) and np.isnan(table["low"].iloc[0])
    assert table["raw_value"].iloc[3] == pytest.approx(3.0)
    assert len(grid.pairs_frame()) == 12 and "1 of them with a gap under" in grid._repr_html_()
    grid.save(tmp_path / "grid.safetensors")
    back = PatchGrid.load(tmp_path / "grid.safetensors")
    assert np.array_equal(back.patched, grid.patched, equal_nan=True) and back.columns == grid.columns
    assert grid.select([2, 0]).pair_ids == ("p2", "p0")
    (tmp_path / "bad").write_bytes(b"no")
    with pytest.raises(ResultError, match="not a saved patch grid"):
        PatchGrid.load(tmp_path / "bad")
    with pytest.raises(NonFiniteError, match="clean run is NaN or infinite for pair 'p1'"):
        grid_of(patched, [1, np.nan, 1], [0, 0, 0])
    assert len(grid.plot().axes) == 2


def test_agreement_is_a_rank_correlation_of_cells():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(3, 4))
    noisy = [truth + 0.1 * rng.normal(size=(12, 3, 4)) for _ in range(2)]
    a = grid_of(noisy[0], np.ones(12), np.zeros(12))
    b = grid_of(np.exp(noisy[1]), np.ones(12), np.zeros(12))
    found = agreement(a, b)
    assert found.low > 0.7 and found.value <= 1 and found.n == 12
    unrelated = grid_of(rng.normal(size=(12, 3, 4)), np.ones(12), np.zeros(12))
    other = agreement(a, unrelated)
    assert other.low < 0 < other.high or abs(other.value) < 0.7
    assert np.isnan(agreement(a, grid_of(np.ones((12, 3, 4)), np.ones(12), np.zeros(12))).value)
    with pytest.raises(UserError, match="other columns"):
        agreement(a, grid_of(np.ones((12, 3, 2)), np.ones(12), np.zeros(12)))


@given(st.integers(3, 12), st.integers(0, 100))
@settings(max_examples=10, deadline=None)
def test_the_bootstrap_of_columns_is_that_of_each(n, seed):
    values = np.random.default_rng(seed).normal(size=(n, 2))
    groups = [i % 3 for i in range(n)]
    mean, low, high = bootstrap_columns(values, groups, n=4000)
    for k in range(2):
        one = cluster_bootstrap(values[:, k], groups)
        assert mean[k] == pytest.approx(one.value)
        assert low[k] == pytest.approx(one.low, abs=0.15) and high[k] == pytest.approx(one.high, abs=0.15)

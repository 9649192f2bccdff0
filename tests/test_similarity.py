"""CKA, distances and changes against closed forms; debiased CKA of noise is zero where the plain one is not."""

import math

import pytest
import torch

from interp.errors import NonFiniteError, UserError
from interp.geometry.similarity import cka, mean_distance, relative_change


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Kornblith et al. 2019, equation of linear CKA by features: `‖YᵀX‖_F² / (‖XᵀX‖_F ‖YᵀY‖_F)`."""
    x, y = a - a.mean(0), b - b.mean(0)
    return float((y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm()))


def hsic_song(k: torch.Tensor, m: torch.Tensor) -> float:
    """Song et al. 2012, equation 5, on kernels without their diagonals."""
    n = len(k)
    k, m = (x - torch.diag(x.diag()) for x in (k, m))
    one = torch.ones(n, dtype=torch.float64)
    total = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return float(((k @ m).trace() + total - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3)))


def test_both_forms_are_the_published_formulas():
    a, b = noise(12, 5), noise(12, 7, seed=1) + noise(12, 5) @ noise(5, 7, seed=2)
    assert cka(a, b, debiased=False) == pytest.approx(reference(a, b), abs=1e-12)
    k, m = a @ a.T, b @ b.T
    expected = hsic_song(k, m) / math.sqrt(hsic_song(k, k) * hsic_song(m, m))
    assert cka(a, b) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("debiased", [True, False])
def test_rotation_scale_and_shift_change_nothing_and_a_stretch_does(debiased):
    x = noise(40, 16) * torch.linspace(0.2, 2, 16, dtype=torch.float64)
    turned = 3.7 * x @ torch.linalg.qr(noise(16, 16, seed=1)).Q + 1e4
    assert cka(x, turned, debiased=debiased) == pytest.approx(1, abs=1e-9)
    stretched = x * torch.linspace(1, 0.01, 16, dtype=torch.float64)
    assert cka(x, stretched, debiased=debiased) < 0.9


def test_independent_noise_is_alike_for_the_plain_form_only():
    found = [cka(noise(50, 400, seed=2 * i), noise(50, 400, seed=2 * i + 1)) for i in range(20)]
    assert abs(sum(found) / 20) < 0.01 and min(found) < 0 < max(found)
    assert cka(noise(50, 400), noise(50, 400, seed=1), debiased=False) > 0.8


def test_constant_rows_have_no_similarity():
    assert math.isnan(cka(torch.ones(8, 3), noise(8, 3)))


def test_distance_of_means_in_spreads():
    # Spread: each row lies at distance 2 from its mean, in three dimensions; two degrees of freedom less.
    corners = torch.tensor([[2.0, 0, 0], [-2.0, 0, 0]] * 50)
    moved = corners + torch.tensor([0.0, 3.0, 4.0])
    expected = 5 / (2 * math.sqrt(200 / 198))
    assert mean_distance(corners, moved) == pytest.approx(expected)
    assert mean_distance(7 * corners, 7 * moved) == pytest.approx(expected)
    assert math.isnan(mean_distance(torch.ones(3, 2), torch.zeros(3, 2)))
    same = mean_distance(noise(400, 10), noise(300, 10, seed=1))
    assert same == pytest.approx(math.sqrt(1 / 400 + 1 / 300), rel=0.6)


def test_relative_change_by_row():
    before = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    after = torch.tensor([[3.0, 4.0], [1.0, 2.0]])
    assert relative_change(before, after).tolist() == [0, 2]


def test_bad_rows_are_named():
    bad = noise(6, 3)
    bad[4, 1] = float("nan")
    for measure in (cka, mean_distance, relative_change):
        with pytest.raises(NonFiniteError, match="row 4 of the second set"):
            measure(noise(6, 3), bad)
    with pytest.raises(UserError, match="debiased CKA needs 4 rows, there are 3"):
        cka(noise(3, 2), noise(3, 2))
    with pytest.raises(UserError, match="row 1 of the first set is zero"):
        relative_change(torch.tensor([[1.0], [0.0]]), torch.ones(2, 1))
    with pytest.raises(UserError, match="there are 1 and 1"):
        mean_distance(noise(1, 2), noise(1, 2))
    with pytest.raises(Exception, match=r"(?i)type"):  # jaxtyping: other numbers of rows
        cka(noise(6, 2), noise(5, 2))

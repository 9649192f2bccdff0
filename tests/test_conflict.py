"""Spectra, cosines and overlaps against their closed forms; planted conflict is found, none is invented."""

import math

import pytest
import torch

from interp.errors import NonFiniteError, UserError
from interp.geometry.conflict import (
    conflict,
    gram,
    mean_cosine,
    overlap,
    random_overlap,
    spectrum,
)


def rows(n: int, dimension: int = 60, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dimension, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_spectrum_of_the_gram_matrix_is_that_of_the_rows():
    x = rows(12) @ torch.diag(torch.linspace(3, 0.1, 60, dtype=torch.float64))
    found, expected = spectrum(gram(x)), torch.linalg.svdvals(x)
    assert torch.allclose(found.singular_values, expected, atol=1e-9)
    energy = expected**2
    assert torch.allclose(found.cumulative_energy, energy.cumsum(0) / energy.sum())
    assert found.stable_rank == pytest.approx(float(energy.sum() / energy[0]))
    assert found.participation_ratio == pytest.approx(float(energy.sum() ** 2 / (energy**2).sum()))


def test_planted_rank_and_the_extremes():
    low = rows(30, 3, 1) @ rows(3, 60, 2)
    found = spectrum(gram(low))
    assert (found.singular_values > 0).sum() == 3 and found.components_for(1.0) == 3
    equal = spectrum(gram(torch.eye(5, dtype=torch.float64)))
    assert equal.stable_rank == pytest.approx(5) and equal.participation_ratio == pytest.approx(5)
    assert equal.components_for(0.6) == 3
    one = spectrum(gram(torch.ones(4, 7)))
    assert one.stable_rank == pytest.approx(1) and one.components_for(0.99) == 1
    assert math.isnan(spectrum(torch.zeros(3, 3)).stable_rank)


def test_cosine_of_means_from_inner_products():
    x = rows(20)
    expected = torch.cosine_similarity(x[:8].mean(0), x[8:].mean(0), dim=0)
    assert mean_cosine(gram(x), range(8), range(8, 20)) == pytest.approx(float(expected))
    assert math.isnan(mean_cosine(torch.zeros(4, 4), [0, 1], [2, 3]))


def test_planted_conflict_lies_under_its_null_and_none_is_found_in_noise():
    direction = rows(1, 60, 5)
    noise = rows(48, 60, 6)
    opposed = torch.cat([noise[:16] + direction, noise[16:] - direction])
    found = conflict(gram(opposed), range(16), range(16, 48))
    assert found.cosine < -0.8 and found.p_value < 0.01 and found.pairwise_negative > 0.7
    assert found.ceiling.median() > 0.8 and found.null.median() > found.cosine
    p_values = [
        conflict(gram(rows(48, 60, seed)), range(16), range(16, 48), n_draws=100).p_value
        for seed in range(40)
    ]
    assert 0.3 < sum(p_values) / len(p_values) < 0.7
    assert sum(p < 0.05 for p in p_values) <= 6


def test_an_undefined_cosine_is_no_evidence():
    inner = gram(rows(12))
    inner[:4] = inner[:, :4] = 0
    found = conflict(inner, range(4), range(4, 12), n_draws=20)
    assert math.isnan(found.cosine) and math.isnan(found.p_value)
    assert spectrum(torch.zeros(3, 3)).components_for(0.9) == 0


def test_draws_follow_the_seed_and_leave_the_global_generator_alone():
    inner = gram(rows(20))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    a, b = (conflict(inner, range(8), range(8, 20), n_draws=10, seed=3) for _ in range(2))
    assert torch.equal(a.null, b.null) and torch.equal(a.ceiling, b.ceiling)
    assert not torch.equal(a.null, conflict(inner, range(8), range(8, 20), n_draws=10, seed=4).null)
    assert torch.equal(before, torch.get_rng_state())


def test_overlap_of_equal_orthogonal_and_random_subspaces():
    basis = torch.linalg.qr(rows(40, 40)).Q
    assert overlap(basis[:, :5], basis[:, :5] @ torch.linalg.qr(rows(5, 5)).Q) == pytest.approx(1)
    assert overlap(basis[:, :5], basis[:, 5:10]) == pytest.approx(0, abs=1e-12)
    assert overlap(basis[:, :4], basis[:, 2:6]) == pytest.approx(0.5)
    assert float(random_overlap(50, 10, n_draws=200).mean()) == pytest.approx(0.2, abs=0.01)


def test_bad_input_is_named():
    x = rows(6)
    with pytest.raises(UserError, match="1 examples are in both sets"):
        conflict(gram(x), [0, 1], [1, 2, 3])
    with pytest.raises(UserError, match="got 0, 3"):
        conflict(gram(x), [], [1, 2, 3])
    x[2, 3] = math.nan
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        gram(x)
    with pytest.raises(NonFiniteError, match="Gram matrix"):
        spectrum(torch.full((2, 2), math.inf))

"""Directions and subspaces against closed forms."""

import math

import pytest
import torch

from interp.errors import NonFiniteError, UserError
from interp.geometry.directions import cosine, mean_difference, shuffled_difference, split_half_cosine, unit
from interp.geometry.subspaces import pca, principal_angles

G = torch.Generator().manual_seed(0)


def test_mean_difference_is_fp64_and_per_site():
    a, b = torch.randn(3, 10, 4, generator=G), torch.randn(3, 7, 4, generator=G)
    found = mean_difference(a, b)
    assert found.dtype == torch.float64 and torch.allclose(found, a.double().mean(1) - b.double().mean(1))
    assert float(unit(torch.zeros(4)).norm()) == 0 and math.isclose(float(unit(torch.ones(4)).norm()), 1)
    assert float(cosine(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0]))) == pytest.approx(math.sqrt(0.5))


def test_split_halves_agree_where_there_is_a_difference_and_not_under_shuffled_labels():
    planted = torch.zeros(1, 200, 16)
    planted[..., 0] = 3.0
    a, b = planted + torch.randn(1, 200, 16, generator=G), torch.randn(1, 200, 16, generator=G)
    assert float(split_half_cosine(a, b).mean()) > 0.95
    c = torch.randn(1, 200, 16, generator=G)
    assert abs(float(split_half_cosine(c, b).mean())) < 0.3
    null = shuffled_difference(a, b, seed=0)
    assert float(null.norm()) < 0.3 * float(mean_difference(a, b).norm())
    assert torch.equal(null, shuffled_difference(a, b, seed=0))


def test_pca_finds_a_planted_plane():
    basis = torch.linalg.qr(torch.randn(20, 2, generator=G))[0].T.double()
    rows = torch.randn(300, 2, generator=G).double() * torch.tensor([5.0, 2.0]) @ basis + 7
    found = pca(rows.float(), 2)
    assert float(principal_angles(found.basis, basis).max()) < 1e-3
    assert float(found.explained[:2].sum()) == pytest.approx(1, abs=1e-6) and found.components_for(0.9) in (
        1,
        2,
    )
    assert 1 < found.participation_ratio < 2
    assert (found.coordinates(rows.float()).mean(0).abs() < 1e-4).all()
    isotropic = pca(torch.randn(4000, 10, generator=G), 3)
    assert (
        isotropic.participation_ratio == pytest.approx(10, rel=0.05) and isotropic.components_for(1.0) == 10
    )


def test_principal_angles_of_known_planes():
    e = torch.eye(4)
    assert principal_angles(e[:2], e[:2]).tolist() == pytest.approx([0, 0])
    assert principal_angles(e[:2], e[2:]).tolist() == pytest.approx([math.pi / 2] * 2)
    tilted = torch.stack([e[0], (e[1] + e[2]) / math.sqrt(2)])
    assert principal_angles(e[:2], tilted).tolist() == pytest.approx([0, math.pi / 4], abs=1e-6)


def test_bad_rows_are_refused():
    with pytest.raises(NonFiniteError):
        pca(torch.full((4, 3), float("nan")), 1)
    with pytest.raises(UserError, match="rank 5"):
        pca(torch.randn(4, 8, generator=G), 5)

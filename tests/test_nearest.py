"""The blocked search finds what brute force in fp64 finds, dense and sparse, raw and centred, whatever the blocks."""

import pytest
import torch
from scipy.sparse import csr_array

from interp.errors import NonFiniteError, UserError
from interp.geometry.nearest import ZeroRowError, mean_row, nearest


def drawn(n, d=12, seed=0, offset=0.0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + offset


def brute(rows, references, centre=None):
    rows, references = (x.double() if centre is None else x.double() - centre for x in (rows, references))
    return torch.nn.functional.cosine_similarity(rows[:, None], references[None], dim=-1)


@pytest.mark.parametrize("block", [1, 40, 2**20])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("n", [1, 3, 7])
def test_equal_to_brute_force(block, centred, n):
    rows, references = drawn(53), drawn(7, seed=1)
    centre = torch.cat([rows, references]).double().mean(0) if centred else None
    found, expected = (
        nearest(rows, references, n, centre=centre, block=block),
        brute(rows, references, centre),
    )
    best, places = expected.topk(n)
    assert torch.allclose(found.cosines, best, atol=1e-6)
    assert torch.equal(found.places, places)
    assert torch.allclose(found.mean, expected.mean(1), atol=1e-6)


def test_sparse_rows_give_what_dense_ones_give():
    rows, references = drawn(40) * (drawn(40, seed=2) > 0.8), drawn(6, seed=1) * (drawn(6, seed=3) > 0.3)
    rows[:, 0], references[:, 0] = 0.1, 0.2  # none is empty
    weights = torch.arange(1.0, 41.0, dtype=torch.float64)
    both = [csr_array(x.double().numpy()) for x in (rows, references)]
    ones = torch.ones(6, dtype=torch.float64)
    centre = mean_row((rows, weights), (references, ones), block=30)
    assert torch.allclose(centre, mean_row((both[0], weights), (both[1], ones)))
    plain = torch.cat([rows.double() * weights[:, None], references.double()]).sum(0) / (weights.sum() + 6)
    assert torch.allclose(centre, plain)
    for middle in (None, centre):
        sparse = nearest(*both, 2, centre=middle, block=50)
        expected = brute(rows, references, middle)
        assert torch.allclose(sparse.cosines, expected.topk(2).values, atol=1e-12)
        assert torch.allclose(sparse.mean, expected.mean(1), atol=1e-12)
        assert torch.allclose(nearest(rows, references, 2, centre=middle).cosines, sparse.cosines, atol=1e-6)


def test_centring_keeps_its_digits_where_rows_share_nearly_all_their_length():
    rows, references = drawn(60, offset=100.0), drawn(9, seed=1, offset=100.0)
    raw = nearest(rows, references)
    assert raw.cosines.min() > 0.999
    centre = mean_row((rows, torch.ones(60)), (references, torch.ones(9)))
    found = nearest(rows, references, centre=centre)
    assert torch.allclose(found.cosines[:, 0], brute(rows, references, centre).max(1).values, atol=1e-6)
    assert found.cosines.std() > 100 * raw.cosines.std()


def test_of_equal_references_the_first_is_named():
    references = drawn(4, seed=1)[[0, 1, 1, 2, 1]]
    rows = references[[1, 0]] * 3.0
    assert nearest(rows, references).places.tolist() == [[1], [0]]
    assert nearest(rows, references, 3).places[0].tolist() == [1, 2, 4]


def test_rows_without_a_direction_are_named():
    rows, references = drawn(5), drawn(3, seed=1)
    zero = rows.clone()
    zero[3] = 0
    with pytest.raises(ZeroRowError, match="row 3 of the rows is zero") as caught:
        nearest(zero, references, block=1)
    assert (caught.value.row, caught.value.of) == (3, "rows")
    with pytest.raises(ZeroRowError, match="row 1 of the references is the centre itself"):
        nearest(rows, references, centre=references[1].double())
    sparse = csr_array(zero.numpy())
    with pytest.raises(ZeroRowError, match="row 3 of the rows is zero"):
        nearest(sparse, csr_array(references.numpy()), block=1)
    broken = rows.clone()
    broken[2, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="row 2"):
        nearest(broken, references)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(UserError, match="the 4 nearest of 3 references"):
        nearest(drawn(5), drawn(3), 4)
    with pytest.raises(UserError, match="rows have 12 numbers and references 6"):
        nearest(drawn(5), drawn(3, d=6))
    with pytest.raises(UserError, match="to 0 rows"):
        nearest(drawn(0), drawn(3))

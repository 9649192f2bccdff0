"""Streaming PCA is scikit-learn's PCA to 1e-6, whatever the chunks, and stays so where a channel is massive."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.decomposition import PCA

from interp.errors import NonFiniteError, ResultError, UserError
from interp.geometry.pca import StreamingPCA, moments_of, outlier_channels, row_chunks
from interp.geometry.subspaces import pca, principal_angles


def rows(n: int = 500, d: int = 40, seed: int = 0, massive: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64) * torch.logspace(0, -2, d)
    found = torch.randn(n, d, generator=generator, dtype=torch.float64) @ mixing.T + 3
    found[:, 7] += massive * (1 + 0.1 * torch.randn(n, generator=generator))
    return found


@pytest.mark.parametrize("massive", [0.0, 3e4], ids=["plain", "massive channel"])
@pytest.mark.parametrize("size", [1, 7, 64, 500])
def test_it_is_sklearns_pca_whatever_the_chunks(size, massive):
    x = rows(massive=massive)
    found = moments_of(x.split(size)).subspace(10)
    reference = PCA(n_components=10, svd_solver="full").fit(x.numpy())
    np.testing.assert_allclose(found.singular_values[:10], reference.singular_values_, rtol=1e-6)
    np.testing.assert_allclose(found.explained[:10], reference.explained_variance_ratio_, rtol=1e-6)
    np.testing.assert_allclose(found.mean, reference.mean_, rtol=1e-9)
    angles = principal_angles(found.basis, torch.from_numpy(reference.components_))
    # arccos of a rounded cosine is good to 1e-7, so subspaces are compared by their projectors
    gap = found.basis.T @ found.basis - torch.from_numpy(reference.components_.T @ reference.components_)
    # beside a channel a thousand times the others fp64 knows the others' directions to about 1e-16 · λ₁ / gap
    bound = 1e-5 if massive else 1e-6
    assert gap.norm() < bound and angles.max() < bound
    assert (found.basis * torch.from_numpy(reference.components_)).sum(1).abs().min() > 1 - 1e-9


def test_zscored_moments_are_those_of_zscored_rows():
    x = rows(massive=3e4)
    z = (x - x.mean(0)) / x.std(0, correction=0)
    found, expected = moments_of(x.split(64)).zscored().subspace(5), pca(z, 5)
    np.testing.assert_allclose(found.singular_values, expected.singular_values, rtol=1e-6, atol=1e-6)
    assert principal_angles(found.basis, expected.basis).max() < 1e-5
    assert moments_of([x]).subspace(1).basis[0, 7] > 0.99, "the massive channel is the raw first component"
    assert found.basis[0, 7].abs() < 0.7
    assert outlier_channels(moments_of([x])).nonzero().flatten().tolist() == [7]


def test_a_constant_channel_is_no_component():
    x = rows()
    x[:, 3] = 1e5 / 3
    found = moments_of(x.split(33)).zscored()
    assert found.scatter[3].abs().max() == 0
    assert found.subspace(39).basis[:, 3].abs().max() < 1e-8


def test_half_precision_and_fewer_rows_than_dimensions():
    x = rows(20).to(torch.bfloat16)
    found, expected = moments_of(x.split(6)).subspace(), pca(x.double(), 19)
    np.testing.assert_allclose(found.singular_values[:19], expected.singular_values[:19], rtol=1e-6)
    assert found.basis.shape == (19, 40) and len(found.singular_values) == 20


def test_blocks_wider_than_one_agree_with_the_plain_product():
    x = torch.randn(50, 1100, generator=torch.Generator().manual_seed(0))
    found = moments_of([x])
    centred = x.double() - x.double().mean(0)
    torch.testing.assert_close(found.scatter, centred.T @ centred, rtol=1e-10, atol=1e-10)


def test_what_cannot_be_added_is_named():
    stream = StreamingPCA(4)
    with pytest.raises(UserError, match="no rows were added"):
        stream.moments()
    with pytest.raises(UserError, match="width 3 cannot join rows of width 4"):
        stream.update(torch.zeros(2, 3))
    stream.update(torch.zeros(0, 4))
    stream.update(torch.randn(5, 4))
    bad = torch.zeros(3, 4)
    bad[1, 2] = float("nan")
    before = stream.moments().scatter
    with pytest.raises(NonFiniteError, match="row 6"):
        stream.update(bad)
    assert torch.equal(stream.moments().scatter, before), "what was refused left no trace"
    with pytest.raises(UserError, match="rank 5"):
        stream.moments().subspace(5)
    with pytest.raises(UserError, match="no rows were given"):
        moments_of([])


def test_rows_are_read_from_files_chunk_by_chunk(tmp_path):
    x = rows().float()
    np.save(tmp_path / "x.npy", x.numpy())
    save_file({"values": x}, tmp_path / "x.safetensors")
    for name in ("x.npy", "x.safetensors"):
        parts = list(row_chunks(tmp_path / name, 64))
        assert [len(part) for part in parts] == [64] * 7 + [52] and torch.equal(torch.cat(parts), x)
    np.save(tmp_path / "bad.npy", np.arange(3))
    save_file({"a": x, "b": x.clone()}, tmp_path / "two.safetensors")
    (tmp_path / "no.npy").write_bytes(b"not numpy")
    for name in ("bad.npy", "two.safetensors", "no.npy", "missing.npy", "missing.safetensors"):
        with pytest.raises(ResultError, match=name):
            list(row_chunks(tmp_path / name))


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="counts mapped pages as Linux reports them"
)
@pytest.mark.parametrize("name", ["x.npy", "x.safetensors"])
def test_rows_that_were_read_do_not_stay_in_memory(tmp_path, name):
    shape = (65_536, 512)
    if name.endswith("npy"):
        np.lib.format.open_memmap(tmp_path / name, mode="w+", dtype=np.float32, shape=shape)
    else:
        save_file({"values": torch.zeros(shape)}, tmp_path / name)

    def mapped() -> int:
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("RssFile"))
        return int(line.split()[1]) * 1024

    before = mapped()
    most = max(mapped() - before for _ in row_chunks(tmp_path / name))
    size = 4 * shape[0] * shape[1]
    assert most < size / 4, f"{most} bytes of the file's {size} lie in memory"

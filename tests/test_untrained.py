"""Checkpoints to try code on: they load as any does, with the same requests written and attached."""

import pytest
import torch

from interp.data.modalities import media_of, request_of
from interp.data.prompts import read_prompts
from interp.errors import UserError
from interp.models.activations import capture
from interp.models.checkpoint import Checkpoint
from interp.models.generation import generate
from interp.organisms import untrained


@pytest.fixture(scope="module", params=untrained.KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def directory(kind, tmp_path_factory):
    return untrained.checkpoint(kind, tmp_path_factory.mktemp("untrained") / kind)


def test_the_same_requests_are_written_and_attached(directory, kind):
    modality = {"vision": "image", "audio": "audio"}[kind]
    files = Checkpoint.parse(directory).prompts()
    assert set(files) == {f"{name}_{m}" for name in ("harmful", "harmless") for m in ("text", modality)}
    for name in ("harmful", "harmless"):
        written, attached = (read_prompts(files[f"{name}_{m}"]) for m in ("text", modality))
        assert len(written) >= 32 and [request_of(p) for p in written] == [request_of(p) for p in attached]
        assert all(media_of(p) == () for p in written) and all(media_of(p) == (modality,) for p in attached)
        assert len({p.group for p in attached}) >= 8


def test_it_loads_reads_and_answers(directory, kind):
    model = Checkpoint.parse(directory).load(device_map="cpu")
    modality = {"vision": "image", "audio": "audio"}[kind]
    files = Checkpoint.parse(directory).prompts()
    prompts = [*read_prompts(files[f"harmful_{modality}"])[:2], *read_prompts(files["harmless_text"])[:2]]
    assert model.tokenizer.unk_token_id not in [i for p in prompts for i in model.token_ids(p).ids]
    values = capture(model, prompts, "resid_post", "last", progress=False).values
    assert values.shape[0] == 6 and (values[:, 0] - values[:, 1]).abs().max() > 1e-3, (
        "other pictures, other vectors"
    )
    assert len(generate(model, prompts, max_new_tokens=2, progress=False)) == 4
    encoded = capture(model, prompts[:2], f"{kind}.resid_post", "mean", progress=False).values
    assert len(encoded) == 4 and torch.isfinite(encoded).all()


def test_it_is_kept_and_a_seed_makes_it(directory, kind, tmp_path):
    stamp = (directory / "model.safetensors").stat().st_mtime_ns
    assert untrained.checkpoint(kind, directory) == directory
    assert (directory / "model.safetensors").stat().st_mtime_ns == stamp
    again = untrained.checkpoint(kind, tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (directory / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="no untrained checkpoint of kind 'smell'"):
        untrained.checkpoint("smell", tmp_path / "x")

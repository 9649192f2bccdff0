"""Distances equal brute force, follow ids and contents, and refuse embeddings that say nothing."""

import random

import pytest
import torch

from interp.data.prompts import Prompt, PromptSet
from interp.errors import EmbeddingError, UserError
from interp.methods.embedding import Encoder, embed
from interp.methods.proximity import proximity

N, M, D = 60, 9, 16


def numbered(n, name, repeat=0):
    """Prompts of different texts, the first `repeat` of them asked again at the end."""
    texts = [f"{name} {i}" for i in range(n)]
    return PromptSet(
        [Prompt(text=t, id=f"{name}-{i}") for i, t in enumerate([*texts, *texts[:repeat]])], name=name
    )


def vector(text, seed=0):
    return torch.randn(D, generator=torch.Generator().manual_seed(hash_of(text) + seed)) + 2.0


def hash_of(text):
    return sum(ord(c) * 31**i for i, c in enumerate(text)) % 2**31


def encoder(change=None, rows=None):
    """Vectors by text; `change` maps a text to another vector."""
    change = change or {}

    def made(prompts):
        return torch.stack([change.get(p.text, vector(p.text)) for p in prompts])

    return Encoder("drawn", lambda prompt: prompt.text, rows or made)


def brute(benign, harmful, centred):
    b, h = (torch.stack([vector(p.text) for p in s]).double() for s in (benign, harmful))
    centre = torch.cat([b, h]).mean(0) if centred else 0.0
    return 1 - torch.nn.functional.cosine_similarity((b - centre)[:, None], (h - centre)[None], dim=-1)


@pytest.mark.parametrize("centred", [False, True])
def test_distances_equal_brute_force(centred):
    benign, harmful = numbered(N, "benign", repeat=5), numbered(M, "harmful", repeat=2)
    found = proximity(*embed(encoder(), benign, harmful), centred=centred, n=4)
    expected = brute(benign, harmful, centred)
    assert torch.allclose(found.by("min"), expected.min(1).values, atol=1e-6)
    assert torch.allclose(found.by("mean"), expected.mean(1), atol=1e-6)
    assert torch.allclose(found.by("top-4"), expected.topk(4, largest=False).values.mean(1), atol=1e-6)
    nearest = [harmful[int(i)].text for i in expected.argmin(1)]
    texts = {p.id: p.text for p in harmful}
    assert [texts[name] for name in found.nearest_ids()] == nearest
    assert list(found.to_frame().columns) == ["id", "min", "mean", "nearest"]


def test_the_mean_orders_as_the_cosine_with_the_mean_unit_vector():
    benign, harmful = numbered(N, "benign"), numbered(M, "harmful")
    found = proximity(*embed(encoder(), benign, harmful)).by("mean")
    unit = torch.stack([torch.nn.functional.normalize(vector(p.text), dim=0) for p in harmful]).mean(0)
    cosines = torch.stack(
        [torch.nn.functional.cosine_similarity(vector(p.text), unit, dim=0) for p in benign]
    )
    assert torch.equal(found.argsort(), cosines.argsort(descending=True))


def test_the_order_of_the_files_changes_no_bit():
    benign, harmful = numbered(N, "benign", repeat=3), numbered(M, "harmful", repeat=1)
    pair = embed(encoder(), benign, harmful)
    mixed = [PromptSet(random.Random(1).sample(list(s), len(s)), s.name) for s in (benign, harmful)]
    for centred in (False, True):
        first = proximity(*pair, centred=centred).to_frame().set_index("id")
        again = (
            proximity(*embed(encoder(), *mixed), centred=centred).to_frame().set_index("id").loc[first.index]
        )
        assert first.equals(again)


def test_equal_contents_are_embedded_once_and_tie_exactly():
    seen = []

    def rows(prompts):
        seen.extend(p.text for p in prompts)
        # rows that differ by where they stand, as rounding in batches makes them
        return torch.stack([vector(p.text) + 1e-6 * i for i, p in enumerate(prompts)])

    benign = numbered(20, "benign", repeat=4)
    found = proximity(*embed(encoder(rows=rows), benign, numbered(3, "harmful"))).by("min")
    assert torch.equal(found[:4], found[20:])
    assert len(seen) == len(set(seen)) == 23


@pytest.mark.parametrize(
    ("bad", "what"),
    [(torch.zeros(D), "is all zeros"), (torch.full((D,), float("nan")), "is NaN or infinite")],
)
def test_a_failed_embedding_stops_the_run_by_name(bad, what):
    for name in ("benign", "harmful"):
        with pytest.raises(EmbeddingError, match=rf"drawn: the vector of '{name}-4' {what} \(1 such items\)"):
            embed(encoder({f"{name} 4": bad}), numbered(20, "benign"), numbered(6, "harmful"))


def test_an_item_with_nothing_to_read_is_named():
    def content(prompt):
        if prompt.id == "benign-7":
            raise UserError("it has no sound")
        return prompt.text

    with pytest.raises(EmbeddingError, match="drawn cannot embed benign: prompt 'benign-7': it has no sound"):
        embed(Encoder("drawn", content, lambda prompts: torch.ones(1, 1)), numbered(9, "benign"))
    with pytest.raises(UserError, match="'empty' holds no items"):
        embed(encoder(), PromptSet([], name="empty"))
    with pytest.raises(EmbeddingError, match="made 1 vectors of 9 items"):
        embed(encoder(rows=lambda prompts: torch.ones(1, D)), numbered(9, "benign"))


def test_distances_without_spread_are_an_error():
    benign, harmful = numbered(N, "benign"), numbered(2, "harmful")
    same = encoder({p.text: torch.arange(1.0, D + 1) for p in benign})
    found = proximity(*embed(same, benign, harmful))
    for measure in ("min", "mean"):
        with pytest.raises(EmbeddingError, match=f"drawn: all 60 items have the same {measure} distance"):
            found.by(measure)
    with pytest.raises(UserError, match="'median'"):
        found.by("median")
    with pytest.raises(UserError, match="top-3 needs the 3 least"):
        proximity(*embed(encoder(), benign, harmful)).by("top-3")


def test_an_item_at_the_mean_has_no_centred_distance():
    benign, harmful = numbered(3, "benign"), numbered(2, "harmful")
    points = [[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0], [2.0, 1.0], [-2.0, -1.0]]
    points = dict(
        zip([p.text for p in (*benign, *harmful)], (torch.tensor(p) + 4.0 for p in points), strict=True)
    )
    with pytest.raises(EmbeddingError, match="vector of 'benign-2' lies at the mean of all items"):
        proximity(*embed(encoder(points), benign, harmful), centred=True)
    assert len(proximity(*embed(encoder(points), benign, harmful)).ids) == 3


def test_two_encoders_are_not_compared():
    one, other = embed(encoder(), numbered(3, "benign"))[0], embed(
        Encoder("else", lambda p: p.text, lambda ps: torch.stack([vector(p.text) for p in ps])), numbered(3, "harmful")
    )[0]  # fmt: skip
    with pytest.raises(EmbeddingError, match="drawn and else are two encoders"):
        proximity(one, other)

"""Subsets have exactly the size asked for, follow ids and not places, and break ties by a hash."""

import random
from collections import Counter

import pytest
import torch

from interp.errors import NonFiniteError, UserError
from interp.methods.selection import (
    distant,
    matched_random,
    ordered,
    proximate,
    random_subset,
    subset_size,
)

IDS = [f"item {i}" for i in range(97)]
DISTANCES = torch.tensor([(37 * i % 97) / 97 for i in range(97)])


@pytest.mark.parametrize(
    ("n", "share", "size"), [(100, 0.29, 29), (97, 0.25, 24), (97, 0.5, 48), (10, 0.7, 7), (3, 0.34, 1)]
)
def test_a_share_is_floored_exactly(n, share, size):
    assert subset_size(n, share) == size


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 1.5, float("nan")])
def test_a_share_is_between_nothing_and_all(share):
    with pytest.raises(UserError, match="not between 0 and 1"):
        subset_size(10, share)


def test_a_share_of_less_than_an_item_is_refused():
    with pytest.raises(UserError, match="less than one"):
        subset_size(3, 0.25)


def test_proximate_and_distant_share_out_the_items():
    near, far = proximate(IDS, DISTANCES, 30), distant(IDS, DISTANCES, 67)
    assert (len(near), len(far)) == (30, 67)
    assert set(near) | set(far) == set(IDS)
    place = dict(zip(IDS, DISTANCES.tolist(), strict=True))
    assert max(place[name] for name in near) < min(place[name] for name in far)
    assert place[near[0]] == min(place.values()) and place[far[0]] == max(place.values())


def test_ties_are_broken_by_seed_and_id_and_not_by_place():
    tied = (DISTANCES * 4).floor()
    shuffled = random.Random(0).sample(range(97), 97)
    ids, distances = [IDS[i] for i in shuffled], tied[shuffled]
    for take in (proximate, distant):
        assert take(IDS, tied, 20) == take(ids, distances, 20)
        assert set(take(IDS, tied, 20)) != set(take(IDS, tied, 20, seed=1))
    # among equals the choice is not the first of the file
    assert set(proximate(IDS, torch.zeros(97), 20)) != set(IDS[:20])


def test_random_subsets_are_nested_and_follow_the_seed():
    quarter, half = random_subset(IDS, 24), random_subset(reversed(IDS), 48)
    assert set(quarter) < set(half)
    assert set(random_subset(IDS, 24, seed=1)) != set(quarter)
    # over seeds every item comes about equally often
    counts = Counter(name for seed in range(400) for name in random_subset(IDS, 24, seed=seed))
    assert min(counts.values()) > 60 and max(counts.values()) < 145


def test_matched_subsets_have_the_lengths_of_what_they_match():
    lengths = [i // 2 for i in range(97)]
    like = IDS[70:94]  # the long ones
    found = matched_random(IDS, lengths, like, seed=3)
    assert len(found) == len(set(found)) == 24
    edges = torch.quantile(
        torch.tensor(lengths, dtype=torch.float64), torch.arange(1, 10, dtype=torch.float64) / 10
    )
    tenth = {
        name: int(torch.searchsorted(edges, float(n), right=True))
        for name, n in zip(IDS, lengths, strict=True)
    }
    assert Counter(tenth[name] for name in found) == Counter(tenth[name] for name in like)
    plain = random_subset(IDS, 24, seed=3)
    mean = dict(zip(IDS, lengths, strict=True))
    assert sum(mean[n] for n in found) > 1.2 * sum(mean[n] for n in plain)
    assert set(found) != set(like)
    with pytest.raises(UserError, match="'elsewhere' is not among the items"):
        matched_random(IDS, lengths, ["elsewhere"])


def test_lengths_that_are_all_equal_match_too():
    assert len(matched_random(IDS, [5] * 97, IDS[:10])) == 10


def test_bad_input_is_named():
    with pytest.raises(UserError, match="2 ids, 1 of them different"):
        ordered(["a", "a"], torch.tensor([0.0, 1.0]))
    with pytest.raises(NonFiniteError, match="distance of 'b' is nan"):
        ordered(["a", "b"], torch.tensor([0.0, float("nan")]))
    with pytest.raises(UserError, match="cannot take 98 of 97"):
        proximate(IDS, DISTANCES, 98)

"""The three insights where they are planted, and on a data set in which there is nothing to find."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

from interp.data.prompts import PromptSet
from interp.defence.geometry import WHOLE, measure_geometry
from interp.geometry.conflict import conflict, gram, overlap, random_overlap, spectrum
from interp.methods.spf import randomised_svd

N, M, K = 40, 64, 3


def rows(rank: int | None, mean: float, seed: int) -> torch.Tensor:
    """Gradients as (example, m × n): noise of full or of low left rank, and a shared mean along one direction."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(M, M, generator=torch.Generator().manual_seed(99))).Q
    noise = torch.randn(N, M, 8, generator=generator)
    if rank is not None:
        noise = basis[:, :rank] @ (basis[:, :rank].T @ noise)
        noise *= (M / rank) ** 0.5
    shared = torch.outer(basis[:, 0], torch.ones(8) / 8**0.5) * mean * M**0.5
    return (noise + shared).flatten(1)


def stable_ranks(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float, list[float]]:
    inner = gram(torch.cat([a, b]))
    rng = np.random.default_rng(0)
    mixed = [rng.permutation(2 * N)[:N] for _ in range(60)]
    return (
        spectrum(inner[:N, :N]).stable_rank,
        spectrum(inner[N:, N:]).stable_rank,
        [spectrum(inner[draw][:, draw]).stable_rank for draw in mixed],
    )


def test_planted_low_rank_safety_is_told_from_broad_utility_and_nothing_is_found_in_one_distribution():
    safety, utility, mixed = stable_ranks(rows(2, 0, 1), rows(None, 0, 2))
    assert safety < min(mixed) < utility
    outside = 0
    for seed in range(20):
        a, _, mixed = stable_ranks(rows(None, 1, 2 * seed), rows(None, 1, 2 * seed + 1))
        outside += a < np.quantile(mixed, 0.025) or a > np.quantile(mixed, 0.975)
    assert outside <= 4, "about one in twenty by chance"


def test_planted_conflict_is_negative_and_an_independent_pair_is_not():
    inner = gram(torch.cat([rows(None, 2, 1), rows(None, -2, 2)]))
    planted = conflict(inner, range(N), range(N, 2 * N), n_draws=50)
    assert planted.cosine < -0.5 < planted.ceiling.mean() and planted.p_value < 0.05
    inner = gram(torch.cat([rows(None, 0, 3), rows(None, 0, 4)]))
    nothing = conflict(inner, range(N), range(N, 2 * N), n_draws=50)
    assert abs(nothing.cosine) < 0.15 and nothing.p_value > 0.05


def test_one_example_finds_a_planted_subspace_and_not_one_that_is_not_there():
    def leading(gradients: torch.Tensor) -> torch.Tensor:
        return randomised_svd(gradients.view(M, 8), K, torch.Generator().manual_seed(0))[0]

    planted, broad = rows(K, 0, 5), rows(None, 0, 6)
    found = overlap(leading(planted[0]), leading(planted[1:].mean(0)))
    null = overlap(leading(broad[0]), leading(broad[1:].mean(0)))
    random = random_overlap(M, K, n_draws=50)
    assert found > 0.99 and null < random.max() + 0.05 < 0.5


def examples(n: int, seed: int) -> PromptSet:
    generator = torch.Generator().manual_seed(seed)
    words = [tiny.WORDS[int(i)] for i in torch.randint(60, (2 * n,), generator=generator)]
    asked = tiny.prompts(n, seed)
    return PromptSet(
        [
            replace(p, id=f"{seed}-{i}", response=f"{words[2 * i]} {words[2 * i + 1]}")
            for i, p in enumerate(asked)
        ],
        f"set {seed}",
    )


def test_two_sets_of_one_distribution_are_reported_as_null():
    found = measure_geometry(
        tiny.model(), examples(24, 1), examples(24, 2), k=4, n_single=6, n_draws=40, progress=False
    )
    whole = found.conflicts.set_index("block").loc[WHOLE]
    assert whole["null_low"] <= whole["cosine"] <= whole["null_high"] and whole["p"] > 0.05
    ranks = found.ranks[found.ranks["block"] == WHOLE].groupby("set")["stable_rank"]
    mixed = ranks.get_group("mixed")
    assert mixed.min() <= ranks.get_group("safety").iloc[0] <= mixed.max()
    phi = found.overlaps.groupby("of")["phi"].mean()
    assert abs(phi["safety"] - phi["utility"]) < 0.06
    layers = found.conflicts[found.conflicts["module"] == "all"]
    assert sorted(layers["layer"]) == [-1, 0, 1, 2, 3]
    assert set(found.conflicts["module"]) >= {"all", "q_proj", "down_proj"}


def test_sets_that_differ_are_not():
    plain, other = examples(24, 1), examples(24, 2)
    same = PromptSet([replace(p, response="w1 w2") for p in plain], "same")
    found = measure_geometry(tiny.model(), same, other, k=4, n_single=6, n_draws=40, progress=False)
    whole = found.conflicts.set_index("block").loc[WHOLE]
    assert whole["cosine"] < whole["null_low"]
    ranks = found.ranks[found.ranks["block"] == WHOLE].groupby("set")["stable_rank"].mean()
    assert ranks["safety"] < ranks["mixed"]
    phi = found.overlaps.groupby("of")["phi"].mean()
    assert phi["safety"] > phi["utility"] + 0.1
    with pytest.raises(Exception, match="cannot draw 30"):
        measure_geometry(tiny.model(), same, other, n_single=30, progress=False)

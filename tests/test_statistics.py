"""Every interval and test equals its closed form or a reference implementation, and keeps its defining properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from interp.errors import UserError
from interp.evals.statistics import (
    cluster_bootstrap,
    cluster_jackknife,
    hierarchical_bootstrap,
    holm,
    kappa,
    mcnemar_exact,
    paired_bootstrap,
    t_interval,
    wilson,
)


@settings(deadline=None)
@given(st.integers(0, 400).flatmap(lambda k: st.tuples(st.just(k), st.integers(max(k, 1), 500))))
def test_wilson_is_statsmodels_and_holds_its_estimate(kn: tuple[int, int]):
    k, n = kn
    rate = wilson(k, n)
    low, high = proportion_confint(k, n, method="wilson")
    assert (rate.low, rate.high) == pytest.approx((low, high), abs=1e-12)
    assert 0 <= rate.low <= rate.estimate <= rate.high <= 1
    mirrored = wilson(n - k, n)
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((rate.low, rate.high), abs=1e-12)
    wider = wilson(k, n, level=0.99)
    assert wider.high - wider.low > rate.high - rate.low


def test_wilson_by_hand():
    # k = 0: the upper bound is z²/(n + z²).
    z2 = stats.norm.ppf(0.975) ** 2
    assert wilson(0, 20).high == pytest.approx(z2 / (20 + z2))
    assert wilson(0, 20).low == 0.0
    assert str(wilson(186, 200)) == "0.93 [0.89, 0.96] (186/200)"


def test_a_proportion_of_nothing_is_not_a_number():
    rate = wilson(0, 0)
    assert np.isnan([rate.estimate, rate.low, rate.high]).all()
    assert str(rate) == "no data (0/0)"


@pytest.mark.parametrize(("k", "n", "level"), [(3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0), (1, 2, 95)])
def test_impossible_proportions_are_refused(k: int, n: int, level: float):
    with pytest.raises(UserError):
        wilson(k, n, level)


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_statsmodels_and_symmetric(b: int, c: int):
    expected = mcnemar([[5, b], [c, 7]], exact=True).pvalue if b + c else 1.0
    assert mcnemar_exact(b, c) == pytest.approx(min(expected, 1.0), abs=1e-12)
    assert mcnemar_exact(b, c) == pytest.approx(mcnemar_exact(c, b), abs=1e-12)


def test_mcnemar_by_hand():
    assert mcnemar_exact(0, 6) == pytest.approx(2 * 0.5**6)
    with pytest.raises(UserError):
        mcnemar_exact(-1, 2)


def test_the_bootstrap_of_a_proportion_has_the_binomial_quantiles():
    x = np.repeat([1.0, 0.0], [30, 70])
    found = cluster_bootstrap(x, n=20_000)
    low, high = stats.binom.ppf([0.025, 0.975], 100, 0.3) / 100
    assert found.value == pytest.approx(0.3)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.0101)


def test_clusters_of_copies_count_once():
    # 20 clusters of 10 identical items carry the information of 20 items, not of 200.
    cluster_values = np.repeat([1.0, 0.0], [8, 12])
    x, groups = np.repeat(cluster_values, 10), np.repeat(np.arange(20), 10).tolist()
    clustered = cluster_bootstrap(x, groups)
    few = cluster_bootstrap(cluster_values)
    assert (clustered.low, clustered.high) == pytest.approx((few.low, few.high))
    naive = cluster_bootstrap(x)
    assert clustered.high - clustered.low > 2.5 * (naive.high - naive.low)
    assert (clustered.n, naive.n) == (20, 200)


def test_every_item_its_own_cluster_is_the_plain_bootstrap():
    x = np.random.default_rng(0).normal(size=40)
    plain = cluster_bootstrap(x, seed=5, n=4000)
    alone = cluster_bootstrap(x, list(range(100, 140)), seed=5, n=4000)
    assert (alone.low, alone.high) == pytest.approx((plain.low, plain.high), abs=0.03)


def test_clusters_of_unequal_size_weigh_by_their_items():
    found = cluster_bootstrap([1.0, 0.0, 0.0, 0.0], ["a", "b", "b", "b"])
    assert found.value == 0.25
    assert (found.low, found.high) == (0.0, 1.0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=40), st.integers(0, 1000))
def test_a_paired_difference_turns_its_sign_with_its_sides(pairs: list[tuple[bool, bool]], seed: int):
    a, b = zip(*pairs, strict=True)
    one, other = paired_bootstrap(a, b, seed=seed, n=500), paired_bootstrap(b, a, seed=seed, n=500)
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low), abs=1e-12)
    assert one.low - 1e-12 <= one.high
    assert one.value == pytest.approx(np.mean(a) - np.mean(b))


def test_pairing_takes_out_what_both_share():
    rng = np.random.default_rng(1)
    hard = rng.normal(size=100) * 10
    a, b = hard + rng.normal(size=100) + 1, hard + rng.normal(size=100)
    found = paired_bootstrap(a, b)
    assert 0 < found.low < 1 < found.high < 2
    assert paired_bootstrap(a, a).low == paired_bootstrap(a, a).high == 0


def test_bootstraps_are_seeded_and_do_not_touch_the_global_generator():
    x = np.arange(30.0)
    np.random.seed(7)
    expected = np.random.random()
    np.random.seed(7)
    assert cluster_bootstrap(x, seed=1) == cluster_bootstrap(x, seed=1) != cluster_bootstrap(x, seed=2)
    assert np.random.random() == expected


def test_the_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        centres = rng.normal(size=40)
        x = (centres[:, None] + 0.1 * rng.normal(size=(40, 5))).ravel()
        found = cluster_bootstrap(x, np.repeat(np.arange(40), 5).tolist(), seed=trial, n=400)
        hits += found.low <= 0 <= found.high
    assert 0.89 <= hits / 300 <= 0.98


def test_jackknife_of_a_mean_is_the_t_interval():
    x = np.random.default_rng(0).normal(3, 2, 15)
    found, t = cluster_jackknife(lambda rows: x[rows].mean(), len(x)), t_interval(x)
    assert (found.value, found.low, found.high, found.n) == pytest.approx((t.value, t.low, t.high, 15))


def test_jackknife_counts_copies_once_and_deals_many_clusters_into_few_blocks():
    x = np.random.default_rng(0).normal(0, 1, 12)
    one = cluster_jackknife(lambda rows: x[rows].mean(), 12)
    copies, groups = np.repeat(x, 5), np.repeat(np.arange(12), 5).tolist()
    five = cluster_jackknife(lambda rows: copies[rows].mean(), 60, groups)
    assert (five.low, five.high, five.n) == pytest.approx((one.low, one.high, 12))
    y, calls = np.random.default_rng(1).normal(0, 1, 400), []
    cluster_jackknife(lambda rows: calls.append(len(rows)) or y[rows].mean(), 400, blocks=10)
    assert calls == [400] + [360] * 10


def test_jackknife_intervals_cover():
    hits = 0
    for seed in range(200):
        x = np.random.default_rng(seed).normal(0, 1, (60, 2))
        found = cluster_jackknife(lambda rows, x=x: np.corrcoef(x[rows].T)[0, 1], 60)
        hits += found.low <= 0 <= found.high
    assert 180 <= hits <= 199


def test_jackknife_bounds_stay_within_limits():
    x = np.array([0.0, 1, 1, 1, 1, 1])
    free, cut = (
        cluster_jackknife(lambda rows: x[rows].mean(), 6, limits=limits) for limits in ((-9, 9), (0, 1))
    )
    assert free.high > 1 == cut.high and cut.low == free.low
    assert np.isnan(cluster_jackknife(lambda rows: np.nan, 6, limits=(0, 1)).high)


def test_jackknife_without_blocks_or_groups_for_all():
    found = cluster_jackknife(lambda rows: 1.0, 3, ["a"] * 3)
    assert found.value == 1 and np.isnan([found.low, found.high]).all()
    with pytest.raises(UserError, match="2 groups"):
        cluster_jackknife(lambda rows: 1.0, 3, ["a", "b"])


def test_one_cluster_gives_no_interval():
    found = cluster_bootstrap([1.0, 0.0], ["a", "a"])
    assert found.value == 0.5 and np.isnan([found.low, found.high]).all()


def test_the_hierarchical_bootstrap_has_the_variance_of_both_levels():
    rng = np.random.default_rng(2)
    samples = [rng.normal(loc=rng.normal(), size=50) for _ in range(12)]
    found = hierarchical_bootstrap(samples)
    means = np.array([s.mean() for s in samples])
    within = np.mean([s.var() / len(s) for s in samples])
    spread = np.sqrt((means.var() + within) / len(means))
    assert found.value == pytest.approx(means.mean())
    assert (found.high - found.low) / (2 * 1.96 * spread) == pytest.approx(1, abs=0.06)
    assert np.isnan(hierarchical_bootstrap(samples[:1]).low)


@settings(deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12))
def test_the_t_interval_is_scipys(x: list[float]):
    found = t_interval(x)
    if np.std(x) > 1e-6:
        low, high = stats.t.interval(0.95, len(x) - 1, np.mean(x), stats.sem(x))
        assert (found.low, found.high) == pytest.approx((low, high))
    assert found.low - 1e-9 <= found.value <= found.high + 1e-9


def test_one_seed_gives_no_interval():
    found = t_interval([0.3])
    assert found.value == 0.3 and np.isnan([found.low, found.high]).all()


@pytest.mark.parametrize("p", [[0.03], [0.01, 0.04, 0.03, 0.005], [0.5, 0.5, 0.0, 1.0, 0.2], [0.02] * 4])
def test_holm_is_statsmodels(p: list[float]):
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])


def test_holm_by_hand():
    # Sorted 0.005·4, 0.01·3, 0.03·2 = 0.06, and 0.04 may not fall under its predecessor.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=15))
def test_holm_never_lowers_a_p_value_nor_their_order(p: list[float]):
    adjusted, raw = holm(p), np.array(p)
    assert (adjusted >= raw).all() and (adjusted <= 1).all()
    assert (np.diff(adjusted[np.argsort(raw, kind="stable")]) >= 0).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=2, max_size=40))
def test_kappa_is_sklearns(pairs: list[tuple[str, str]]):
    a, b = (np.array(side) for side in zip(*pairs, strict=True))
    found = kappa(a, b, n=200)
    if len({*a, *b}) == 1:
        assert np.isnan(found.value)
    else:
        assert found.value == pytest.approx(cohen_kappa_score(a, b), abs=1e-12)


def test_kappa_by_hand_with_its_interval():
    # 45 yes-yes, 15 yes-no, 25 no-yes, 15 no-no: observed 0.60, expected 0.54, κ = 0.06/0.46.
    a = np.repeat([1, 1, 0, 0], [45, 15, 25, 15])
    b = np.repeat([1, 0, 1, 0], [45, 15, 25, 15])
    found = kappa(a, b)
    assert found.value == pytest.approx(0.06 / 0.46)
    draws = np.random.default_rng(3).integers(100, size=(2000, 100))
    direct = np.quantile([cohen_kappa_score(a[d], b[d]) for d in draws[:400]], [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx(tuple(direct), abs=0.05)
    assert kappa(a, a).value == kappa(a, a).low == 1.0


@pytest.mark.parametrize(
    "call",
    [
        lambda: t_interval([]),
        lambda: t_interval([1.0, float("nan")]),
        lambda: cluster_bootstrap([1.0, 2.0], ["a"]),
        lambda: paired_bootstrap([1.0], [1.0, 2.0]),
        lambda: holm([0.5, 1.5]),
        lambda: kappa([1, 2], [1]),
        lambda: hierarchical_bootstrap([]),
    ],
)
def test_values_that_are_no_values_are_refused(call):
    with pytest.raises(UserError):
        call()

"""Intervals against scipy, against a closed form, and against what they should cover."""

import numpy as np
import pytest
import scipy.stats

from seamscope.probes import _stats as stats
from seamscope.probes import bootstrap_interval, bootstrap_intervals, median_interval, paired_bootstrap_interval


def test_equals_scipy_where_every_item_is_its_own_group():
    values = np.random.default_rng(0).gamma(2.0, size=60)
    ours = bootstrap_interval(values, n=20_000, level=0.9)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, confidence_level=0.9, method="percentile", rng=1
    ).confidence_interval
    np.testing.assert_allclose(ours, theirs, atol=0.01)


def clustered(rng, groups=60, size=4):
    """Values whose spread lies between the groups; their mean is 0."""
    return np.repeat(rng.normal(size=groups), size) + 0.3 * rng.normal(size=groups * size)


def coverage(draws, with_groups):
    rng = np.random.default_rng(5)
    code = np.repeat(np.arange(60), 4)
    hits = 0
    for _ in range(draws):
        low, high = bootstrap_interval(clustered(rng), code if with_groups else None, n=500)
        hits += low <= 0 <= high
    return hits / draws


def test_covers_the_true_mean_of_grouped_items_as_often_as_it_says():
    assert 0.91 <= coverage(400, with_groups=True) <= 0.98


def test_without_groups_the_interval_of_grouped_items_is_too_narrow():
    assert coverage(100, with_groups=False) < 0.8


def test_width_is_that_of_the_normal_approximation():
    values = np.repeat(np.random.default_rng(1).normal(size=400), 3)
    low, high = bootstrap_interval(values, np.repeat(np.arange(400), 3), n=10_000)
    expected = 2 * 1.96 * values[::3].std() / np.sqrt(400)
    assert high - low == pytest.approx(expected, rel=0.05)


def test_groups_of_unequal_size_weigh_by_their_items():
    values = np.r_[np.zeros(90), np.ones(10)]
    groups = np.r_[np.repeat(np.arange(9), 10), np.arange(9, 19)]
    low, high = bootstrap_interval(values, groups)
    assert low < 0.1 < high < 0.5


def test_a_paired_interval_is_that_of_the_difference():
    rng = np.random.default_rng(2)
    first = rng.normal(size=50) * 10
    second = first - 1 + 0.1 * rng.normal(size=50)
    low, high = paired_bootstrap_interval(first, second)
    assert 0.9 < low < 1 < high < 1.1
    apart = bootstrap_interval(first)
    assert apart[1] - apart[0] > 10 * (high - low)


def test_the_seed_decides_and_names_of_groups_do_not():
    values, groups = np.random.default_rng(3).normal(size=40), np.arange(40) // 2
    named = [f"g{g:03}" for g in groups]
    assert bootstrap_interval(values, groups) == bootstrap_interval(values, named)
    assert bootstrap_interval(values, groups) != bootstrap_interval(values, groups, seed=1)


def test_many_groups_come_in_blocks(monkeypatch):
    values = np.random.default_rng(4).normal(size=300)
    whole = bootstrap_interval(values)
    stats._counts.cache_clear()
    monkeypatch.setattr(stats, "_BLOCK", 300 * 7)
    np.testing.assert_allclose(bootstrap_interval(values), whole, atol=0.03)
    stats._counts.cache_clear()


def test_what_cannot_be_resampled():
    assert np.isnan(bootstrap_interval([1.0, 2.0], ["a", "a"])).all()
    assert np.isnan(bootstrap_interval([])).all()
    assert bootstrap_interval([1.0, 1.0]) == (1.0, 1.0)
    with pytest.raises(ValueError, match=r"got shapes \(2,\) and \(1,\)"):
        bootstrap_interval([1.0, 2.0], ["a"])


class TestMedians:
    def test_equals_scipy_where_every_item_is_its_own_group(self):
        values = np.random.default_rng(0).gamma(2.0, size=61)
        ours = median_interval(values, n=20_000, level=0.9)
        theirs = scipy.stats.bootstrap(
            (values,), np.median, n_resamples=20_000, confidence_level=0.9, method="percentile", rng=1
        ).confidence_interval
        np.testing.assert_allclose(ours, theirs, atol=0.02)

    def test_items_that_are_alike_in_a_group_count_once(self):
        values = np.random.default_rng(1).normal(size=101)
        alone = median_interval(values, n=2000)
        doubled = median_interval(np.repeat(values, 4), np.repeat(np.arange(101), 4), n=2000)
        assert doubled == pytest.approx(alone)
        low, high = median_interval(np.repeat(values, 4), n=2000)
        assert high - low < 0.7 * (alone[1] - alone[0])

    def test_nothing_to_resample(self):
        assert np.isnan(median_interval([])).all()
        assert np.isnan(median_interval([1.0, 2.0], ["a", "a"])).all()


def test_several_intervals_at_once_are_those_one_by_one():
    rng = np.random.default_rng(3)
    values, groups = rng.normal(size=(40, 3)), rng.integers(12, size=40)
    found = bootstrap_intervals(values, groups, seed=5)
    assert found == pytest.approx(np.array([bootstrap_interval(each, groups, seed=5) for each in values.T]))
    assert np.isnan(bootstrap_intervals(values, np.zeros(40))).all()

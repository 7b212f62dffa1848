"""Intervals that cover what they promise, tests that err as often as they say, and the symmetries between them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapwb.core.errors import UsageError
from tapwb.core.reading import Unavailable
from tapwb.metrics.statistics import (
    bootstrap_ci,
    cluster_bootstrap_ci,
    paired_ratio_ci,
    percentile_ci,
    permutation_p_value,
)

samples = st.lists(st.floats(-1e3, 1e3, allow_subnormal=False).map(lambda x: round(x, 3)), min_size=2, max_size=40)


def coverage(draw, truth, interval, n_runs=400):
    """Share of simulated samples whose interval holds the truth."""
    rng = np.random.default_rng(7)
    hits = 0
    for run in range(n_runs):
        found = interval(draw(rng), run)
        hits += found.low <= truth <= found.high
    return hits / n_runs


def test_bca_covers_a_normal_mean():
    """95 % at n = 40, within the noise of 400 simulations."""
    share = coverage(lambda rng: rng.normal(3, 2, 40), 3, lambda x, run: bootstrap_ci(x, None, 999, run))
    assert 0.915 <= share <= 0.98


def test_bca_covers_a_skewed_mean_better_than_the_percentile():
    """Exponential data at n = 20, where the percentile interval is known to be short."""
    by_method = {
        method: coverage(
            lambda rng: rng.exponential(1, 20), 1, lambda x, run, m=method: bootstrap_ci(x, None, 999, run, method=m)
        )
        for method in ("bca", "percentile")
    }
    assert by_method["bca"] >= by_method["percentile"]
    assert by_method["bca"] > 0.89


def test_windows_must_be_resampled_whole():
    """25 windows of 20 correlated tokens: by window 95 %, by token a third of the time wrong."""
    labels = np.repeat(np.arange(25), 20)

    def draw(rng):
        return np.repeat(rng.normal(0, 1, 25), 20) + rng.normal(0, 1, 500)

    whole = coverage(draw, 0, lambda x, run: cluster_bootstrap_ci(x, labels, 499, run), 200)
    naive = coverage(draw, 0, lambda x, run: bootstrap_ci(x, None, 499, run), 200)
    assert whole > 0.9
    assert naive < 0.6


def test_a_paired_ratio_covers_the_true_ratio():
    """Both sides share the difficulty of the item; the ratio does not."""

    def draw(rng):
        hard = rng.lognormal(0, 1, 30)
        return hard * rng.lognormal(0, 0.1, 30), 0.8 * hard * rng.lognormal(0, 0.1, 30)

    share = coverage(draw, 0.8, lambda x, run: paired_ratio_ci(*x, 499, run, mean="geometric"), 300)
    assert 0.9 <= share <= 0.99


def test_the_permutation_test_errs_as_often_as_it_says():
    """Without a difference p < 0.05 in about one of twenty experiments; with one, nearly always."""
    rng = np.random.default_rng(3)
    null = [permutation_p_value(rng.standard_t(3, 14), seed=run) for run in range(400)]
    assert 0.025 <= np.mean(np.array(null) <= 0.05) <= 0.08
    real = [permutation_p_value(rng.normal(1, 1, 30), n_resamples=499, seed=run) for run in range(50)]
    assert np.mean(np.array(real) <= 0.05) > 0.9


def test_clustered_differences_do_not_fool_the_permutation_test():
    """Ten users of thirty answers each are ten experiments, not three hundred."""
    labels = np.repeat(np.arange(10), 30)
    rng = np.random.default_rng(4)
    data = [np.repeat(rng.normal(0, 1, 10), 30) + rng.normal(0, 0.5, 300) for _ in range(150)]
    by_user = np.mean([permutation_p_value(x, clusters=labels) <= 0.05 for x in data])
    naive = np.mean([permutation_p_value(x, n_resamples=199, seed=1) <= 0.05 for x in data])
    assert by_user <= 0.1
    assert naive > 0.4


@pytest.mark.parametrize(("n", "p"), [(5, 2 / 32), (10, 2 / 1024)])
def test_small_samples_are_tested_exactly(n, p):
    """All differences positive: only that pattern and its mirror are as extreme."""
    values = np.arange(1, n + 1)
    assert permutation_p_value(values) == p
    assert permutation_p_value(values, alternative="greater") == p / 2
    assert permutation_p_value(values, alternative="less") == 1.0


def test_a_sampled_p_value_is_never_zero():
    """(b + 1) / (B + 1)."""
    assert permutation_p_value(np.ones(60), n_resamples=99) == 1 / 100


@settings(max_examples=40, deadline=None)
@given(samples)
def test_the_same_seed_gives_the_same_interval(values):
    """And the interval lies within the data."""
    first, second = bootstrap_ci(values, None, 200, 5), bootstrap_ci(values, None, 200, 5)
    assert first == second
    assert min(values) - 1e-9 <= first.low <= first.high <= max(values) + 1e-9


@settings(max_examples=40, deadline=None)
@given(samples, st.floats(0.1, 50), st.floats(-100, 100))
def test_an_interval_moves_with_its_data(values, factor, shift):
    """Scaling and shifting the data scales and shifts the ends."""
    plain = bootstrap_ci(values, None, 200, 5, method="percentile")
    moved = bootstrap_ci(np.array(values) * factor + shift, None, 200, 5, method="percentile")
    assert moved.low == pytest.approx(plain.low * factor + shift, abs=1e-6, rel=1e-6)
    assert moved.high == pytest.approx(plain.high * factor + shift, abs=1e-6, rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(samples)
def test_swapping_the_sides_changes_no_p_value(values):
    """The two-sided test knows no direction."""
    data = np.array(values)
    assert permutation_p_value(data, n_resamples=99) == permutation_p_value(-data, n_resamples=99)


@settings(max_examples=30, deadline=None)
@given(samples)
def test_duplicating_items_inside_their_clusters_changes_nothing(values):
    """Ten copies of one answer are one answer."""
    labels = np.arange(len(values))
    once = cluster_bootstrap_ci(values, labels, 100, 3)
    copied = cluster_bootstrap_ci(np.repeat(values, 10), np.repeat(labels, 10), 100, 3)
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high), abs=1e-9)


def test_a_custom_statistic_agrees_with_the_fast_mean():
    """The general path and the mean's own path are the same procedure."""
    values = np.random.default_rng(0).normal(size=23)
    fast, general = (
        bootstrap_ci(values, None, 500, 2),
        bootstrap_ci(values, lambda x: float(np.sum(x) / len(x)), 500, 2),
    )
    assert (general.low, general.high) == pytest.approx((fast.low, fast.high))
    labels = np.arange(23) // 4
    fast, general = (bootstrap_ci(values, f, 500, 2, clusters=labels) for f in (None, lambda x: float(np.mean(x))))
    assert (general.low, general.high) == pytest.approx((fast.low, fast.high))


def test_the_order_of_items_does_not_matter_to_the_estimate():
    """And hardly to the ends."""
    values = np.random.default_rng(0).lognormal(size=60)
    one, other = bootstrap_ci(values, np.median, 2000), bootstrap_ci(values[::-1], np.median, 2000)
    assert one.estimate == other.estimate
    assert one.low == pytest.approx(other.low, rel=0.05)


def test_the_standard_error_is_that_of_the_mean():
    """Bootstrap and textbook agree."""
    values = np.random.default_rng(0).normal(0, 3, 400)
    assert bootstrap_ci(values, None, 4000).standard_error == pytest.approx(values.std() / 20, rel=0.05)


def test_constant_data_have_an_interval_of_no_width():
    """Not a division by zero."""
    found = bootstrap_ci([2.5] * 7)
    assert (found.estimate, found.low, found.high, found.standard_error) == (2.5, 2.5, 2.5, 0)


def test_the_ends_can_be_unpacked_and_become_a_reading():
    """``low, high = interval`` and the reading say the same."""
    interval = bootstrap_ci([1, 2, 3, 4, 6])
    low, high = interval
    reading = interval.to_reading("s", "measured:clock")
    assert reading.ci95 == (low, high)
    assert (reading.value, reading.n) == (3.2, 5)
    assert bootstrap_ci([1, 2, 3], confidence=0.9).to_reading("s", "measured:clock").ci95 is None


def test_ratios_of_means_and_of_geometric_means_differ_as_they_should():
    """Means of 2 and 4 over 1 and 1, or their logarithms."""
    assert paired_ratio_ci([1, 1], [2, 4]).estimate == pytest.approx(3)
    assert paired_ratio_ci([1, 1], [2, 4], mean="geometric").estimate == pytest.approx(math.sqrt(8))


@pytest.mark.parametrize(("quantile", "least"), [(0.5, 6), (0.9, 36), (0.95, 72), (0.99, 368)])
def test_percentiles_need_as_many_values_as_theory_says(quantile, least):
    """One value fewer and there is no interval."""
    values = np.random.default_rng(0).exponential(size=least)
    assert "n too small" in percentile_ci(values[:-1], quantile).reason
    found = percentile_ci(values, quantile)
    assert found.low <= found.estimate <= found.high


def test_order_statistics_cover_at_least_what_they_promise():
    """The 90th percentile of an exponential, 60 values."""
    share = coverage(lambda rng: rng.exponential(1, 60), math.log(10), lambda x, run: percentile_ci(x, 0.9))
    assert share >= 0.94


def test_one_value_has_no_interval():
    """Nor has one cluster, nor nothing."""
    assert isinstance(bootstrap_ci([3.0]), Unavailable)
    assert isinstance(bootstrap_ci([]), Unavailable)
    assert isinstance(cluster_bootstrap_ci([1, 2, 3], ["a", "a", "a"]), Unavailable)
    assert isinstance(paired_ratio_ci([1], [2]), Unavailable)


@pytest.mark.parametrize(
    "call",
    [
        lambda: bootstrap_ci([1, math.nan]),
        lambda: bootstrap_ci([1, 2], n_resamples=0),
        lambda: bootstrap_ci([1, 2], confidence=95),
        lambda: bootstrap_ci([1, 2], method="bc"),
        lambda: bootstrap_ci([1, 2], clusters=[1]),
        lambda: paired_ratio_ci([1, 2], [1]),
        lambda: paired_ratio_ci([1, 0], [1, 1]),
        lambda: permutation_p_value([]),
        lambda: percentile_ci([1, 2], 95),
    ],
)
def test_wrong_input_is_refused(call):
    """Each with what to give instead."""
    with pytest.raises(UsageError):
        call()

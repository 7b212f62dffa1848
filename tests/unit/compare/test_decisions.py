"""Margins, several metrics, numbers of items, and when to stop.

Seed features: S0.17
"""

import numpy as np
import pytest

from tapwb.compare.confidence_sequence import asymptotic_confidence_sequence
from tapwb.compare.equivalence import is_within, margin_test, upper_tail
from tapwb.compare.false_discovery import benjamini_hochberg_adjusted
from tapwb.compare.holm import holm_adjusted
from tapwb.compare.paired import paired_differences
from tapwb.compare.sample_size import (
    detectable_difference,
    items_for_difference,
    items_for_equivalence,
    items_for_non_inferiority,
    planned_cost_usd,
    power_of,
    sd_of_accuracy_difference,
    sd_with_repeats,
)
from tapwb.compare.stopping import decide_stop
from tapwb.core.errors import UsageError
from tapwb.core.reading import Reading, Unavailable


def of(values, clusters=None):
    """Differences against zeros."""
    return paired_differences(np.zeros(len(values)), values, clusters)


def test_two_one_sided_tests_agree_with_statsmodels():
    """Both sides, at several distances from the margin."""
    weightstats = pytest.importorskip("statsmodels.stats.weightstats")
    for shift in (-0.4, 0.0, 0.3):
        rng = np.random.default_rng(0)
        a = rng.normal(size=35)
        b = a + rng.normal(shift, 0.7, 35)
        overall, (_, above, _), (_, below, _) = weightstats.ttost_paired(b, a, -0.5, 0.5)
        found = margin_test(paired_differences(a, b), margin=0.5, unit="point")
        assert (found.p_above, found.p_below) == pytest.approx((above, below), abs=1e-9)
        assert found.p_equivalence == pytest.approx(overall, abs=1e-9)


def test_tails_agree_with_scipy_on_both_sides():
    """Even and odd degrees of freedom, one included."""
    stats = pytest.importorskip("scipy.stats")
    for freedom in (1, 2, 7, 40):
        for value in (-3.0, -0.5, 0.0, 1.0, 4.0):
            assert upper_tail(value, freedom) == pytest.approx(stats.t.sf(value, freedom), abs=1e-9)


def test_no_significant_difference_is_not_equivalence():
    """Ten noisy items show neither; a thousand quiet ones show equivalence."""
    rng = np.random.default_rng(1)
    few = margin_test(of(rng.normal(size=10)), margin=0.1, unit="1")
    many = margin_test(of(rng.normal(0, 0.5, 1000)), margin=0.1, unit="1")
    assert not few.is_equivalent()
    assert many.is_equivalent()
    assert many.is_non_inferior()


def test_equivalence_is_the_inner_interval_inside_the_margin():
    """The two ways of saying it agree."""
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(2)
    said = []
    for shift in np.linspace(0, 0.5, 25):
        values = rng.normal(shift, 1, 60)
        low, high = stats.ttest_1samp(values, 0).confidence_interval(0.9)
        said.append(margin_test(of(values), margin=0.4, unit="1").is_equivalent())
        assert said[-1] == is_within(low, high, 0.4)
    assert set(said) == {True, False}


def test_a_margin_must_mean_something():
    """And differences must vary."""
    for margin in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="smallest difference that matters"):
            margin_test(of([1.0, 2]), margin=margin, unit="point")
    assert isinstance(margin_test(of([1.0]), margin=1, unit="1"), Unavailable)
    assert isinstance(margin_test(of([1.0, 1]), margin=2, unit="1"), Unavailable)


@pytest.mark.parametrize(
    ("ours", "method"), [(holm_adjusted, "holm"), (benjamini_hochberg_adjusted, "fdr_bh")], ids=["holm", "bh"]
)
def test_adjusted_p_values_agree_with_statsmodels(ours, method):
    """Ties, zeros, ones, one test and none."""
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    rng = np.random.default_rng(3)
    for p in ([0.04], [0.01, 0.04, 0.03, 0.005], [0.0, 0.02, 0.02, 1.0], rng.random(40) ** 3):
        assert ours(p) == pytest.approx(multitest.multipletests(p, method=method)[1], abs=1e-9)
    assert len(ours([])) == 0
    with pytest.raises(UsageError, match="between 0 and 1"):
        ours([0.5, 1.5])
    with pytest.raises(UsageError, match="between 0 and 1"):
        ours([np.nan])


@pytest.mark.parametrize(("distance", "n"), [(0.5, 32), (0.3, 88), (0.2, 197), (0.1, 785), (0.05, 3140)])
def test_items_for_a_share_of_the_deviation(distance, n):
    """The known table, two-sided 5 % and power 80 %."""
    assert items_for_difference(1.0, distance) == n
    assert power_of(n, 1.0, distance) >= 0.8 > power_of(n - 1, 1.0, distance)
    assert detectable_difference(n, 1.0) == pytest.approx(distance, rel=0.02)


@pytest.mark.parametrize(
    ("correlation", "counts"),
    [(0.0, (1005, 2791, 6280, 25117)), (0.5, (503, 1396, 3140, 12559)), (0.7, (302, 838, 1884, 7535))],
)
def test_items_for_points_of_accuracy(correlation, counts):
    """Both at 80 %, for 5, 3, 2 and 1 points: shared difficulty saves two thirds."""
    sd = sd_of_accuracy_difference(0.8, 0.8, correlation)
    assert tuple(items_for_difference(sd, points / 100) for points in (5, 3, 2, 1)) == counts


def test_items_for_a_margin():
    """Two points with a deviation of 0.4; being truly better needs fewer."""
    assert items_for_non_inferiority(0.4, 0.02) == 3140
    assert items_for_non_inferiority(0.4, 0.02, power=0.9) == 4203
    assert items_for_non_inferiority(0.4, 0.02, true_difference=0.01) == 1396
    assert items_for_difference(0.4, 0.02, design_effect=3.5) == pytest.approx(3.5 * 3140, rel=0.001)
    with pytest.raises(UsageError, match="above 0"):
        items_for_non_inferiority(0.4, 0.02, true_difference=-0.02)


def test_numbers_of_items_agree_with_statsmodels():
    """Its one-sided formula and its two-sided power."""
    power = pytest.importorskip("statsmodels.stats.power")
    other = power.normal_sample_size_one_tail(0.3, 0.8, 0.025, std_null=1.0)
    assert items_for_difference(1.0, 0.3) == int(np.ceil(other))
    for n, distance in ((30, 0.2), (88, 0.3), (400, 0.05)):
        theirs = power.NormalIndPower(ddof=0).power(distance, n, 0.05, ratio=0)
        assert power_of(n, 1.0, distance) == pytest.approx(theirs, abs=1e-9)


def test_as_many_items_as_planned_show_equivalence_as_often_as_planned():
    """Two systems that are alike, known deviation: both one-sided tests reject in 80 %."""
    n = items_for_equivalence(1.0, 0.25)
    means = np.random.default_rng(4).normal(size=100_000) / np.sqrt(n)
    reach = 0.25 - 1.6448536 / np.sqrt(n)
    assert (np.abs(means) < reach).mean() == pytest.approx(0.8, abs=0.01)


def test_repeats_shrink_only_the_noise_of_answering():
    """However many, the items stay different."""
    assert sd_with_repeats(3, 4, 0, 1) == pytest.approx(5)
    assert sd_with_repeats(3, 4, 0, 10**9) == pytest.approx(3)
    with pytest.raises(UsageError):
        sd_with_repeats(1, 1, 1, 0)


def test_the_cost_of_a_plan_is_known_before_it_runs_or_unknown():
    """One unknown price makes the sum unknown."""
    price = Reading(0.002, "USD", "estimated:price list")
    assert planned_cost_usd(500, 2, price, price).value == pytest.approx(4.0)
    assert "B" in planned_cost_usd(500, 2, price, Unavailable("no list")).reason
    assert "A" in planned_cost_usd(500, 2, Unavailable("no list"), price).reason


@pytest.mark.parametrize(
    "call",
    [
        lambda: items_for_difference(0.0, 1.0),
        lambda: items_for_difference(1.0, 0.0),
        lambda: items_for_difference(1.0, 1.0, alpha=1.0),
        lambda: items_for_equivalence(1.0, 1.0, power=1.0),
        lambda: items_for_difference(1.0, 1.0, design_effect=0.5),
        lambda: detectable_difference(0, 1.0),
        lambda: sd_of_accuracy_difference(1.2, 0.5),
    ],
)
def test_plans_without_meaning_are_refused(call):
    """Before they give a number."""
    with pytest.raises(UsageError):
        call()


def sequence(shift, spread=1.0, n=400):
    """Intervals of differences around a shift."""
    return asymptotic_confidence_sequence(np.random.default_rng(5).normal(shift, spread, n), n_planned=n, every=10)


def test_a_comparison_stops_for_success_futility_or_budget():
    """And otherwise goes on."""
    clear = decide_stop(sequence(1.0), intent="superiority", margin=0.2, n_planned=400)
    assert clear.reason == "success"
    assert clear.n_clusters < 100
    assert decide_stop(sequence(0.0, 0.1), intent="superiority", margin=0.2, n_planned=400).reason == "futility"
    assert decide_stop(sequence(0.0, 0.1), intent="equivalence", margin=0.2, n_planned=400).reason == "success"
    assert decide_stop(sequence(0.0, 0.1), intent="non-inferiority", margin=0.2, n_planned=400).reason == "success"
    assert decide_stop(sequence(0.0), intent="superiority", margin=0.01, n_planned=390).reason == "budget"
    assert decide_stop(sequence(0.0), intent="superiority", margin=None, n_planned=2000).reason == "go on"
    worse = sequence(0.5)
    assert decide_stop(worse.turned(), intent="superiority", margin=0.2, n_planned=400).reason == "success"
    assert worse.turned().at(130) == tuple(-x for x in (worse.at(130)[0], worse.at(130)[2], worse.at(130)[1]))
    with pytest.raises(UsageError, match="without a margin"):
        decide_stop(sequence(0.0), intent="equivalence", margin=None, n_planned=400)

"""Intervals: agreement with other programs, symmetries, and what they refuse to say.

Seed features: S0.17
"""

import math

import numpy as np
import pytest

from tapwb.compare.bayes_paired import credible_difference
from tapwb.compare.bounded_sequence import bounded_confidence_sequence
from tapwb.compare.cluster_bootstrap import bca_interval, bootstrap_t_interval, cluster_t_interval
from tapwb.compare.confidence_sequence import asymptotic_confidence_sequence, mixture_half_width
from tapwb.compare.cost import cost_per_accepted
from tapwb.compare.latency import moving_blocks, percentile_difference
from tapwb.compare.mcnemar import mcnemar_test
from tapwb.compare.paired import paired_differences
from tapwb.compare.score_interval import tango_interval, tango_statistic, wilson_interval
from tapwb.core.errors import UsageError
from tapwb.core.reading import Unavailable


def of(values, clusters=None):
    """Differences against zeros."""
    return paired_differences(np.zeros(len(values)), values, clusters)


def test_the_t_interval_agrees_with_scipy():
    """Items of their own, at even and odd degrees of freedom."""
    stats = pytest.importorskip("scipy.stats")
    for n in (30, 51):
        values = np.random.default_rng(n).normal(1, 2, n)
        other = stats.ttest_1samp(values, 0).confidence_interval(0.9)
        found = cluster_t_interval(of(values), confidence=0.9)
        assert (found.low, found.high) == pytest.approx((other.low, other.high), abs=1e-9)


def test_wilson_agrees_with_statsmodels():
    """At the ends and in the middle."""
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    for right, n in [(0, 10), (10, 10), (3, 10), (250, 1000), (1, 1)]:
        other = proportion.proportion_confint(right, n, method="wilson")
        assert wilson_interval(right, n) == pytest.approx(other, abs=1e-9)


def test_tango_at_zero_is_mcnemars_chi_square():
    """The square of its statistic, as statsmodels has it."""
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    other = tables.mcnemar([[10, 15], [6, 30]], exact=False, correction=False).statistic
    assert tango_statistic(15, 6, 61, 0.0) ** 2 == pytest.approx(other, rel=1e-9)


@pytest.mark.parametrize(("only_a", "only_b", "n"), [(9, 20, 100), (0, 5, 30), (30, 2, 60), (1, 1, 40)])
def test_tango_ends_lie_where_the_constrained_likelihood_puts_them(only_a, only_b, n):
    """The share under the hypothesis is found by maximising the likelihood instead of by the closed form."""
    optimize = pytest.importorskip("scipy.optimize")
    z = 1.959963984540054

    def distance(difference):
        def loss(share):
            cells = [share, share + difference, 1 - 2 * share - difference]
            counts = [only_a, only_b, n - only_a - only_b]
            return -sum(k * math.log(max(p, 1e-300)) for k, p in zip(counts, cells, strict=True) if k)

        edges = (max(0.0, -difference), (1 - difference) / 2)
        share = optimize.minimize_scalar(loss, bounds=edges, method="bounded", options={"xatol": 1e-13}).x
        variance = n * (2 * share + difference - difference**2)
        return abs(only_b - only_a - n * difference) / math.sqrt(variance)

    low, high = tango_interval(only_a, only_b, n)
    assert low < (only_b - only_a) / n < high
    assert distance(low) == pytest.approx(z, rel=1e-5)
    assert distance(high) == pytest.approx(z, rel=1e-5)


def test_tango_turns_round_with_the_systems():
    """And stays within -1 and 1."""
    low, high = tango_interval(3, 11, 50)
    assert tango_interval(11, 3, 50) == pytest.approx((-high, -low), abs=1e-12)
    low, high = tango_interval(0, 20, 20)
    assert 0 < low < high == 1.0
    low, high = tango_interval(0, 0, 30)
    assert low == pytest.approx(-high)
    assert 0 < high < 0.15  # no disagreement in thirty is not proof of none


@pytest.mark.parametrize("bad", [(5, 4, 8), (-1, 2, 8), (0, 0, 0)])
def test_impossible_counts_are_refused(bad):
    """Before anything is computed."""
    with pytest.raises(UsageError):
        tango_interval(*bad)
    with pytest.raises(UsageError):
        wilson_interval(5, 3)
    with pytest.raises(UsageError, match=r"0\.95"):
        wilson_interval(1, 3, 1.5)


def slow_bootstrap_t(values, labels, confidence, n_resamples, seed):
    """The definition, one resample at a time, in the canonical order of the clusters."""
    paired = of(values, labels)
    order = paired.canonical_order
    members = [paired.values[paired.labels == label] for label in order]
    rng = np.random.default_rng(seed)
    ratios = []
    for row in rng.integers(0, len(members), (n_resamples, len(members))):
        drawn = [members[i] for i in row]
        again = of(np.concatenate(drawn), np.repeat(np.arange(len(drawn)), [len(part) for part in drawn]))
        ratios.append((again.mean - paired.mean) / again.standard_error)
    ends = np.quantile(ratios, [(1 + confidence) / 2, (1 - confidence) / 2], method="weibull")
    return paired.mean - ends * paired.standard_error


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_bootstrap_t_is_its_definition(offset):
    """Clusters of unequal size, and a mean far from zero."""
    rng = np.random.default_rng(5)
    labels = np.repeat(np.arange(12), rng.integers(1, 6, 12))
    values = offset + rng.normal(size=12)[labels] + rng.normal(size=len(labels))
    found = bootstrap_t_interval(of(values, labels), confidence=0.9, n_resamples=400, seed=3)
    assert list(found) == pytest.approx(slow_bootstrap_t(values, labels, 0.9, 400, 3), abs=1e-6)


def test_intervals_know_neither_order_nor_copies_and_turn_round_with_the_systems():
    """Many ties, drawn resamples included."""
    rng = np.random.default_rng(6)
    values, labels = rng.integers(-1, 3, 60).astype(float), np.repeat(np.arange(20), 3)
    one = bootstrap_t_interval(of(values, labels), n_resamples=999)
    shuffle = rng.permutation(60)
    again = bootstrap_t_interval(of(values[shuffle], labels[shuffle]), n_resamples=999)
    copied = bootstrap_t_interval(of(np.repeat(values, 5), np.repeat(labels, 5)), n_resamples=999)
    turned = bootstrap_t_interval(of(-values, labels), n_resamples=999)
    assert list(again) == pytest.approx(list(one), abs=1e-9)
    assert list(copied) == pytest.approx(list(one), abs=1e-9)
    assert [-turned.high, -turned.low] == pytest.approx(list(one), abs=1e-9)


def test_differences_that_do_not_vary_give_no_interval():
    """A hundred zeros do not prove that the next one is zero."""
    assert "nothing is known" in bootstrap_t_interval(of(np.zeros(100))).reason
    assert "at least 5" in bootstrap_t_interval(of([1.0, 2, 3, 4])).reason
    assert "differ" in bootstrap_t_interval(of([0.0] * 40 + [1.0]), n_resamples=999).reason
    assert "below 30" in cluster_t_interval(of(np.arange(29.0))).reason
    with pytest.raises(UsageError):
        bootstrap_t_interval(of(np.arange(40.0)), confidence=2)
    with pytest.raises(UsageError):
        cluster_t_interval(of(np.arange(40.0)), confidence=0)


def test_the_two_bootstraps_agree_on_plain_data():
    """Within a tenth of their width at two hundred items."""
    paired = of(np.random.default_rng(7).normal(size=200))
    one, other = bootstrap_t_interval(paired), bca_interval(paired)
    assert list(one) == pytest.approx(list(other), abs=0.1 * (one.high - one.low))


def test_the_sequence_is_robbins_mixture():
    """At its ends the martingale of the mixture stands at exactly 1 / alpha."""
    alpha, planned = 0.05, 400
    tuned = (-2 * math.log(alpha) + math.log(1 - 2 * math.log(alpha))) / planned
    for n in (30, 100, 400, 3000):
        total = n * float(mixture_half_width(n, 1.0, alpha=alpha, n_planned=planned))
        martingale = math.exp(tuned * total**2 / (2 * (n * tuned + 1))) / math.sqrt(n * tuned + 1)
        assert martingale == pytest.approx(1 / alpha, rel=1e-9)


def test_the_sequence_is_tightest_where_it_was_planned_to_be():
    """Among sequences tuned to other numbers."""
    widths = {planned: float(mixture_half_width(200, 1.0, n_planned=planned)) for planned in (50, 100, 200, 400, 800)}
    assert min(widths, key=widths.get) == 200
    assert 1.4 < widths[200] / (1.96 / math.sqrt(200)) < 1.7  # what looking at any time costs


def test_every_look_uses_only_what_had_come_by_then():
    """Running sums agree with the textbook at each look, far from zero too."""
    values = 1e6 + np.random.default_rng(8).normal(size=120)
    found = asymptotic_confidence_sequence(values, n_planned=100, first_look=40, every=20)
    assert found.counts.tolist() == [40, 60, 80, 100, 120]
    for count in found.counts:
        mean, low, high = found.at(int(count))
        seen = values[:count]
        half = float(mixture_half_width(count, seen.std(ddof=1), n_planned=100))
        assert (mean, low, high) == pytest.approx((seen.mean(), seen.mean() - half, seen.mean() + half), abs=1e-7)
    with pytest.raises(UsageError, match="no look"):
        found.at(41)


def test_a_sequence_waits_for_its_first_look():
    """And refuses to be looked at earlier than its law allows."""
    assert isinstance(asymptotic_confidence_sequence(np.zeros(29)), Unavailable)
    assert isinstance(bounded_confidence_sequence([], lowest=-1, highest=1), Unavailable)
    for options in ({"first_look": 10}, {"every": 0}, {"alpha": 0}, {"n_planned": 0}):
        with pytest.raises(UsageError):
            asymptotic_confidence_sequence(np.arange(50.0), **options)
    with pytest.raises(UsageError, match="finite"):
        asymptotic_confidence_sequence([np.nan] * 40)
    with pytest.raises(UsageError, match="outside"):
        bounded_confidence_sequence([0.5, 1.5], lowest=-1, highest=1)
    with pytest.raises(UsageError, match="rising"):
        bounded_confidence_sequence([0.5], lowest=1, highest=-1)


def test_a_clear_difference_ends_both_sequences_early():
    """The bounded one later, because it assumes less."""
    values = np.random.default_rng(9).choice([0.0, 1.0], 500, p=[0.6, 0.4])
    asymptotic = asymptotic_confidence_sequence(values)
    bounded = bounded_confidence_sequence(values, lowest=-1, highest=1)
    assert asymptotic.first_exclusion() == 30
    assert 10 < bounded.first_exclusion() < 200
    assert bounded.low[-1] < values.mean() < bounded.high[-1]


def test_a_weight_never_sees_the_value_it_weighs():
    """Spelled out step by step (equation by equation), for values between 0 and 1."""
    values, alpha = np.random.default_rng(10).random(25), 0.05
    mean, variance, spent, total, weighted = 0.5, 0.25, 0.0, 0.0, 0.0
    seen, squares = 0.0, 0.0
    found = bounded_confidence_sequence(values, lowest=0, highest=1, alpha=alpha)
    for t, x in enumerate(values, 1):
        weight = min(math.sqrt(2 * math.log(2 / alpha) / (variance * t * math.log(1 + t))), 0.5)
        spent += 4 * (x - mean) ** 2 * (-math.log(1 - weight) - weight) / 4
        total, weighted = total + weight, weighted + weight * x
        half = (math.log(2 / alpha) + spent) / total
        ends = max(weighted / total - half, 0.0), min(weighted / total + half, 1.0)
        assert found.at(t)[1:] == pytest.approx(ends, abs=1e-12)
        seen += x
        mean = (0.5 + seen) / (t + 1)
        squares += (x - mean) ** 2
        variance = (0.25 + squares) / (t + 1)


def test_a_credible_interval_is_the_posterior_of_the_table():
    """Against the law of a Dirichlet, whose moments are known."""
    table = mcnemar_test([1] * 10 + [0] * 10, [1] * 8 + [0] * 2 + [1] * 6 + [0] * 4)
    found = credible_difference(table)
    total, one, other = 24, 7, 3
    spread = (one + other - (one - other) ** 2 / total) / (total * (total + 1))
    assert found.mean == pytest.approx((one - other) / total)
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(math.sqrt(spread), rel=0.03)
    assert 0.85 < found.p_b_better < 0.95
    with pytest.raises(UsageError):
        credible_difference(table, prior=0)


def test_percentiles_of_few_requests_are_not_compared():
    """The 95th needs 72."""
    times = np.random.default_rng(11).lognormal(size=71)
    assert "72" in percentile_difference(times, times, 0.95).reason
    found = percentile_difference([*times, 1.0], [2 * t for t in (*times, 1.0)], 0.95)
    assert found.low < found.estimate < found.high
    assert found.estimate == pytest.approx(np.quantile([*times, 1.0], 0.95))
    with pytest.raises(UsageError, match="positive"):
        percentile_difference([0.0, 1], [1, 1], 0.5)
    with pytest.raises(UsageError, match="pairs"):
        percentile_difference([1.0], [1, 1], 0.5)
    with pytest.raises(UsageError, match="blocks"):
        percentile_difference(times, times, 0.5, block=99)


def test_blocks_keep_neighbours_together():
    """Within a block, each index follows the one before; none lies outside."""
    drawn = moving_blocks(np.random.default_rng(0), 103, 5, 50)
    assert drawn.shape == (50, 103)
    assert drawn.min() >= 0
    assert drawn.max() < 103
    steps = np.diff(drawn, axis=1)
    inside = np.arange(1, 103) % 5 != 0
    assert (steps[:, inside] == 1).all()


def test_blocks_tell_of_slow_drifts_that_single_requests_hide():
    """Times that wander: an interval by blocks is wider than one that takes them for independent."""
    rng = np.random.default_rng(12)
    drift = np.cumsum(rng.normal(0, 0.1, 400))
    a, b = np.exp(drift), np.exp(drift + 0.5 * np.sin(np.arange(400) / 40))
    by_block = percentile_difference(a, b, 0.5, block=40)
    single = percentile_difference(a, b, 0.5, block=1)
    assert by_block.high - by_block.low > 1.5 * (single.high - single.low)


def test_failed_answers_make_accepted_ones_dearer():
    """Half the acceptance at the same price is twice the cost."""
    found = cost_per_accepted([1.0] * 40, [1.0] * 40, [1] * 40, [1, 0] * 20)
    assert (found.per_accepted_a_usd, found.per_accepted_b_usd) == (1.0, 2.0)
    assert found.ratio.low < found.ratio.estimate == 2.0 < found.ratio.high


def test_an_unknown_price_is_not_a_free_answer():
    """No ratio, with the reason."""
    assert "no known price" in cost_per_accepted([1.0, None], [1.0, 1.0], [1, 1], [1, 1]).reason
    assert "no accepted" in cost_per_accepted([1.0, 1], [1.0, 1], [1, 1], [0, 0]).reason
    with pytest.raises(UsageError, match="negative"):
        cost_per_accepted([-1.0], [1.0], [1], [1])
    with pytest.raises(UsageError, match="same items"):
        cost_per_accepted([1.0], [1.0], [1, 1], [1])

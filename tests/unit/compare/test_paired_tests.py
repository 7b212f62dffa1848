"""Permutation, McNemar, sign, signed-rank: exact where they say so, and in agreement with other programs.

Seed features: S0.17
"""

import itertools

import numpy as np
import pytest

from tapwb.compare.binomial import fair_coin_mid_p, fair_coin_p
from tapwb.compare.mcnemar import mcnemar_test
from tapwb.compare.ordinal import hodges_lehmann, signed_rank_test
from tapwb.compare.paired import paired_differences
from tapwb.compare.permutation import sign_flip_test
from tapwb.compare.preference import preference_test
from tapwb.core.errors import UsageError
from tapwb.core.reading import Unavailable


def of(values, clusters=None):
    """Differences against zeros."""
    return paired_differences(np.zeros(len(values)), values, clusters)


def test_the_exact_permutation_test_counts_every_sign_pattern():
    """Spelled out for nine clusters of unequal size."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(9), rng.integers(1, 5, 9))
    values = rng.normal(0.4, 1, len(labels))
    sums = np.bincount(labels, values)
    observed = abs(sums.sum())
    patterns = [abs(np.dot(signs, sums)) >= observed - 1e-12 for signs in itertools.product((1, -1), repeat=9)]
    found = sign_flip_test(of(values, labels))
    assert found.p_value == pytest.approx(np.mean(patterns), abs=1e-12)
    assert (found.is_exact, found.n_patterns, found.n_clusters) == (True, 512, 9)


def test_the_permutation_test_agrees_with_scipy():
    """Its exact paired test of means."""
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(1).normal(0.3, 1, 12)
    other = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    assert sign_flip_test(of(values)).p_value == pytest.approx(other.pvalue, abs=1e-9)


def test_drawn_and_exact_p_values_are_near_each_other():
    """16 clusters are tried, 17 are drawn; the seventeenth difference is nothing."""
    values = np.random.default_rng(2).normal(0.4, 1, 16)
    exact, drawn = sign_flip_test(of(values)), sign_flip_test(of([*values, 0.0]))
    assert (exact.is_exact, drawn.is_exact) == (True, False)
    assert drawn.p_value == pytest.approx(exact.p_value, abs=0.004)


@pytest.mark.parametrize("n", [14, 40])
def test_neither_order_nor_name_changes_a_permutation_p_value(n):
    """Drawn patterns included, and with many ties."""
    rng = np.random.default_rng(3)
    values, labels = rng.integers(-2, 4, 3 * n).astype(float), np.repeat(np.arange(n), 3)
    one = sign_flip_test(of(values, labels), n_draws=999).p_value
    shuffle = rng.permutation(3 * n)
    assert sign_flip_test(of(values[shuffle], labels[shuffle]), n_draws=999).p_value == one
    assert sign_flip_test(of(-values, labels), n_draws=999).p_value == one
    assert sign_flip_test(of(np.repeat(values, 4), np.repeat(labels, 4)), n_draws=999).p_value == one


def test_too_few_clusters_say_that_they_cannot_decide():
    """Five give 1/16 at best."""
    five, six = sign_flip_test(of([1.0, 2, 3, 4, 5])), sign_flip_test(of([1.0, 2, 3, 4, 5, 6]))
    assert five.p_value == five.smallest_p == 1 / 16
    assert (five.can_reject_at(0.05), six.can_reject_at(0.05)) == (False, True)


def test_mcnemar_agrees_with_statsmodels_and_scipy():
    """Exact p-values over small and large, even and uneven counts; mid-p by its definition."""
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    stats = pytest.importorskip("scipy.stats")
    for b, c in [(0, 0), (0, 1), (3, 3), (10, 2), (2, 10), (0, 25), (140, 101), (2000, 2100)]:
        other = tables.mcnemar([[5, b], [c, 7]], exact=True).pvalue
        assert fair_coin_p(b, c) == pytest.approx(min(other, 1.0), rel=1e-9)
        law = stats.binom(b + c, 0.5)
        mid = min(1.0, 2 * law.cdf(min(b, c)) - law.pmf(min(b, c)))
        assert fair_coin_mid_p(b, c) == pytest.approx(mid, rel=1e-9)


def test_mcnemar_counts_the_four_outcomes():
    """Only the two kinds of disagreement enter the effect."""
    found = mcnemar_test([1, 1, 0, 0, 0, 1], [1, 0, 1, 1, 0, 1])
    assert (found.both_right, found.only_a_right, found.only_b_right, found.both_wrong) == (2, 1, 2, 1)
    assert found.effect == pytest.approx(1 / 6)
    assert found.n == 6


def test_fewer_than_six_disagreements_cannot_be_significant():
    """However they fall."""
    five, six = mcnemar_test([0] * 50, [1] * 5 + [0] * 45), mcnemar_test([0] * 50, [1] * 6 + [0] * 44)
    assert five.p_exact == five.smallest_p > 0.05
    assert not five.can_reject_at(0.05)
    assert six.p_exact == six.smallest_p < 0.05


@pytest.mark.parametrize(("a", "b"), [([1, 2], [0, 1]), ([1], [0, 1]), ([], []), ([0.5], [1])])
def test_answers_that_are_not_right_or_wrong_are_refused(a, b):
    """And so are answers without a partner."""
    with pytest.raises(UsageError):
        mcnemar_test(a, b)
    with pytest.raises(UsageError):
        fair_coin_p(-1, 3)


def test_signed_ranks_agree_with_scipy_where_grades_tie():
    """Pratt's zeros, normal approximation without correction."""
    stats = pytest.importorskip("scipy.stats")
    for seed in range(5):
        values = np.random.default_rng(seed).integers(-3, 5, 40).astype(float)
        other = stats.wilcoxon(values, zero_method="pratt", correction=False, method="asymptotic")
        assert signed_rank_test(of(values), n_draws=99).p_normal == pytest.approx(other.pvalue, abs=1e-9)


def test_signed_ranks_are_exact_on_few_pairs():
    """As scipy's exact test without ties and zeros."""
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(4).normal(0.5, 1, 13)
    assert signed_rank_test(of(values)).p_value == pytest.approx(
        stats.wilcoxon(values, method="exact").pvalue, abs=1e-9
    )


def test_the_shift_is_the_median_of_all_pairwise_averages():
    """Formed one by one."""
    for seed, n in ((0, 7), (1, 8), (2, 41)):
        values = np.random.default_rng(seed).integers(-2, 4, n).astype(float)
        walsh = [(values[i] + values[j]) / 2 for i in range(n) for j in range(i, n)]
        assert hodges_lehmann(of(values)) == pytest.approx(np.median(walsh), abs=1e-12)


def test_grades_without_a_difference_have_no_normal_p_value():
    """And an exact one of 1."""
    found = signed_rank_test(of([0.0, 0, 0]))
    assert found.p_value == 1.0
    assert isinstance(found.p_normal, Unavailable)
    with pytest.raises(UsageError, match="not grades"):
        hodges_lehmann(of(np.arange(3001.0)))


def test_a_judge_that_always_likes_the_first_answer_prefers_nobody():
    """All ties, no consistency, and the pull of position is plain."""
    found = preference_test(["first"] * 20, ["first"] * 20)
    assert (found.wins_a, found.wins_b, found.ties) == (0, 0, 20)
    assert (found.win_rate_b, found.p_value, found.swap_consistency) == (0.5, 1.0, 0.0)
    assert (found.first_wins, found.second_wins) == (20, 0)
    assert found.p_position < 1e-5


def test_wins_count_in_both_orders_and_ties_stay_out_of_the_test():
    """B wins three, one of them with a tie in the other order; A wins one; one contradiction; one tie."""
    a_first = ["second", "second", "tie", "first", "second", "tie"]
    b_first = ["first", "first", "first", "second", "second", "tie"]
    found = preference_test(a_first, b_first)
    assert (found.wins_b, found.wins_a, found.ties) == (3, 1, 2)
    assert found.win_rate_b == pytest.approx(4 / 6)
    assert found.p_value == pytest.approx(fair_coin_p(3, 1))
    assert (found.first_wins, found.second_wins) == (0, 1)
    assert found.swap_consistency == pytest.approx(4 / 6)
    swapped = preference_test(b_first, a_first)
    assert (swapped.wins_b, swapped.wins_a, swapped.p_value) == (1, 3, found.p_value)


def test_verdicts_that_are_no_verdicts_are_refused():
    """With the words that are."""
    with pytest.raises(UsageError, match="first, second, tie"):
        preference_test(["left"], ["first"])
    with pytest.raises(UsageError, match="both orders"):
        preference_test(["first"], [])

"""Ten thousand experiments without a difference: how often each test errs and each interval misses.

The functions themselves are called, not copies of their formulas. 10,000 runs have a standard error of 0.22 % at 5 %;
the allowed band is 4.4 to 5.6 % (discrete tests may err less). The bootstrap takes most of the time: its 10,000 runs
are marked ``minutes``, and 2,000 runs with a band of three and a half of their standard errors run always.

Seed features: S0.17
"""

import functools
import math

import numpy as np
import pytest

from tapwb.compare.analysis import Scores, compare_scores
from tapwb.compare.bounded_sequence import bounded_confidence_sequence
from tapwb.compare.cluster_bootstrap import bootstrap_t_interval, cluster_t_interval
from tapwb.compare.confidence_sequence import asymptotic_confidence_sequence
from tapwb.compare.equivalence import margin_test
from tapwb.compare.holm import holm_adjusted
from tapwb.compare.items import PromptItem, fingerprint
from tapwb.compare.mcnemar import mcnemar_test
from tapwb.compare.ordinal import signed_rank_test
from tapwb.compare.paired import PairedDifferences
from tapwb.compare.permutation import sign_flip_test
from tapwb.compare.plan import ComparisonPlan, MetricSpec, SystemSpec
from tapwb.compare.score_interval import tango_interval, wilson_interval

MANY, FEW = 10_000, 2_000
ALPHA = 0.05
#: Clusters of 1 to 10 items.
SIZES = np.tile(np.arange(1, 11), 4)
UNEQUAL = np.repeat(np.arange(len(SIZES)), SIZES)
EQUAL = np.repeat(np.arange(30), 5)
TERNARY = ([-1.0, 0.0, 1.0], [0.15, 0.7, 0.15])


def of(values, labels=None):
    """Differences, by cluster."""
    values = np.asarray(values, np.float64)
    return PairedDifferences(values, np.arange(len(values)) if labels is None else labels)


def in_clusters(rng, labels):
    """Half of the variance lies between clusters."""
    return of(rng.normal(size=labels.max() + 1)[labels] + rng.normal(size=len(labels)), labels)


DRAWS = {
    "normal": lambda rng: of(rng.normal(size=50)),
    "twenty": lambda rng: of(rng.normal(size=20)),
    "skewed": lambda rng: of(rng.exponential(size=50) - 1),
    "heavy": lambda rng: of(rng.standard_t(3, 50)),
    "right-or-wrong": lambda rng: of(rng.choice(TERNARY[0], 100, p=TERNARY[1])),
    "clusters": lambda rng: in_clusters(rng, EQUAL),
    "unequal clusters": lambda rng: in_clusters(rng, UNEQUAL),
}


def share(experiment, runs, seed=0):
    """Share of experiments that came out true."""
    rng = np.random.default_rng(seed)
    return sum(bool(experiment(rng, run)) for run in range(runs)) / runs


def covers(interval, truth=0.0):
    """Whether an interval holds the truth; one that could not be had does not."""
    return bool(interval) and interval.low <= truth <= interval.high


def band(runs, rate=ALPHA):
    """The allowed band: 4.4 to 5.6 % of 10,000 runs, wider where there are fewer."""
    half = 0.006 if runs == MANY else 3.5 * math.sqrt(rate * (1 - rate) / runs)
    return rate - half, rate + half


@pytest.mark.parametrize("draw", ["normal", "heavy", "clusters", "unequal clusters"])
def test_the_permutation_test_errs_in_five_of_a_hundred(draw):
    """Drawn patterns; 199 of them put the level at exactly 5 %."""
    rate = share(lambda rng, run: sign_flip_test(DRAWS[draw](rng), n_draws=199, seed=run).p_value <= ALPHA, MANY)
    assert band(MANY)[0] <= rate <= band(MANY)[1]


def test_the_exact_permutation_test_errs_as_often_as_its_patterns_allow():
    """Ten clusters: 25 of 512 patterns, that is 4.88 %."""
    rate = share(lambda rng, run: sign_flip_test(of(rng.normal(size=10))).p_value <= ALPHA, MANY, seed=1)
    assert rate == pytest.approx(25 / 512, abs=0.006)
    assert rate <= 0.056


def test_mcnemar_errs_less_than_its_level_and_mid_p_about_at_it():
    """Eighty items that are hard or easy for both."""

    def outcome(rng):
        chance = np.where(rng.random(80) < 0.5, 0.35, 0.8)
        found = mcnemar_test(rng.random(80) < chance, rng.random(80) < chance)
        return found.p_exact <= ALPHA, found.p_mid <= ALPHA

    rng = np.random.default_rng(2)
    exact, mid = np.mean([outcome(rng) for _ in range(MANY)], axis=0)
    assert 0.01 < exact <= ALPHA
    assert exact < mid <= 0.056


def test_signed_ranks_err_at_most_at_their_level():
    """Thirty grades with many ties and zeros."""
    rate = share(
        lambda rng, run: signed_rank_test(of(rng.integers(-2, 3, 30)), n_draws=199, seed=run).p_value <= ALPHA, MANY
    )
    assert 0.03 < rate <= 0.056


@pytest.mark.parametrize("draw", ["normal", "unequal clusters"])
def test_students_interval_with_the_cluster_robust_error_covers(draw):
    """Forty to fifty clusters."""
    rate = share(lambda rng, run: covers(cluster_t_interval(DRAWS[draw](rng))), MANY, seed=3)
    assert 0.944 <= rate <= 0.956


def test_ignoring_clusters_is_what_goes_wrong():
    """The same data, each item for itself: wrong in more than one of five experiments."""
    rate = share(lambda rng, run: not covers(cluster_t_interval(of(in_clusters(rng, EQUAL).values))), FEW)
    assert rate > 0.2


BOOTSTRAPPED = ["normal", "twenty", "right-or-wrong", "unequal clusters"]


def coverage_of_bootstrap_t(draw, runs):
    """999 resamples each."""
    return share(
        lambda rng, run: covers(bootstrap_t_interval(DRAWS[draw](rng), n_resamples=999, seed=run)), runs, seed=4
    )


@pytest.mark.parametrize("draw", BOOTSTRAPPED)
def test_bootstrap_t_covers_in_two_thousand_runs(draw):
    """The quick sibling of the next test."""
    low, high = band(FEW)
    assert 1 - high <= coverage_of_bootstrap_t(draw, FEW) <= 1 - low


@pytest.mark.minutes
@pytest.mark.parametrize("draw", [*BOOTSTRAPPED, "skewed", "clusters"])
def test_bootstrap_t_covers_in_ten_thousand_runs(draw):
    """94.4 to 95.6 %, skewed data and unequal clusters included."""
    assert 0.944 <= coverage_of_bootstrap_t(draw, MANY) <= 0.956


@pytest.mark.minutes
def test_tails_without_a_fourth_moment_cost_bootstrap_t_two_points():
    """Student's t with three degrees of freedom, fifty items: a limit of the method that users are told."""
    assert 0.92 <= coverage_of_bootstrap_t("heavy", MANY) <= 0.956


@pytest.mark.parametrize(("only_a", "only_b", "n"), [(0.1, 0.2, 60), (0.1, 0.15, 200), (0.12, 0.12, 200)])
def test_tangos_interval_covers(only_a, only_b, n):
    """Few and many disagreements, with and without a difference."""
    interval = functools.cache(lambda a, b: tango_interval(a, b, n))
    counts = np.random.default_rng(5).multinomial(n, [only_a, only_b, 1 - only_a - only_b], MANY)
    hits = 0
    for a, b, _ in counts.tolist():
        low, high = interval(a, b)
        hits += low <= only_b - only_a <= high
    assert 0.944 <= hits / MANY <= 0.956


def test_wilsons_interval_covers_on_average_over_shares():
    """At one share it swings with n, as any interval of whole counts must; over shares it holds."""
    interval = functools.cache(lambda right: wilson_interval(right, 100))
    rng = np.random.default_rng(6)
    shares = rng.uniform(0.05, 0.95, MANY)
    ends = [interval(int(right)) for right in rng.binomial(100, shares)]
    hits = sum(low <= p <= high for (low, high), p in zip(ends, shares, strict=True))
    assert 0.944 <= hits / MANY <= 0.956


@pytest.mark.parametrize(
    ("name", "draw", "every"),
    [
        ("normal", lambda rng: rng.normal(size=500), 10),
        ("right-or-wrong", lambda rng: rng.choice(TERNARY[0], 500, p=TERNARY[1]), 10),
        ("heavy, every item", lambda rng: rng.standard_t(3, 500), 1),
        ("skewed, every item", lambda rng: rng.exponential(size=500) - 1, 1),
    ],
)
def test_peeking_at_the_confidence_sequence_errs_in_at_most_five_of_a_hundred(name, draw, every):
    """Looks from 30 to 500, stopping at the first that excludes no difference."""
    rate = share(
        lambda rng, run: asymptotic_confidence_sequence(draw(rng), every=every).first_exclusion(), MANY, seed=7
    )
    assert rate <= ALPHA


def test_peeking_at_an_ordinary_interval_errs_in_a_quarter():
    """The same looks with the textbook interval: the simulation can tell the two apart."""
    values = np.random.default_rng(8).normal(size=(FEW, 500))
    counts = np.arange(30, 501, 10)
    totals, squares = values.cumsum(1)[:, counts - 1], (values**2).cumsum(1)[:, counts - 1]
    errors = np.sqrt((squares - totals**2 / counts) / (counts - 1) / counts)
    assert (np.abs(totals / counts) > 1.96 * errors).any(axis=1).mean() > 0.25


def test_the_bounded_sequence_never_errs_too_often_from_the_first_item_on():
    """Any law within the bounds; a rare large difference is the hardest."""
    for seed, law in enumerate((TERNARY, ([-1.0, 0.02], [0.02 / 1.02, 1 / 1.02]))):
        rate = share(
            lambda rng, run, law=law: bounded_confidence_sequence(
                rng.choice(law[0], 300, p=law[1]), lowest=-1, highest=1
            ).first_exclusion(),
            FEW,
            seed,
        )
        assert rate <= ALPHA


def test_equivalence_is_claimed_falsely_in_five_of_a_hundred():
    """Truly different by exactly the margin, the worst case; non-inferiority at half of that."""
    rates = np.zeros(2)
    rng = np.random.default_rng(9)
    for _ in range(MANY):
        found = margin_test(of(rng.normal(-1, 1, 40)), margin=1.0, unit="point")
        rates += found.is_equivalent(), found.is_non_inferior()
    equivalent, not_worse = rates / MANY
    assert band(MANY)[0] <= equivalent <= band(MANY)[1]
    assert not_worse == pytest.approx(0.025, abs=0.0055)


def test_holm_keeps_the_family_at_its_level():
    """Six metrics without a difference, independent and in step: any claim in at most 5 %."""
    rng = np.random.default_rng(10)
    apart = rng.random((MANY, 6))
    together = np.repeat(rng.random((MANY, 1)), 6, axis=1)
    for p_values, least in ((apart, 0.044), (together, 0.0)):
        rate = np.mean([holm_adjusted(row).min() <= ALPHA for row in p_values])
        assert least <= rate <= 0.056


def verdicts_of_a_against_a(kind, runs):
    """Share of experiments in which the same system is called better or worse than itself."""
    n = 60
    items = fingerprint("p", [PromptItem(str(i), "?") for i in range(n)])
    metric = MetricSpec("score", kind)
    plan = ComparisonPlan("t", SystemSpec("A", "m"), SystemSpec("B", "m"), items, (metric,), "score")

    def is_claimed(a, b):
        found = compare_scores(plan, {"score": Scores(a, b)}, n_resamples=199, n_draws=199)
        return found.verdict.kind in ("better", "worse")

    @functools.cache
    def is_claimed_of(counts):
        a, b = (np.repeat(right, counts) for right in ([1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0]))
        return is_claimed(a, b)

    def claims(rng, run):
        hard = rng.random(n)
        if kind == "continuous":
            return is_claimed(*(hard + rng.normal(size=(2, n))))
        right = rng.random((2, n)) > hard
        return is_claimed_of(tuple(np.bincount(2 * ~right[0] + ~right[1], minlength=4).tolist()))

    return share(claims, runs, seed=11)


@pytest.mark.parametrize("kind", ["binary", "continuous"])
def test_a_system_is_rarely_called_better_than_itself(kind):
    """Through the whole pipeline: open in at least 95 %, within the noise of 500 runs."""
    assert verdicts_of_a_against_a(kind, 500) <= band(500)[1]


@pytest.mark.minutes
@pytest.mark.parametrize("kind", ["binary", "continuous"])
def test_a_system_is_rarely_called_better_than_itself_in_ten_thousand_runs(kind):
    """Open in at least 94.4 %."""
    assert verdicts_of_a_against_a(kind, MANY) <= 0.056

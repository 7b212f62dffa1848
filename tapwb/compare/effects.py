"""The test and the interval that belong to each kind of score; times are compared on a logarithmic scale.

====================  ==============================================  =================================
score                 test                                            interval
====================  ==============================================  =================================
right or wrong        McNemar, exact; with clusters or repeats as     Tango's score interval
                      continuous
grade                 signed ranks (Pratt), signs flipped             bootstrap-t of the mean difference
continuous            signs of whole clusters flipped                 bootstrap-t over clusters
preference            sign test of wins and losses; with clusters     bootstrap-t over clusters
                      signs flipped
time                  signs of log ratios flipped                     bootstrap-t of the log ratio
any, sequential       none: a p-value does not survive looking        confidence sequence
====================  ==============================================  =================================
"""

import math
from dataclasses import dataclass

import numpy as np

from tapwb.compare.bayes_paired import FEW_ITEMS, credible_difference
from tapwb.compare.binomial import fair_coin_p
from tapwb.compare.cluster_bootstrap import bootstrap_t_interval, cluster_t_interval
from tapwb.compare.comparison import Effect
from tapwb.compare.confidence_sequence import ConfidenceSequence, asymptotic_confidence_sequence
from tapwb.compare.mcnemar import McNemar, mcnemar_test
from tapwb.compare.ordinal import signed_rank_test
from tapwb.compare.paired import FloatArray, PairedDifferences
from tapwb.compare.permutation import sign_flip_test
from tapwb.compare.plan import MetricSpec
from tapwb.compare.score_interval import tango_interval
from tapwb.core.reading import Unavailable


@dataclass(frozen=True, slots=True)
class Budget:
    """How sure intervals shall be, and how much work goes into them.

    Attributes:
        alpha: One minus the coverage of the outer interval.
        n_resamples: Bootstrap resamples.
        n_draws: Sign patterns of a permutation test.
        seed: Of both.
    """

    alpha: float
    n_resamples: int
    n_draws: int
    seed: int


@dataclass(frozen=True, slots=True)
class Tested:
    """An effect with the test that goes with it.

    Attributes:
        effect: With its intervals, or why there is none.
        p_value: Of the test, or why there is none.
        test: Its name.
        notes: Sentences a reader must know.
    """

    effect: Effect | Unavailable
    p_value: float | Unavailable
    test: str
    notes: tuple[str, ...] = ()


def fixed_effect(metric: MetricSpec, paired: PairedDifferences, binary: McNemar | None, budget: Budget) -> Tested:
    """Effect of a comparison that was looked at once.

    Args:
        metric: As planned.
        paired: Differences (of logarithms for times).
        binary: Counts of right and wrong, where every item is its own cluster and was answered once.
        budget: Of intervals and tests.

    Raises:
        UsageError: If grades have too many different values.
    """
    if binary is not None:
        return _binary(metric, binary, budget)
    p_value, test, notes = _test(metric, paired, budget)
    return Tested(_bootstrapped(metric, paired, budget), p_value, test, (*notes, *_cross_check(metric, paired, budget)))


def sequential_effect(
    metric: MetricSpec, paired: PairedDifferences, budget: Budget, *, n_planned: int, first_look: int
) -> Tested:
    """Effect of a comparison that was looked at while it ran.

    Args:
        metric: As planned.
        paired: Differences (of logarithms for times).
        budget: Of intervals.
        n_planned: Clusters that were planned.
        first_look: Clusters at the first look.
    """
    no_p = Unavailable("a p-value does not survive looking while the comparison runs; the interval does")
    means = paired.cluster_means

    def ends(alpha: float) -> ConfidenceSequence | Unavailable:
        return asymptotic_confidence_sequence(means, alpha=alpha, n_planned=n_planned, first_look=first_look)

    outer, inner = ends(budget.alpha), ends(2 * budget.alpha)
    name = "confidence sequence"
    if isinstance(outer, Unavailable):
        return Tested(outer, no_p, name)
    if isinstance(inner, Unavailable):
        return Tested(inner, no_p, name)
    if paired.is_constant:
        return Tested(
            Unavailable("every difference is the same, so nothing is known about how differences vary"), no_p, name
        )
    mean, low, high = outer.at(len(means))
    _, low_inner, high_inner = inner.at(len(means))
    effect = _on_scale(metric, (mean, low, high, low_inner, high_inner), "asymptotic confidence sequence")
    notes = () if paired.n == paired.n_clusters else ("every cluster counts once, whatever its size",)
    return Tested(effect, no_p, name, notes)


def binary_table(a: FloatArray, b: FloatArray, paired: PairedDifferences) -> McNemar | None:
    """Counts of right and wrong if items are independent and answered once; otherwise ``None``."""
    if a.ndim != 1 or b.ndim != 1 or paired.n != paired.n_clusters:
        return None
    whole = np.isfinite(a) & np.isfinite(b)
    return mcnemar_test(a[whole], b[whole])


def _binary(metric: MetricSpec, table: McNemar, budget: Budget) -> Tested:
    counts = (table.only_a_right, table.only_b_right, table.n)
    notes = [f"{table.n_discordant} items disagree; mid-p {table.p_mid:.3g}"]
    if not table.can_reject_at(budget.alpha):
        notes.append(f"{table.n_discordant} disagreements cannot reach p <= {budget.alpha:g}, however they fall")
    if table.n < FEW_ITEMS:
        belief = credible_difference(table, confidence=1 - budget.alpha, seed=budget.seed)
        notes.append(f"{belief.confidence:.3g} credible interval {belief.low:+.4f} to {belief.high:+.4f}")
    if not table.n_discordant:
        return Tested(Unavailable("no item was judged differently"), table.p_exact, "McNemar exact", tuple(notes))
    ends = (*tango_interval(*counts, 1 - budget.alpha), *tango_interval(*counts, 1 - 2 * budget.alpha))
    effect = Effect(table.effect, *ends, 0.0, metric.unit, "Tango score")
    return Tested(effect, table.p_exact, "McNemar exact", tuple(notes))


def _test(metric: MetricSpec, paired: PairedDifferences, budget: Budget) -> tuple[float, str, tuple[str, ...]]:
    if metric.kind == "ordinal":
        ranked = signed_rank_test(paired, n_draws=budget.n_draws, seed=budget.seed)
        return ranked.p_value, "signed ranks (Pratt)", (f"Hodges-Lehmann shift {ranked.shift:+g} grades",)
    if metric.kind == "preference" and paired.n == paired.n_clusters:
        wins, losses = int((paired.values > 0).sum()), int((paired.values < 0).sum())
        rate = (paired.mean + 1) / 2
        return fair_coin_p(wins, losses), "sign test", (f"B won {wins}, A won {losses}, win rate of B {rate:.3f}",)
    flipped = sign_flip_test(paired, n_draws=budget.n_draws, seed=budget.seed)
    notes = []
    if not flipped.can_reject_at(budget.alpha):
        notes.append(f"{flipped.n_clusters} clusters cannot reach p <= {budget.alpha:g}, however they fall")
    return flipped.p_value, "sign-flip permutation" + (", exact" if flipped.is_exact else ""), tuple(notes)


def _bootstrapped(metric: MetricSpec, paired: PairedDifferences, budget: Budget) -> Effect | Unavailable:
    found = [
        bootstrap_t_interval(paired, confidence=1 - alpha, n_resamples=budget.n_resamples, seed=budget.seed)
        for alpha in (budget.alpha, 2 * budget.alpha)
    ]
    outer, inner = found
    if isinstance(outer, Unavailable):
        return outer
    if isinstance(inner, Unavailable):
        return inner
    return _on_scale(metric, (outer.estimate, outer.low, outer.high, inner.low, inner.high), "cluster bootstrap-t")


def _cross_check(metric: MetricSpec, paired: PairedDifferences, budget: Budget) -> tuple[str, ...]:
    interval = cluster_t_interval(paired, confidence=1 - budget.alpha)
    if isinstance(interval, Unavailable) or paired.is_constant:
        return ()
    scale = math.exp if metric.is_ratio else float
    return (f"cross-check: CR1 t interval {scale(interval.low):.4g} to {scale(interval.high):.4g}",)


def _on_scale(metric: MetricSpec, numbers: tuple[float, float, float, float, float], method: str) -> Effect:
    if metric.is_ratio:
        numbers = tuple(math.exp(number) for number in numbers)  # type: ignore[assignment]
    return Effect(*numbers, 1.0 if metric.is_ratio else 0.0, "ratio" if metric.is_ratio else metric.unit, method)

"""From a registered plan and the scores of both systems to a comparison with verdicts.

With several confirmatory metrics the p-values go through Holm and the intervals are widened to alpha over their number
(Bonferroni), so that claims from intervals (equivalence, non-inferiority, sequential ones) keep the family's error too.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tapwb.compare.cluster_bootstrap import N_RESAMPLES
from tapwb.compare.clustering import describe_clustering
from tapwb.compare.comparison import Comparison, Effect, MetricResult
from tapwb.compare.cost import CostRatio, cost_per_accepted
from tapwb.compare.effects import Budget, Tested, binary_table, fixed_effect, sequential_effect
from tapwb.compare.false_discovery import benjamini_hochberg_adjusted
from tapwb.compare.holm import holm_adjusted
from tapwb.compare.paired import FloatArray, PairedDifferences, paired_differences
from tapwb.compare.permutation import N_DRAWS
from tapwb.compare.plan import ComparisonPlan, MetricSpec
from tapwb.compare.sample_size import detectable_difference
from tapwb.compare.verdict import judge
from tapwb.core.errors import UsageError
from tapwb.core.provenance import Provenance
from tapwb.core.reading import Unavailable


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of both systems by one metric, items in the same order.

    Attributes:
        a: Shape (item,) or (item, repeat). NaN where the answer was never scored; failures are scores. For preferences
            the credit of A: 1 won, 0.5 tie, 0 lost. For costs USD, NaN where the price is unknown.
        b: The same of B.
        accepted_a: For costs: whether A's answer was good enough, shape (item,).
        accepted_b: For costs: the same of B.
        notes: Sentences a reader must know about the scoring, such as how consistent a judge was.
    """

    a: ArrayLike
    b: ArrayLike
    accepted_a: ArrayLike | None = None
    accepted_b: ArrayLike | None = None
    notes: tuple[str, ...] = ()


def compare_scores(
    plan: ComparisonPlan,
    scores: Mapping[str, Scores],
    clusters: Sequence[str] | NDArray[np.generic] | None = None,
    *,
    n_resamples: int = N_RESAMPLES,
    n_draws: int = N_DRAWS,
    provenance: Provenance | None = None,
) -> Comparison:
    """Judge two systems as the plan says.

    Args:
        plan: As registered.
        scores: By metric name; every planned metric and no other.
        clusters: Cluster of every item, shape (item,); each its own by default.
        n_resamples: Bootstrap resamples.
        n_draws: Sign patterns of a permutation test.
        provenance: Where the scores come from.

    Raises:
        UsageError: If metrics or items are not those of the plan, or scores do not pair up.
    """
    _check_names(plan, scores)
    results = []
    for metric in plan.metrics:
        budget = Budget(plan.level_of(metric), n_resamples, n_draws, plan.seed)
        given = scores[metric.name]
        _check_items(plan, metric, np.asarray(given.a, np.float64))
        result = _result(plan, metric, given, clusters, budget)
        results.append(replace(result, notes=(*result.notes, *given.notes)))
    adjusted = _adjusted(plan, results)
    return Comparison(plan, adjusted, tuple(judge(plan, result) for result in adjusted), provenance)


def _result(
    plan: ComparisonPlan,
    metric: MetricSpec,
    given: Scores,
    clusters: Sequence[str] | NDArray[np.generic] | None,
    budget: Budget,
) -> MetricResult:
    a, b = np.asarray(given.a, np.float64), np.asarray(given.b, np.float64)
    if metric.kind == "cost":
        return _cost_result(metric, a, b, given, clusters, budget)
    if metric.kind == "latency":
        if (a <= 0).any() or (b <= 0).any():
            raise UsageError(f"a time of {metric.name!r} is not positive. Mark failed requests as missing (NaN).")
        a, b = np.log(a), np.log(b)
    paired = paired_differences(a, b, clusters)
    if plan.stopping.kind == "sequential":
        tested = sequential_effect(
            metric, paired, budget, n_planned=plan.prompts.n_clusters, first_look=plan.stopping.first_look
        )
    else:
        tested = fixed_effect(metric, paired, binary_table(a, b, paired) if metric.kind == "binary" else None, budget)
    mean_a, mean_b = _complete_means(a, b)
    if metric.is_ratio:
        mean_a, mean_b = math.exp(mean_a), math.exp(mean_b)
    return _described(plan, metric, paired, tested, (mean_a, mean_b))


def _described(
    plan: ComparisonPlan, metric: MetricSpec, paired: PairedDifferences, tested: Tested, means: tuple[float, float]
) -> MetricResult:
    shape = describe_clustering(paired)
    sd = paired.standard_error * math.sqrt(paired.n)
    known = math.isfinite(sd) and sd > 0
    no_spread = Unavailable("the spread of the differences is unknown")
    detectable: float | Unavailable = no_spread
    if known:
        detectable = detectable_difference(paired.n, sd, alpha=plan.level_of(metric), power=plan.power)
        detectable = math.expm1(detectable) if metric.is_ratio else detectable
    return MetricResult(
        metric,
        *means,
        tested.effect,
        tested.p_value,
        Unavailable("not adjusted yet"),
        tested.test,
        paired.n,
        paired.n_clusters,
        paired.n_missing,
        shape if isinstance(shape, Unavailable) else shape.icc,
        shape if isinstance(shape, Unavailable) else shape.design_effect,
        sd if known else no_spread,
        detectable,
        tested.notes,
    )


def _cost_result(
    metric: MetricSpec,
    a: FloatArray,
    b: FloatArray,
    given: Scores,
    clusters: Sequence[str] | NDArray[np.generic] | None,
    budget: Budget,
) -> MetricResult:
    """Cost per accepted answer; items of one cluster are summed, so that clusters stay whole."""
    if given.accepted_a is None or given.accepted_b is None or a.ndim != 1 or b.ndim != 1:
        raise UsageError(f"{metric.name!r} needs USD per item, and accepted_a and accepted_b beside it.")
    labels = np.arange(len(a)) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    count = len(np.unique(labels))

    def summed(values: ArrayLike) -> FloatArray:
        return np.bincount(labels, weights=np.asarray(values, np.float64), minlength=count).astype(np.float64)

    sums_a, sums_b = ([None if math.isnan(x) else float(x) for x in summed(side)] for side in (a, b))
    found, inner = (
        cost_per_accepted(
            sums_a,
            sums_b,
            summed(given.accepted_a),
            summed(given.accepted_b),
            confidence=1 - alpha,
            n_resamples=min(budget.n_resamples, 2_000),
            seed=budget.seed,
        )
        for alpha in (budget.alpha, 2 * budget.alpha)
    )
    no_p = Unavailable("costs per accepted answer are judged by their interval")
    tested = Tested(found if isinstance(found, Unavailable) else Unavailable("no inner interval"), no_p, "none")
    means = (math.nan, math.nan)
    if isinstance(found, CostRatio) and isinstance(inner, CostRatio):
        ratio = found.ratio
        ends = (ratio.low, ratio.high, inner.ratio.low, inner.ratio.high)
        tested = replace(tested, effect=Effect(ratio.estimate, *ends, 1.0, "ratio", "BCa bootstrap"))
        means = (found.per_accepted_a_usd, found.per_accepted_b_usd)
    no_spread = Unavailable("a ratio of sums has no spread per item")
    return MetricResult(
        metric, *means, tested.effect, no_p, Unavailable("not adjusted yet"), "none", len(a), count, 0,
        no_spread, no_spread, no_spread, no_spread, tested.notes,
    )  # fmt: skip


def _complete_means(a: FloatArray, b: FloatArray) -> tuple[float, float]:
    first, second = (side if side.ndim == 1 else side.mean(axis=1) for side in (a, b))
    whole = np.isfinite(first) & np.isfinite(second)
    return float(first[whole].mean()), float(second[whole].mean())


def _adjusted(plan: ComparisonPlan, results: Sequence[MetricResult]) -> tuple[MetricResult, ...]:
    """P-values after Holm within the confirmatory family and after Benjamini-Hochberg outside it."""
    out = list(results)
    for is_confirmatory in (True, False):
        places = [i for i, result in enumerate(results) if plan.is_confirmatory(result.metric) == is_confirmatory]
        p_values = [results[i].p_value for i in places]
        # A member of the family without a p-value keeps its share of alpha: it counts as one more test.
        numbers = [1.0 if isinstance(p, Unavailable) else p for p in p_values]
        if not is_confirmatory:
            places = [i for i, p in zip(places, p_values, strict=True) if not isinstance(p, Unavailable)]
            numbers = [p for p in p_values if not isinstance(p, Unavailable)]
        corrected = holm_adjusted(numbers) if is_confirmatory else benjamini_hochberg_adjusted(numbers)
        for i, p in zip(places, corrected, strict=True):
            if not isinstance(results[i].p_value, Unavailable):
                out[i] = replace(results[i], p_adjusted=float(p))
    return tuple(
        replace(result, p_adjusted=result.p_value) if isinstance(result.p_value, Unavailable) else result
        for result in out
    )


def _check_names(plan: ComparisonPlan, scores: Mapping[str, Scores]) -> None:
    planned, given = {metric.name for metric in plan.metrics}, set(scores)
    if planned != given:
        odd = sorted(planned ^ given)
        raise UsageError(f"metrics {', '.join(odd)} are planned or scored, but not both. Planned: {sorted(planned)}.")


def _check_items(plan: ComparisonPlan, metric: MetricSpec, a: FloatArray) -> None:
    n, planned = len(a), plan.prompts.n_items
    if n > planned or (n < planned and plan.stopping.kind == "fixed"):
        raise UsageError(
            f"{n} scores of {metric.name!r} for {planned} planned items. Score every item, NaN where one is missing."
        )
    if a.ndim == 2 and a.shape[1] != plan.repeats:
        raise UsageError(f"{a.shape[1]} repeats of {metric.name!r} were scored and {plan.repeats} planned.")

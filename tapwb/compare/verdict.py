"""One honest sentence: what the interval allows to say, with the effect, the interval and n in it.

A point estimate never decides. "Better" and "worse" need the interval on one side of no difference and, where there
is a test, its adjusted p-value at alpha or below. "Equivalent" and "non-inferior" need a margin that was fixed in
advance. Everything else is inconclusive and says what would be needed. The verdict is withheld for metrics that were
only explored, and where more than 2 % of the pairs are missing.
"""

import math
from dataclasses import dataclass

from tapwb.compare.comparison import Effect, MetricResult, Verdict, VerdictKind
from tapwb.compare.equivalence import is_within
from tapwb.compare.plan import MISSING_LIMIT, ComparisonPlan, MetricSpec
from tapwb.compare.sample_size import items_for_difference, items_for_equivalence, items_for_non_inferiority
from tapwb.core.reading import Unavailable


@dataclass(frozen=True, slots=True)
class _Oriented:
    """An effect turned so that 0 is no difference and positive is better, on a scale where margins are symmetric."""

    low: float
    high: float
    low_inner: float
    high_inner: float
    margin: float | None


def judge(plan: ComparisonPlan, result: MetricResult) -> Verdict:
    """What the numbers of one metric support.

    Args:
        plan: As registered.
        result: With its adjusted p-value.
    """
    a, b, name = plan.system_a.name, plan.system_b.name, result.metric.name
    if isinstance(result.effect, Unavailable):
        kind: VerdictKind = "withheld" if result.metric.kind == "cost" else "inconclusive"
        return Verdict(kind, f"No answer on {name} of {b} against {a}: {result.effect.reason} (n = {result.n}).")
    numbers = describe(plan, result, result.effect)
    if result.missing_share > MISSING_LIMIT:
        return Verdict(
            "withheld",
            f"No verdict on {name} of {b} against {a}, because {result.n_missing} of {result.n + result.n_missing} "
            f"pairs are missing, more than {MISSING_LIMIT:.0%}: {numbers}.",
        )
    if not plan.is_confirmatory(result.metric):
        return Verdict("withheld", f"{name} of {b} against {a} was only explored and supports no verdict: {numbers}.")
    oriented = _oriented(result.metric, result.effect)
    kind = _kind(plan, result, oriented)
    if kind == "inconclusive":
        return _inconclusive(plan, result, oriented, numbers)
    return Verdict(kind, f"{b} {_claim(plan, result, oriented, kind)} {a} in {name}: {numbers}.")


def describe(plan: ComparisonPlan, result: MetricResult, effect: Effect) -> str:
    """Effect, interval, n and p in brackets, as they stand in a sentence."""
    alpha = plan.level_of(result.metric)
    unit = "" if effect.unit in ("1", "ratio") else f" {effect.unit}"
    estimate, low, high = _rounded(effect)
    if effect.null == 1.0:
        shown = f"{estimate} times ({100 * (1 - alpha):.4g} % interval {low} to {high}"
    else:
        shown = f"{estimate}{unit} ({100 * (1 - alpha):.4g} % interval {low} to {high}{unit}"
    groups = f" in {result.n_clusters} clusters" if result.n_clusters != result.n else ""
    p = "" if isinstance(result.p_adjusted, Unavailable) else f", adjusted p = {result.p_adjusted:.3g}"
    return f"{shown}, n = {result.n} pairs{groups}{p})"


def _rounded(effect: Effect) -> tuple[str, str, str]:
    """Estimate and ends with as many digits as the width of the interval makes sense of."""
    width = effect.high - effect.low
    digits = 3 if not (math.isfinite(width) and width > 0) else max(0, 2 - math.floor(math.log10(width)))
    sign = "" if effect.null == 1.0 else "+"
    # Adding zero turns -0.0 into 0.0.
    estimate, low, high = (
        f"{round(number, digits) + 0.0:{sign}.{digits}f}" for number in (effect.estimate, effect.low, effect.high)
    )
    return estimate, low, high


def _oriented(metric: MetricSpec, effect: Effect) -> _Oriented:
    ends = [effect.low, effect.high, effect.low_inner, effect.high_inner]
    margin = metric.margin
    if metric.is_ratio:
        # On the logarithmic scale "1.1 times" and "1 / 1.1 times" are equally far from no difference.
        ends = [math.log(max(end, 1e-300)) for end in ends]
        margin = None if margin is None else math.log1p(margin)
    low, high, low_inner, high_inner = ends
    if not metric.higher_is_better:
        low, high, low_inner, high_inner = -high, -low, -high_inner, -low_inner
    return _Oriented(low, high, low_inner, high_inner, margin)


def _kind(plan: ComparisonPlan, result: MetricResult, oriented: _Oriented) -> VerdictKind:
    is_sure = isinstance(result.p_adjusted, Unavailable) or result.p_adjusted <= plan.alpha
    margin = oriented.margin
    is_better, is_worse = oriented.low > 0 and is_sure, oriented.high < 0 and is_sure
    is_equivalent = margin is not None and is_within(oriented.low_inner, oriented.high_inner, margin)
    intent = plan.intent if result.metric.name == plan.primary else "superiority"
    if intent == "equivalence" and is_equivalent:
        return "equivalent"
    if is_better:
        return "better"
    if intent == "non-inferiority" and margin is not None and oriented.low > -margin:
        return "non-inferior"
    if is_worse:
        return "worse"
    return "equivalent" if is_equivalent else "inconclusive"


def _claim(plan: ComparisonPlan, result: MetricResult, oriented: _Oriented, kind: VerdictKind) -> str:
    if kind in ("better", "worse"):
        return f"is {kind} than"
    margin = margin_text(result.metric)
    is_sure = isinstance(result.p_adjusted, Unavailable) or result.p_adjusted <= plan.alpha
    if kind == "non-inferior":
        also = ", though measurably worse," if oriented.high < 0 and is_sure else ""
        return f"is not worse by more than {margin}{also} than"
    side = " (though the difference is not zero)" if (oriented.low > 0 or oriented.high < 0) and is_sure else ""
    return f"is equivalent within {margin}{side} to"


def margin_text(metric: MetricSpec) -> str:
    """The margin with its unit; relative ones as percent."""
    if metric.margin is None:
        return "no margin"
    if metric.is_ratio:
        return f"{100 * metric.margin:g} %"
    return f"{metric.margin:g}" + ("" if metric.unit == "1" else f" {metric.unit}")


def _inconclusive(plan: ComparisonPlan, result: MetricResult, oriented: _Oriented, numbers: str) -> Verdict:
    a, b, name = plan.system_a.name, plan.system_b.name, result.metric.name
    more = _more_items(plan, result, oriented)
    if oriented.low > 0 or oriented.high < 0:
        need = "the interval leaves out zero but the test does not reach its level, so neither is claimed"
    elif more is None:
        need = "no margin was planned, so the number of items still needed cannot be told"
    elif more == 0:
        need = f"n was large enough for a difference of {margin_text(result.metric)} and chance left it open"
    else:
        need = f"about {more} more items are needed to settle a difference of {margin_text(result.metric)}"
    return Verdict(
        "inconclusive", f"It stays open whether {b} is better or worse than {a} in {name}: {numbers}; {need}.", more
    )


def _more_items(plan: ComparisonPlan, result: MetricResult, oriented: _Oriented) -> int | None:
    if oriented.margin is None or isinstance(result.sd, Unavailable):
        return None
    intent = plan.intent if result.metric.name == plan.primary else "superiority"
    alpha = plan.level_of(result.metric)
    if intent == "equivalence":
        needed = items_for_equivalence(result.sd, oriented.margin, alpha=alpha, power=plan.power)
    elif intent == "non-inferiority":
        needed = items_for_non_inferiority(result.sd, oriented.margin, alpha=alpha, power=plan.power)
    else:
        needed = items_for_difference(result.sd, oriented.margin, alpha=alpha, power=plan.power)
    return max(0, needed - result.n)

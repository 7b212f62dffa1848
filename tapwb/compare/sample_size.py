"""How many items a question needs, before any is paid for.

All of it is ``n = (z + z')^2 * sd^2 / distance^2 * design effect`` with the standard deviation of the paired
differences (the normal approximation; a pilot of 50 items gives the standard deviation). Repeats shrink only the part
of the variance that comes from drawing an answer: ``omega^2 + (s_a^2 + s_b^2) / R`` (Miller 2024, arXiv:2411.00640).
"""

import math
from statistics import NormalDist

from tapwb.core.errors import UsageError
from tapwb.core.reading import Measured, Reading, Unavailable

_NORMAL = NormalDist()


def items_for_difference(
    sd: float, difference: float, *, alpha: float = 0.05, power: float = 0.8, design_effect: float = 1.0
) -> int:
    """Items with which a true difference is found with a given power, two-sided.

    Args:
        sd: Standard deviation of the paired differences, in the unit of the score.
        difference: Smallest difference worth finding, same unit, above 0.
        alpha: Two-sided level.
        power: Probability of finding it.
        design_effect: Of the clusters; 1 for independent items.

    Raises:
        UsageError: If an argument is out of range.
    """
    _check(sd, difference, alpha, power, design_effect)
    reach = _NORMAL.inv_cdf(1 - alpha / 2) + _NORMAL.inv_cdf(power)
    return _items(reach, sd, difference, design_effect)


def items_for_non_inferiority(
    sd: float,
    margin: float,
    *,
    true_difference: float = 0.0,
    alpha: float = 0.05,
    power: float = 0.8,
    design_effect: float = 1.0,
) -> int:
    """Items with which B is shown not to be worse than A by the margin, at alpha / 2 one-sided.

    Args:
        sd: Standard deviation of the paired differences, in the unit of the score.
        margin: Largest loss that does not matter, same unit, above 0.
        true_difference: What B really gains (negative: loses); above ``-margin``.
        alpha: Level of the two-sided interval whose lower end is used.
        power: Probability of showing it.
        design_effect: Of the clusters.

    Raises:
        UsageError: If an argument is out of range.
    """
    return items_for_difference(
        sd, margin + true_difference, alpha=alpha, power=power, design_effect=design_effect
    )  # fmt: skip


def items_for_equivalence(
    sd: float, margin: float, *, alpha: float = 0.05, power: float = 0.8, design_effect: float = 1.0
) -> int:
    """Items with which two systems that are truly alike are shown to be within the margin (two one-sided tests).

    Args:
        sd: Standard deviation of the paired differences, in the unit of the score.
        margin: Largest difference that does not matter, same unit, above 0.
        alpha: Level of each one-sided test.
        power: Probability that both reject.
        design_effect: Of the clusters.

    Raises:
        UsageError: If an argument is out of range.
    """
    _check(sd, margin, alpha, power, design_effect)
    # Either side may fail, so each gets half of the chance of failing.
    reach = _NORMAL.inv_cdf(1 - alpha) + _NORMAL.inv_cdf((1 + power) / 2)
    return _items(reach, sd, margin, design_effect)


def detectable_difference(
    n: int, sd: float, *, alpha: float = 0.05, power: float = 0.8, design_effect: float = 1.0
) -> float:
    """Smallest true difference that ``n`` items find with the given power, in the unit of ``sd``.

    Raises:
        UsageError: If an argument is out of range.
    """
    _check(sd, 1.0, alpha, power, design_effect)
    if n < 1:
        raise UsageError(f"{n} items find nothing. Give 1 or more.")
    reach = _NORMAL.inv_cdf(1 - alpha / 2) + _NORMAL.inv_cdf(power)
    return reach * sd * math.sqrt(design_effect / n)


def power_of(n: int, sd: float, difference: float, *, alpha: float = 0.05, design_effect: float = 1.0) -> float:
    """Probability that ``n`` items find a true difference, two-sided.

    Raises:
        UsageError: If an argument is out of range.
    """
    _check(sd, difference, alpha, 0.5, design_effect)
    distance = difference * math.sqrt(n / design_effect) / sd
    edge = _NORMAL.inv_cdf(1 - alpha / 2)
    return _NORMAL.cdf(distance - edge) + _NORMAL.cdf(-distance - edge)


def sd_of_accuracy_difference(accuracy_a: float, accuracy_b: float, correlation: float = 0.0) -> float:
    """Standard deviation of right-or-wrong differences (unit: 1).

    Args:
        accuracy_a: Share A gets right, 0 to 1.
        accuracy_b: Share B gets right, 0 to 1.
        correlation: Between the answers of both, -1 to 1; easy and hard items are shared, so it is usually positive.

    Raises:
        UsageError: If an argument is out of range.
    """
    if not (0 <= accuracy_a <= 1 and 0 <= accuracy_b <= 1 and -1 <= correlation <= 1):
        raise UsageError(
            f"accuracies {accuracy_a:g}, {accuracy_b:g} and correlation {correlation:g}: give shares, and -1 to 1."
        )
    spread_a, spread_b = accuracy_a * (1 - accuracy_a), accuracy_b * (1 - accuracy_b)
    return math.sqrt(max(spread_a + spread_b - 2 * correlation * math.sqrt(spread_a * spread_b), 0.0))


def sd_with_repeats(sd_items: float, sd_answers_a: float, sd_answers_b: float, repeats: int) -> float:
    """Standard deviation of an item's difference when each system answers several times.

    Args:
        sd_items: Of the true differences between items: what no repeat can shrink.
        sd_answers_a: Between answers of A to one item.
        sd_answers_b: Between answers of B to one item.
        repeats: Answers per item and system, 1 or more.

    Raises:
        UsageError: If a deviation is negative or there is no repeat.
    """
    if min(sd_items, sd_answers_a, sd_answers_b) < 0 or repeats < 1:
        raise UsageError(f"{repeats} repeats or a negative deviation is not usable. Give 1 or more, and 0 or more.")
    return math.sqrt(sd_items**2 + (sd_answers_a**2 + sd_answers_b**2) / repeats)


def planned_cost_usd(n_items: int, repeats: int, cost_a: Measured, cost_b: Measured) -> Measured:
    """What all planned answers of both systems cost, to be shown before the first one.

    Args:
        n_items: Planned items.
        repeats: Answers per item and system.
        cost_a: USD per answer of A.
        cost_b: USD per answer of B.

    Returns:
        The sum in USD, or why it is unknown: one unknown price makes the sum unknown.
    """
    if isinstance(cost_a, Unavailable):
        return Unavailable(f"the price of A is unknown: {cost_a.reason}")
    if isinstance(cost_b, Unavailable):
        return Unavailable(f"the price of B is unknown: {cost_b.reason}")
    total = n_items * repeats * (cost_a.value + cost_b.value)
    return Reading(total, "USD", "estimated:price per answer", n=n_items)


def _items(reach: float, sd: float, distance: float, design_effect: float) -> int:
    # The hair keeps a whole number of items from being rounded up by the last bit.
    return max(1, math.ceil(reach**2 * sd**2 / distance**2 * design_effect - 1e-9))


def _check(sd: float, distance: float, alpha: float, power: float, design_effect: float) -> None:
    if not (math.isfinite(sd) and sd > 0 and math.isfinite(distance) and distance > 0):
        raise UsageError(f"a deviation of {sd:g} and a distance of {distance:g} give no number of items. Both above 0.")
    if not 0 < alpha < 1 or not 0 < power < 1 or not (math.isfinite(design_effect) and design_effect >= 1):
        raise UsageError(
            f"alpha {alpha:g}, power {power:g}, design effect {design_effect:g}: give 0.05, 0.8 or 0.9, and 1 or more."
        )

"""Alike enough, or not worse by more than a margin: two one-sided tests, in the unit of the score.

"No significant difference" shows nothing: too few items give it for any two systems. Equivalence turns the burden of
proof round (Schuirmann 1987, two one-sided tests): the difference must be shown to be above ``-margin`` and below
``+margin``, each at level alpha, which is the same as the 1 - 2 alpha interval lying inside. Non-inferiority asks only
for the lower side, at alpha / 2, which is the lower end of the 1 - alpha interval.
"""

import math
from dataclasses import dataclass

from tapwb.compare.paired import PairedDifferences
from tapwb.core.errors import UsageError
from tapwb.core.reading import Unavailable
from tapwb.metrics.few_windows import t_cdf


@dataclass(frozen=True, slots=True)
class MarginTest:
    """A difference against a margin.

    Attributes:
        effect: B minus A, in ``unit``.
        margin: Largest difference that does not matter, in ``unit``.
        unit: Of the score.
        p_above: One-sided p-value of "the effect is not above -margin".
        p_below: One-sided p-value of "the effect is not below +margin".
        n_clusters: Independent groups.
    """

    effect: float
    margin: float
    unit: str
    p_above: float
    p_below: float
    n_clusters: int

    @property
    def p_equivalence(self) -> float:
        """The larger of both: equivalence is shown if it is at most alpha."""
        return max(self.p_above, self.p_below)

    def is_equivalent(self, alpha: float = 0.05) -> bool:
        """Whether both one-sided tests reject at ``alpha``."""
        return self.p_equivalence <= alpha

    def is_non_inferior(self, alpha: float = 0.05) -> bool:
        """Whether the lower test rejects at ``alpha / 2`` (larger scores being better)."""
        return self.p_above <= alpha / 2


def margin_test(paired: PairedDifferences, *, margin: float, unit: str) -> MarginTest | Unavailable:
    """Two one-sided t tests with the cluster-robust standard error and C - 1 degrees of freedom.

    Args:
        paired: Differences by cluster.
        margin: Largest difference that does not matter, in the unit of the score, above 0.
        unit: Of the score, for the report.

    Returns:
        The test, or why there is none: fewer than two clusters, or differences that do not vary.

    Raises:
        UsageError: If the margin is not above 0.
    """
    check_margin(margin, unit)
    count = paired.n_clusters
    if count < 2:
        return Unavailable(f"a test against a margin needs at least 2 clusters, and there are {count}")
    if paired.is_constant:
        return Unavailable("every difference is the same, so nothing is known about how differences vary")
    error, mean = paired.standard_error, paired.mean
    above = upper_tail((mean + margin) / error, count - 1)
    below = upper_tail((margin - mean) / error, count - 1)
    return MarginTest(mean, margin, unit, above, below, count)


def is_within(low: float, high: float, margin: float) -> bool:
    """Whether an interval lies inside the margin; with a 1 - 2 alpha interval this is the equivalence test."""
    return -margin < low and high < margin


def upper_tail(value: float, freedom: int) -> float:
    """Probability that Student's t exceeds a value of either sign."""
    return 1 - t_cdf(value, freedom) if value >= 0 else t_cdf(-value, freedom)


def check_margin(margin: float, unit: str) -> None:
    """Refuse a margin that says nothing.

    Raises:
        UsageError: If the margin is not a finite number above 0.
    """
    if not (math.isfinite(margin) and margin > 0):
        raise UsageError(
            f"a margin of {margin:g} {unit} is not usable. Give the smallest difference that matters, above 0."
        )

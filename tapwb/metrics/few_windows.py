"""Intervals of a mean that hold with a handful of values, and at every look at data that keep coming.

With four to eight windows the bootstrap has too few to draw from and its intervals come out too narrow; Student's t
(1908) is exact for normal values at any number. Looking several times and stopping when the answer is clear would make
an ordinary 95 % interval wrong more often than 5 % of the time; sharing the 5 % out over the looks (Bonferroni) bounds
that.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tapwb.core.errors import UsageError
from tapwb.core.reading import Unavailable


@dataclass(frozen=True, slots=True)
class MeanInterval:
    """A mean with its interval.

    Attributes:
        mean: Of the values.
        low: Lower end.
        high: Upper end.
        n: Number of values.
    """

    mean: float
    low: float
    high: float
    n: int


def mean_interval(values: Sequence[float], *, confidence: float = 0.95, looks: int = 1) -> MeanInterval | Unavailable:
    """Student's interval of the mean of independent values.

    Args:
        values: One per window, finite.
        confidence: Coverage at all looks together.
        looks: How many times the growing sample is looked at.

    Returns:
        The interval, or why there is none (fewer than two values).

    Raises:
        UsageError: If the confidence is not between 0 and 1, there is no look, or a value is not finite.
    """
    if not 0 < confidence < 1 or looks < 1:
        raise UsageError(f"a confidence of {confidence:g} at {looks} looks is not usable. Give 0.95 and 1 or more.")
    if not all(math.isfinite(value) for value in values):
        raise UsageError("a value is not finite, so there is no mean. Leave it out, or say that it failed.")
    n = len(values)
    if n < 2:
        return Unavailable(f"an interval needs at least 2 windows, and there are {n}")
    mean = float(np.mean(values))
    half = t_quantile(1 - (1 - confidence) / (2 * looks), n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return MeanInterval(mean, mean - half, mean + half, n)


@functools.cache
def t_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t distribution.

    Args:
        probability: In [0.5, 1).
        freedom: Degrees of freedom, at least 1.

    Raises:
        UsageError: If either is out of range.
    """
    if not 0.5 <= probability < 1 or freedom < 1:
        raise UsageError(f"no quantile at {probability:g} with {freedom} degrees of freedom. Give 0.5 to 1, and 1 up.")
    low, high = 0.0, 1.0
    while t_cdf(high, freedom) < probability:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, freedom) < probability else (low, middle)
    return high


def t_cdf(value: float, freedom: int) -> float:
    """Probability that Student's t is at most ``value`` (not negative): the finite sums of Abramowitz and Stegun 26.7.

    Args:
        value: 0 or more.
        freedom: Degrees of freedom, at least 1.
    """
    angle = math.atan2(value, math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    term, total = (cosine, cosine) if freedom % 2 else (1.0, 1.0)
    # Odd freedom: cos + 2/3 cos^3 + ...; even freedom: 1 + 1/2 cos^2 + 1*3/(2*4) cos^4 + ...
    start = 3 if freedom % 2 else 2
    for index in range(start, freedom - 1, 2):
        term *= cosine * cosine * (index - 1) / index
        total += term
    if freedom == 1:
        inside = 2 * angle / math.pi
    elif freedom % 2:
        inside = 2 / math.pi * (angle + sine * total)
    else:
        inside = sine * total
    return 0.5 + inside / 2

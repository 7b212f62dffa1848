"""Score intervals of shares: Wilson's for one system, Tango's for the difference of two on the same items.

Both invert a test whose variance is taken under the hypothesis, so they stay inside their range and hold at small n and
at shares near 0 and 1, where the textbook interval fails. Wilson 1927; Tango 1998, "Equivalence test and confidence
interval for the difference in proportions for the paired-sample design", Statistics in Medicine 17:891.
"""

import math
from statistics import NormalDist

from tapwb.core.errors import UsageError

_STEPS = 100


def wilson_interval(n_right: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a share.

    Args:
        n_right: Items that count.
        n: All items, at least 1.
        confidence: Coverage aimed at.

    Raises:
        UsageError: If the counts or the confidence are out of range.
    """
    if not 0 <= n_right <= n or n < 1:
        raise UsageError(f"{n_right} of {n} is not a share. Give a count between 0 and n, and n of 1 or more.")
    z = _z(confidence)
    share = n_right / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At 0 and n the end is exactly 0 or 1; the formula leaves a rounding error there.
    return (0.0 if n_right == 0 else middle - half), (1.0 if n_right == n else middle + half)


def tango_interval(only_a: int, only_b: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of B's share minus A's on the same items.

    Args:
        only_a: Items only A got right.
        only_b: Items only B got right.
        n: All items, at least 1.
        confidence: Coverage aimed at.

    Raises:
        UsageError: If the counts or the confidence are out of range.
    """
    if min(only_a, only_b) < 0 or only_a + only_b > n or n < 1:
        raise UsageError(f"{only_a} and {only_b} disagreements of {n} items are impossible. Give counts that add up.")
    z = _z(confidence)
    estimate = (only_b - only_a) / n
    return _end(only_a, only_b, n, -1.0, estimate, z), _end(only_a, only_b, n, 1.0, estimate, -z)


def tango_statistic(only_a: int, only_b: int, n: int, difference: float) -> float:
    """Distance of the observed difference from a supposed one, in standard errors under the supposed one.

    At a difference of 0 its square is McNemar's chi-square.
    """
    distance = only_b - only_a - n * difference
    # Share of "only A", the most likely one if B's share minus A's were ``difference`` (Tango's equation for q21).
    b = -only_a - only_b + (2 * n - only_b + only_a) * difference
    c = -only_a * difference * (1 - difference)
    share = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
    variance = n * (2 * share + difference * (1 - difference))
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def _end(only_a: int, only_b: int, n: int, outside: float, inside: float, target: float) -> float:
    """Where the statistic, which falls as the difference rises, takes the target value: halving."""
    if abs(tango_statistic(only_a, only_b, n, outside)) <= abs(target):
        return outside
    for _ in range(_STEPS):
        middle = (outside + inside) / 2
        is_beyond = abs(tango_statistic(only_a, only_b, n, middle)) > abs(target)
        outside, inside = (middle, inside) if is_beyond else (outside, middle)
    return (outside + inside) / 2


def _z(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise UsageError(f"a confidence of {confidence:g} is not usable. Give a number between 0 and 1, such as 0.95.")
    return NormalDist().inv_cdf((1 + confidence) / 2)

"""Intervals of shares of right answers, and of the difference of two that were measured on the same items.

A bootstrap of a handful of yes-or-no answers gives an interval of width zero as soon as all agree. The forms here do
not: Wilson (1927, JASA 22:209) for one share, and for a paired difference that of Agresti and Min (2005, Statistics in
Medicine 24:729), which adds half an item to each of the four outcomes.
"""

import math
from collections.abc import Sequence

from tapwb.core.errors import UsageError
from tapwb.core.reading import Reading

_Z95 = 1.959964


def share(right: Sequence[bool], source: str) -> Reading:
    """Share of right answers with its 95 % interval.

    Args:
        right: One answer an item.
        source: Where the answers come from.

    Raises:
        UsageError: If there is no item.
    """
    n = len(right)
    if not n:
        raise UsageError("a share of no items was asked for. Give at least one.")
    found = sum(right) / n
    middle = (found + _Z95**2 / (2 * n)) / (1 + _Z95**2 / n)
    half = _Z95 / (1 + _Z95**2 / n) * math.sqrt(found * (1 - found) / n + _Z95**2 / (4 * n**2))
    ends = max(0.0, min(middle - half, found)), min(1.0, max(middle + half, found))
    return Reading(found, "1", source, math.sqrt(found * (1 - found) / n), n, ends)


def paired_difference(candidate: Sequence[bool], baseline: Sequence[bool], source: str) -> Reading:
    """Share of the candidate less that of the baseline on the same items, with its 95 % interval.

    Args:
        candidate: One answer an item.
        baseline: The other side's answers to the same items.
        source: Where the answers come from.

    Raises:
        UsageError: If the two are not of one length, or empty.
    """
    n = len(candidate)
    if n != len(baseline) or not n:
        raise UsageError(f"{n} and {len(baseline)} answers are not pairs. Give one of each an item.")
    won = sum(c and not b for c, b in zip(candidate, baseline, strict=True))
    lost = sum(b and not c for c, b in zip(candidate, baseline, strict=True))
    total, more, fewer = n + 2, won + 0.5, lost + 0.5
    middle = (more - fewer) / total
    error = math.sqrt((more + fewer) - (more - fewer) ** 2 / total) / total
    ends = max(-1.0, middle - _Z95 * error), min(1.0, middle + _Z95 * error)
    return Reading((won - lost) / n, "1", source, error, n, ends)

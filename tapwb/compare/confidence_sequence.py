"""Intervals that hold at every look, so that a comparison may stop as soon as it is clear.

An ordinary 95 % interval that is looked at again and again excludes the truth sooner or later. The asymptotic
confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas ("Time-uniform central limit theory and
asymptotic confidence sequences", arXiv:2103.06476, the normal-mixture boundary) holds at all times together. After n
clusters with standard deviation s its half-width is::

    s * sqrt( 2 (n r^2 + 1) / (n^2 r^2) * ln( sqrt(n r^2 + 1) / alpha ) )

That is Robbins' normal mixture: ``exp(r^2 S^2 / (2 (n r^2 + 1))) / sqrt(n r^2 + 1)`` is a martingale of the sum S of
standard normal values, and by Ville's inequality exceeds ``1 / alpha`` with probability at most alpha, ever. ``r`` is
set so that the sequence is tightest near the planned number of clusters. "Asymptotic" means that s is estimated: the
first look comes at 30 clusters or later. Clusters count equally, whatever their size.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tapwb.core.errors import UsageError
from tapwb.core.reading import Unavailable

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

#: The first look; before it the standard deviation is not known well enough.
FIRST_LOOK = 30


@dataclass(frozen=True, slots=True)
class ConfidenceSequence:
    """Intervals after each number of clusters.

    Attributes:
        counts: Clusters seen, rising, shape (look,).
        mean: Mean of those, shape (look,).
        low: Lower ends, shape (look,).
        high: Upper ends, shape (look,).
        alpha: Probability that any of them, ever, misses the truth.
        method: How the ends were found.
    """

    counts: IntArray
    mean: FloatArray
    low: FloatArray
    high: FloatArray
    alpha: float
    method: str

    def at(self, count: int) -> tuple[float, float, float]:
        """``(mean, low, high)`` after a number of clusters.

        Raises:
            UsageError: If there is no look at that number.
        """
        place = int(np.searchsorted(self.counts, count))
        if place >= len(self.counts) or self.counts[place] != count:
            first, last = int(self.counts[0]), int(self.counts[-1])
            raise UsageError(f"there is no look at {count} clusters. Choose one of those between {first} and {last}.")
        return float(self.mean[place]), float(self.low[place]), float(self.high[place])

    def turned(self) -> "ConfidenceSequence":
        """The same of A minus B, for scores of which less is better."""
        return ConfidenceSequence(self.counts, -self.mean, -self.high, -self.low, self.alpha, self.method)

    def first_exclusion(self, value: float = 0.0) -> int | None:
        """Clusters after which the value is excluded for the first time; ``None`` if it never is."""
        outside = np.flatnonzero((self.low > value) | (self.high < value))
        return int(self.counts[outside[0]]) if len(outside) else None


def mixture_half_width(
    counts: ArrayLike, deviation: ArrayLike, *, alpha: float = 0.05, n_planned: int = 500
) -> FloatArray:
    """Half-width of the sequence.

    Args:
        counts: Clusters seen.
        deviation: Their standard deviation at that time, same shape.
        alpha: Probability of ever missing.
        n_planned: Clusters at which the sequence shall be tightest.

    Returns:
        Half-widths in the unit of the deviation, same shape.

    Raises:
        UsageError: If alpha is not between 0 and 1 or no cluster is planned.
    """
    if not 0 < alpha < 1 or n_planned < 1:
        raise UsageError(f"alpha {alpha:g}, {n_planned} planned clusters: give alpha such as 0.05, and 1 or more.")
    n = np.asarray(counts, dtype=np.float64)
    tuned = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / n_planned
    grown = n * tuned + 1
    half: FloatArray = np.asarray(deviation, np.float64) * np.sqrt(
        2 * grown / (n**2 * tuned) * np.log(np.sqrt(grown) / alpha)
    )
    return half


def asymptotic_confidence_sequence(
    cluster_means: ArrayLike, *, alpha: float = 0.05, n_planned: int = 500, first_look: int = FIRST_LOOK, every: int = 1
) -> ConfidenceSequence | Unavailable:
    """Intervals of the mean difference, valid at all looks together.

    Args:
        cluster_means: Mean difference of every cluster in the order they came in, shape (cluster,), finite.
        alpha: Probability of ever missing.
        n_planned: Clusters at which the sequence shall be tightest; fix it before the first one.
        first_look: Clusters at the first look, 30 or more.
        every: Clusters between looks.

    Returns:
        The sequence, or why there is none yet.

    Raises:
        UsageError: If a value is not finite or an option is out of range.
    """
    values = np.asarray(cluster_means, dtype=np.float64).ravel()
    if not np.isfinite(values).all():
        raise UsageError("a cluster mean is not finite. Leave the cluster out, and say that it is missing.")
    if first_look < FIRST_LOOK or every < 1:
        raise UsageError(f"first look at {first_look}, then every {every}: give {FIRST_LOOK} or more, and 1 or more.")
    if len(values) < first_look:
        return Unavailable(f"the first look comes at {first_look} clusters, and there are {len(values)}")
    counts = np.arange(first_look, len(values) + 1, every)
    # Centred first: running sums of squares far from zero would lose the spread.
    centred = values - values[0]
    totals, squares = np.cumsum(centred), np.cumsum(centred**2)
    mean = totals[counts - 1] / counts
    variance = np.maximum(squares[counts - 1] - counts * mean**2, 0.0) / (counts - 1)
    half = mixture_half_width(counts, np.sqrt(variance), alpha=alpha, n_planned=n_planned)
    mean = mean + values[0]
    return ConfidenceSequence(counts, mean, mean - half, mean + half, alpha, "asymptotic confidence sequence")

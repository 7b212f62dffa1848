"""A confidence sequence for scores with known bounds, right at every number of clusters from the first.

The predictable plug-in empirical-Bernstein sequence of Waudby-Smith and Ramdas ("Estimating means of bounded random
variables by betting", JRSS B 86:1, 2024, theorem 2), for values in [0, 1]::

    sum(w_i x_i) / sum(w_i)  +-  ( ln(2 / alpha) + sum( v_i psi(w_i) ) ) / sum(w_i)

with ``v_i = 4 (x_i - m_{i-1})^2``, ``psi(w) = (-ln(1 - w) - w) / 4`` and weights ``w_i`` that look only at earlier
values. It needs no normal law and no first look, and pays for that with width.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from tapwb.compare.confidence_sequence import ConfidenceSequence
from tapwb.core.errors import UsageError
from tapwb.core.reading import Unavailable

#: No weight above this, so that psi stays finite (the paper suggests 1/2 or 3/4).
_LARGEST_WEIGHT = 0.5


def bounded_confidence_sequence(
    cluster_means: ArrayLike, *, lowest: float, highest: float, alpha: float = 0.05
) -> ConfidenceSequence | Unavailable:
    """Intervals of the mean difference, valid at all looks together, without a normal law.

    Args:
        cluster_means: Mean difference of every cluster in the order they came in, shape (cluster,).
        lowest: No difference can be below this: -1 for scores between 0 and 1.
        highest: No difference can be above this: 1 for scores between 0 and 1.
        alpha: Probability of ever missing.

    Returns:
        The sequence, or why there is none (no cluster yet).

    Raises:
        UsageError: If alpha or the bounds make no sense, or a value lies outside the bounds.
    """
    if not 0 < alpha < 1 or not lowest < highest:
        raise UsageError(
            f"alpha {alpha:g} and bounds {lowest:g} to {highest:g}: give 0.05, and a rising pair of bounds."
        )
    values = (np.asarray(cluster_means, dtype=np.float64).ravel() - lowest) / (highest - lowest)
    if not len(values):
        return Unavailable("there is no cluster yet")
    if not ((values >= 0) & (values <= 1)).all():
        raise UsageError(f"a difference lies outside {lowest:g} to {highest:g}. Give bounds that hold for every item.")
    counts = np.arange(1, len(values) + 1)
    # The mean and variance known before each value, started with one imagined value of 1/2 and variance 1/4.
    means = (0.5 + np.cumsum(values)) / (counts + 1)
    variances = (0.25 + np.cumsum((values - means) ** 2)) / (counts + 1)
    earlier_mean, earlier_variance = np.append(0.5, means[:-1]), np.append(0.25, variances[:-1])
    weights = np.sqrt(2 * math.log(2 / alpha) / (earlier_variance * counts * np.log(1 + counts)))
    weights = np.minimum(weights, _LARGEST_WEIGHT)
    surprise = 4 * (values - earlier_mean) ** 2 * (-np.log1p(-weights) - weights) / 4
    total = np.cumsum(weights)
    middle = np.cumsum(weights * values) / total
    half = (math.log(2 / alpha) + np.cumsum(surprise)) / total
    low, high = np.maximum(middle - half, 0.0), np.minimum(middle + half, 1.0)
    width = highest - lowest
    return ConfidenceSequence(
        counts,
        lowest + width * middle,
        lowest + width * low,
        lowest + width * high,
        alpha,
        "empirical-Bernstein confidence sequence",
    )

"""Grades on a scale: Wilcoxon's signed-rank test with ties and zeros, and the Hodges-Lehmann shift.

Grades have an order but no arithmetic, so differences are ranked. Zeros are ranked with the others and then left out
(Pratt 1959), which keeps "no difference" from being thrown away before ranking. The p-value flips the signs of the
ranks (:mod:`tapwb.compare.permutation`), which is exact whatever ties there are, and keeps clusters together; the
normal approximation is shown beside it. The shift is the median of all pairwise averages (Hodges and Lehmann 1963).
"""

import math
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from tapwb.compare.paired import PairedDifferences
from tapwb.compare.permutation import N_DRAWS, sign_flip_test
from tapwb.core.errors import UsageError
from tapwb.core.reading import Unavailable

FloatArray = NDArray[np.float64]
#: Different values up to which all pairwise averages are formed.
_LARGEST = 3000


@dataclass(frozen=True, slots=True)
class SignedRank:
    """Wilcoxon's signed-rank test.

    Attributes:
        p_value: Two-sided, by flipping signs of whole clusters.
        p_normal: By the normal approximation, which knows no clusters.
        rank_sum: Ranks of the positive differences less those of the negative ones.
        n_zero: Pairs without a difference.
        shift: Hodges-Lehmann estimate of the difference, in grades.
    """

    p_value: float
    p_normal: float | Unavailable
    rank_sum: float
    n_zero: int
    shift: float


def signed_rank_test(paired: PairedDifferences, *, n_draws: int = N_DRAWS, seed: int = 0) -> SignedRank:
    """Test whether grades shift.

    Args:
        paired: Differences by cluster.
        n_draws: Sign patterns drawn above 16 clusters.
        seed: Seed of the draw.

    Raises:
        UsageError: If there are too many different values for all pairwise averages.
    """
    values = paired.values
    ranks = _ranks(np.abs(values))
    signed = np.where(values == 0, 0.0, np.sign(values) * ranks)
    n_zero = int((values == 0).sum())
    p_value = sign_flip_test(replace(paired, values=signed), n_draws=n_draws, seed=seed).p_value
    return SignedRank(p_value, _normal_p(signed), float(signed.sum()), n_zero, hodges_lehmann(paired))


def hodges_lehmann(paired: PairedDifferences) -> float:
    """Median of the averages of all pairs of differences, each with itself too.

    Raises:
        UsageError: If there are more than 3000 different values.
    """
    levels, counts = np.unique(paired.values, return_counts=True)
    if len(levels) > _LARGEST:
        raise UsageError(f"{len(levels)} different values are not grades. Compare them as continuous scores.")
    first, second = np.triu_indices(len(levels))
    averages = (levels[first] + levels[second]) / 2
    # A level meets itself in c (c + 1) / 2 ways and another one in c * c' ways.
    weights = np.where(first == second, counts[first] * (counts[first] + 1) // 2, counts[first] * counts[second])
    order = np.argsort(averages, kind="stable")
    reached = np.cumsum(weights[order])
    total = int(reached[-1])
    lower = averages[order][np.searchsorted(reached, (total + 1) // 2)]
    upper = averages[order][np.searchsorted(reached, total // 2 + 1)]
    return float(lower + upper) / 2


def _ranks(sizes: FloatArray) -> FloatArray:
    """Ranks from 1 up; equal values share the mean of theirs."""
    _, place, counts = np.unique(sizes, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    middle: FloatArray = (last - (counts - 1) / 2)[place.ravel()]
    return middle


def _normal_p(signed: FloatArray) -> float | Unavailable:
    if not signed.any():
        return Unavailable("no pair differs")
    return min(1.0, 2 * NormalDist().cdf(-abs(float(signed.sum())) / math.sqrt(float((signed**2).sum()))))

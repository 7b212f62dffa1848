"""The paired sign-flip test: if A and B were alike, every difference could as well have had the other sign.

All items of a cluster flip together. Up to 16 clusters every sign pattern is tried and the p-value is exact; above that
99,999 patterns are drawn and ``p = (b + 1) / (B + 1)`` (Phipson and Smyth 2010, "Permutation P-values should never be
zero"), which keeps the error rate whatever the number drawn. The counting itself is in :mod:`tapwb.metrics.statistics`.
"""

from dataclasses import dataclass

from tapwb.compare.paired import PairedDifferences
from tapwb.metrics.statistics import permutation_p_value

#: Sign patterns drawn where there are too many to try them all.
N_DRAWS = 99_999
#: Up to this many clusters all patterns are tried.
EXACT_CLUSTERS = 16


@dataclass(frozen=True, slots=True)
class SignFlip:
    """A paired permutation test.

    Attributes:
        p_value: Two-sided.
        n_clusters: Units whose sign was flipped.
        is_exact: Whether every pattern was tried.
        n_patterns: Patterns tried or drawn.
        smallest_p: The least p-value that this many clusters can give.
    """

    p_value: float
    n_clusters: int
    is_exact: bool
    n_patterns: int
    smallest_p: float

    def can_reject_at(self, alpha: float) -> bool:
        """Whether any data with this many clusters could give a p-value of ``alpha`` or less."""
        return self.smallest_p <= alpha


def sign_flip_test(paired: PairedDifferences, *, n_draws: int = N_DRAWS, seed: int = 0) -> SignFlip:
    """Test that the effect is zero.

    Args:
        paired: Differences by cluster.
        n_draws: Patterns drawn above 16 clusters.
        seed: Seed of the draw.

    Raises:
        UsageError: If there is no pair.
    """
    count = paired.n_clusters
    is_exact = count <= EXACT_CLUSTERS
    sums = paired.sums[paired.canonical_order]
    p_value = permutation_p_value(sums, n_resamples=n_draws, seed=seed)
    # The observed pattern and its mirror are always among those at least as extreme.
    smallest = min(1.0, 2.0 ** (1 - count)) if is_exact else 1 / (n_draws + 1)
    return SignFlip(p_value, count, is_exact, 2**count if is_exact else n_draws, smallest)

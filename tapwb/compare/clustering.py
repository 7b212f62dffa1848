"""How much items of one cluster resemble each other, and how many independent items they are worth.

The intraclass correlation is the one of a one-way analysis of variance (Donner and Koval 1980); the design effect is
``1 + (m - 1) * ICC`` (Kish 1965), with the item-weighted mean cluster size m where sizes differ.
"""

from dataclasses import dataclass

import numpy as np

from tapwb.compare.paired import PairedDifferences
from tapwb.core.errors import UsageError
from tapwb.core.reading import Unavailable


@dataclass(frozen=True, slots=True)
class Clustering:
    """Resemblance within clusters.

    Attributes:
        n: Items.
        n_clusters: Clusters.
        mean_size: Size of the cluster of an average item.
        icc: Intraclass correlation of the differences; 0 where each item is its own cluster. May be negative by chance.
        design_effect: Factor by which the variance of the mean grows; 1 for independent items.
    """

    n: int
    n_clusters: int
    mean_size: float
    icc: float
    design_effect: float

    @property
    def effective_n(self) -> float:
        """Independent items that would say as much."""
        return self.n / self.design_effect


def describe_clustering(paired: PairedDifferences) -> Clustering | Unavailable:
    """Intraclass correlation and design effect of the differences.

    Returns:
        Them, or why there are none: fewer than two clusters, or differences that do not vary.
    """
    n, count, sizes = paired.n, paired.n_clusters, paired.sizes
    if count < 2:
        return Unavailable(f"resemblance within clusters needs at least 2 of them, and there are {count}")
    if n == count:
        return Clustering(n, count, 1.0, 0.0, 1.0)
    between = float((sizes * (paired.cluster_means - paired.mean) ** 2).sum()) / (count - 1)
    within = float(((paired.values - paired.cluster_means[paired.labels]) ** 2).sum()) / (n - count)
    typical = (n - float((sizes**2).sum()) / n) / (count - 1)
    spread = between + (typical - 1) * within
    if spread <= 0:
        return Unavailable("every difference is the same, so clusters cannot be told apart")
    icc = (between - within) / spread
    mean_size = float((sizes**2).sum()) / n
    return Clustering(n, count, mean_size, icc, design_effect(mean_size, max(icc, 0.0)))


def design_effect(mean_size: float, icc: float) -> float:
    """``1 + (m - 1) * ICC``.

    Args:
        mean_size: Items per cluster, 1 or more.
        icc: Intraclass correlation, 0 to 1.

    Raises:
        UsageError: If either is out of range.
    """
    if not np.isfinite(mean_size) or mean_size < 1 or not 0 <= icc <= 1:
        raise UsageError(f"clusters of {mean_size:g} items with correlation {icc:g}: give 1 or more, and 0 to 1.")
    return 1 + (mean_size - 1) * icc

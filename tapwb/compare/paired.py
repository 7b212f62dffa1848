"""What is estimated: the mean over items of B's score minus A's, each item a pair of its own.

``d_i = mean over repeats of B on item i - mean over repeats of A on item i``; the effect is the mean of ``d_i`` (each
item counts once), and its standard error is that of Miller 2024 ("Adding Error Bars to Evals", arXiv:2411.00640),
with the correction C / (C - 1) for a small number of clusters C::

    sqrt( C / (C - 1) * sum over clusters of (sum of (d_i - mean) in the cluster)^2 ) / n

A failed answer is an outcome and must come as a score (usually 0). Only what was never measured is missing (NaN); such
pairs are left out, counted, and listed.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tapwb.core.errors import UsageError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PairedDifferences:
    """Differences of pairs, by cluster.

    Attributes:
        values: B minus A of every complete pair, shape (n,).
        labels: Cluster of every pair, from 0 up in the order they came in, shape (n,).
        n_missing: Pairs that were left out.
        missing: Their positions in the input, in order.
    """

    values: FloatArray
    labels: IntArray
    n_missing: int = 0
    missing: tuple[int, ...] = ()

    @property
    def n(self) -> int:
        """Complete pairs."""
        return len(self.values)

    @property
    def n_clusters(self) -> int:
        """Independent groups of pairs."""
        return int(self.labels.max()) + 1 if len(self.labels) else 0

    @property
    def missing_share(self) -> float:
        """Share of all pairs that were left out."""
        return self.n_missing / max(self.n + self.n_missing, 1)

    @property
    def mean(self) -> float:
        """The effect: every item counts once."""
        return float(self.values.mean())

    @property
    def cluster_means(self) -> FloatArray:
        """Mean difference of every cluster, shape (cluster,)."""
        return self.sums / self.sizes

    @property
    def cluster_weighted_mean(self) -> float:
        """The effect if every cluster counts once, however many items it has."""
        return float(self.cluster_means.mean())

    @property
    def sums(self) -> FloatArray:
        """Sum of the differences of every cluster, shape (cluster,)."""
        return np.bincount(self.labels, weights=self.values, minlength=self.n_clusters).astype(np.float64)

    @property
    def sizes(self) -> FloatArray:
        """Pairs in every cluster, shape (cluster,)."""
        return np.bincount(self.labels, minlength=self.n_clusters).astype(np.float64)

    @property
    def residuals(self) -> FloatArray:
        """Sum of every cluster less what its size lets expect, shape (cluster,)."""
        return self.sums - self.mean * self.sizes

    @property
    def canonical_order(self) -> IntArray:
        """An order of the clusters in which draws depend neither on the order of the items nor on which system is B."""
        # Rounded, because sums of the same numbers in another order differ in their last bits.
        unit = max(float(np.abs(self.sums).max()), 1e-300) * 1e-9
        sums, residuals = np.round(self.sums / unit), np.round(self.residuals / unit)
        side = np.sign(np.round(self.mean / unit)) or np.sign(float((residuals**3).sum())) or 1.0
        return np.lexsort((sums * side, residuals * side, self.sizes, np.abs(residuals))).astype(np.int64)

    @property
    def standard_error(self) -> float:
        """Cluster-robust standard error of the effect; NaN with one cluster."""
        count = self.n_clusters
        if count < 2:
            return math.nan
        residuals = self.residuals
        return math.sqrt(count / (count - 1) * float(residuals @ residuals)) / self.n

    @property
    def is_constant(self) -> bool:
        """Whether every cluster differs by the same amount, so that nothing can be learned about the spread."""
        means = self.cluster_means
        return bool(np.ptp(means) <= 1e-12 * max(1.0, float(np.abs(means).max())))


def paired_differences(
    scores_a: ArrayLike, scores_b: ArrayLike, clusters: ArrayLike | None = None
) -> PairedDifferences:
    """Differences of the scores of two systems on the same items.

    Args:
        scores_a: Shape (n,) or (n, repeat); NaN where a score was never measured.
        scores_b: The same items in the same order; the number of repeats may differ.
        clusters: Shape (n,), the document, user or template every item comes from; each item its own by default.

    Raises:
        UsageError: If the items do not pair up, a score is infinite, or no pair is complete.
    """
    first, second = _item_means(scores_a, "A"), _item_means(scores_b, "B")
    if first.shape != second.shape:
        raise UsageError(f"{len(first)} items of A and {len(second)} of B are not pairs. Score both on the same items.")
    labels = np.arange(len(first)) if clusters is None else np.asarray(clusters).ravel()
    if len(labels) != len(first):
        raise UsageError(f"{len(labels)} cluster labels for {len(first)} items. Give one label per item.")
    difference = second - first
    whole = np.isfinite(difference)
    if not whole.any():
        raise UsageError(
            f"none of {len(first)} pairs is complete, so there is nothing to compare. Give scores of both."
        )
    numbers = _numbered(labels[whole])
    missing = tuple(np.flatnonzero(~whole).tolist())
    return PairedDifferences(difference[whole], numbers, len(missing), missing)


def _numbered(labels: NDArray[Any]) -> IntArray:
    """Clusters as numbers in order of first appearance: a sequential comparison reads them in that order."""
    _, first, place = np.unique(labels, return_index=True, return_inverse=True)
    number = np.empty(len(first), np.int64)
    number[np.argsort(first)] = np.arange(len(first))
    return number[place.ravel()]


def _item_means(scores: ArrayLike, name: str) -> FloatArray:
    data = np.asarray(scores, dtype=np.float64)
    if data.ndim not in (1, 2):
        raise UsageError(f"scores of {name} have shape {data.shape}. Give (item,) or (item, repeat).")
    if np.isinf(data).any():
        raise UsageError(f"{int(np.isinf(data).sum())} scores of {name} are infinite. Score a failure as 0 instead.")
    return data if data.ndim == 1 else data.mean(axis=1)

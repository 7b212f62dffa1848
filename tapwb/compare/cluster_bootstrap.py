"""Intervals of the effect from resampled clusters: bootstrap-t first, BCa and Student's t as a cross-check.

Bootstrap-t resamples whole clusters and asks how far their means lie from the observed one *in units of their own
standard errors* (Davison and Hinkley 1997, chapter 5). It is right to second order and keeps
its coverage at small numbers of clusters, where the percentile interval is too short. The CR1 interval uses Student's t
with one degree of freedom less than clusters.
"""

import numpy as np
from numpy.typing import NDArray

from tapwb.compare.paired import PairedDifferences
from tapwb.core.errors import UsageError
from tapwb.core.reading import Unavailable
from tapwb.metrics.few_windows import t_quantile
from tapwb.metrics.statistics import Interval, bootstrap_ci

FloatArray = NDArray[np.float64]

N_RESAMPLES = 10_000
#: Below this many clusters no interval that leans on the central limit theorem is printed.
CLT_CLUSTERS = 30
#: Below this many clusters too many resamples repeat one cluster for a standard error of their own.
LEAST_CLUSTERS = 5
_BLOCK_ELEMENTS = 4_000_000


def bootstrap_t_interval(
    paired: PairedDifferences, *, confidence: float = 0.95, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> Interval | Unavailable:
    """Studentised cluster-bootstrap interval of the effect.

    Args:
        paired: Differences by cluster.
        confidence: Coverage aimed at.
        n_resamples: Resamples of clusters.
        seed: Seed of the resampling.

    Returns:
        The interval, or why there is none: too few clusters, or differences that do not vary.

    Raises:
        UsageError: If an option is out of range.
    """
    if not 0 < confidence < 1 or n_resamples < 99:
        raise UsageError(f"confidence {confidence:g}, {n_resamples} resamples: give 0.95, and 99 resamples or more.")
    if paired.n_clusters < LEAST_CLUSTERS:
        return Unavailable(f"an interval needs at least {LEAST_CLUSTERS} clusters, and there are {paired.n_clusters}")
    if paired.is_constant:
        return Unavailable("every difference is the same, so nothing is known about how differences vary")
    ratios = _studentised(paired, n_resamples, seed)
    tail = (1 - confidence) / 2
    lower, upper = _order_statistic(ratios, tail), _order_statistic(ratios, 1 - tail)
    if not (np.isfinite(lower) and np.isfinite(upper)):
        return Unavailable("too few clusters differ, so that resamples often hold no spread. Add items")
    mean, error = paired.mean, paired.standard_error
    return Interval(
        mean, mean - upper * error, mean - lower * error, confidence, paired.n, paired.n_clusters, "bootstrap-t", error
    )


def bca_interval(
    paired: PairedDifferences, *, confidence: float = 0.95, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> Interval | Unavailable:
    """Bias-corrected and accelerated cluster-bootstrap interval of the effect (:mod:`tapwb.metrics.statistics`)."""
    return bootstrap_ci(paired.values, None, n_resamples, seed, clusters=paired.labels, confidence=confidence)


def cluster_t_interval(paired: PairedDifferences, *, confidence: float = 0.95) -> Interval | Unavailable:
    """Student's interval with the cluster-robust standard error (CR1) and C - 1 degrees of freedom.

    Returns:
        The interval, or why there is none: fewer than 30 clusters.

    Raises:
        UsageError: If the confidence is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise UsageError(f"a confidence of {confidence:g} is not usable. Give a number between 0 and 1, such as 0.95.")
    count = paired.n_clusters
    if count < CLT_CLUSTERS:
        return Unavailable(f"Student's interval is not printed below {CLT_CLUSTERS} clusters, and there are {count}")
    half = t_quantile((1 + confidence) / 2, count - 1) * paired.standard_error
    mean = paired.mean
    return Interval(
        mean, mean - half, mean + half, confidence, paired.n, count, "CR1 t(C - 1)", paired.standard_error
    )  # fmt: skip


def _studentised(paired: PairedDifferences, n_resamples: int, seed: int) -> FloatArray:
    """(mean - observed mean) / standard error of every resample, sorted, shape (n_resamples,)."""
    count, order = paired.n_clusters, paired.canonical_order
    sizes = paired.sizes[order]
    # Residuals instead of sums: their squares do not cancel where the mean is large beside the spread.
    residuals = paired.residuals[order]
    columns = np.stack([residuals, sizes, residuals**2, residuals * sizes, sizes**2], axis=1)
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK_ELEMENTS // count)
    parts = []
    for start in range(0, n_resamples, block):
        rows = min(block, n_resamples - start)
        drawn = rng.integers(0, count, (rows, count)) + count * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        residual, size, squares, cross, sizes_squared = (times @ columns).T
        shift = residual / size
        spread = squares - 2 * shift * cross + shift**2 * sizes_squared
        # A resample of one cluster repeated has no spread: it lies infinitely far out, or exactly in the middle.
        is_flat = spread <= 1e-12 * float(columns[:, 2].sum())
        error = np.sqrt(np.where(is_flat, 1.0, spread) * count / (count - 1)) / size
        far = np.where(np.abs(shift) <= 1e-9 * paired.standard_error, 0.0, np.copysign(np.inf, shift))
        parts.append(np.where(is_flat, far, shift / error))
    return np.sort(np.concatenate(parts))


def _order_statistic(ordered: FloatArray, probability: float) -> float:
    """Value number ``(B + 1) * probability``, between its neighbours where that is not whole."""
    place = (len(ordered) + 1) * probability - 1
    below = int(np.clip(np.floor(place), 0, len(ordered) - 2))
    part = float(np.clip(place - below, 0.0, 1.0))
    first, second = float(ordered[below]), float(ordered[below + 1])
    if part == 0.0 or first == second:
        return first
    return first + part * (second - first)

"""Times of two systems: the ratio of geometric means, and percentiles that are only printed where n allows them.

Times in one run are not independent (queues, heat, caches), so percentiles are compared by resampling blocks of
neighbours (the moving-block bootstrap; Künsch 1989). Per system, :func:`tapwb.metrics.statistics.percentile_ci` gives
the order-statistic interval: 36 values for the 90th percentile, 72 for the 95th, 368 for the 99th.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tapwb.core.errors import UsageError
from tapwb.core.reading import Unavailable
from tapwb.metrics.statistics import Interval, percentile_ci

FloatArray = NDArray[np.float64]
N_RESAMPLES = 2_000
_BLOCK_ELEMENTS = 2_000_000


def percentile_difference(
    times_a_s: ArrayLike,
    times_b_s: ArrayLike,
    quantile: float,
    *,
    block: int | None = None,
    confidence: float = 0.95,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Interval | Unavailable:
    """Percentile of B minus that of A, seconds, with a moving-block bootstrap interval of pairs.

    Args:
        times_a_s: Shape (request,), in the order they were made.
        times_b_s: The same requests.
        quantile: In (0, 1), for example 0.95.
        block: Neighbours resampled together; the cube root of n by default.
        confidence: Coverage aimed at.
        n_resamples: Resamples.
        seed: Seed of the resampling.

    Returns:
        The interval, or why there is none: too few requests for that percentile.

    Raises:
        UsageError: If the requests do not pair up, a time is not positive, or an option is out of range.
    """
    a, b = _checked(times_a_s, times_b_s)
    n = len(a)
    enough = percentile_ci(a, quantile, confidence)
    if isinstance(enough, Unavailable):
        return enough
    length = round(n ** (1 / 3)) if block is None else block
    if not 1 <= length <= n or n_resamples < 99:
        raise UsageError(f"blocks of {length} out of {n}, {n_resamples} resamples: give 1 to n, and 99 or more.")
    rng = np.random.default_rng(seed)
    rows = max(1, _BLOCK_ELEMENTS // n)
    parts = []
    for start in range(0, n_resamples, rows):
        drawn = moving_blocks(rng, n, length, min(rows, n_resamples - start))
        parts.append(np.quantile(b[drawn], quantile, axis=1) - np.quantile(a[drawn], quantile, axis=1))
    replicates = np.concatenate(parts)
    low, high = np.quantile(replicates, [(1 - confidence) / 2, (1 + confidence) / 2])
    estimate = float(np.quantile(b, quantile) - np.quantile(a, quantile))
    error = float(replicates.std(ddof=1))
    return Interval(estimate, float(low), float(high), confidence, n, n // length, "moving-block", error)


def moving_blocks(rng: np.random.Generator, n: int, length: int, rows: int) -> NDArray[np.int64]:
    """Indices of resamples made of blocks of neighbours, shape (rows, n)."""
    n_blocks = -(-n // length)
    starts = rng.integers(0, n - length + 1, (rows, n_blocks))
    indices: NDArray[np.int64] = (starts[:, :, None] + np.arange(length)).reshape(rows, -1)[:, :n]
    return indices


def _checked(times_a_s: ArrayLike, times_b_s: ArrayLike) -> tuple[FloatArray, FloatArray]:
    a, b = np.asarray(times_a_s, np.float64).ravel(), np.asarray(times_b_s, np.float64).ravel()
    if a.shape != b.shape:
        raise UsageError(f"{len(a)} times of A and {len(b)} of B are not pairs. Time both on the same requests.")
    if not ((a > 0) & (b > 0) & np.isfinite(a) & np.isfinite(b)).all():
        raise UsageError("a time is not a positive number. Leave out failed requests on both sides, and count them.")
    return a, b

"""What an accepted answer costs: money over all answers, failed ones included, per answer that was good enough.

The ratio B over A is resampled by whole pairs (BCa). A price that is unknown gives no ratio: a free answer and an
answer of unknown price are not the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tapwb.core.errors import UsageError
from tapwb.core.reading import Unavailable
from tapwb.metrics.statistics import Interval, bootstrap_ci

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CostRatio:
    """Cost per accepted answer of two systems.

    Attributes:
        per_accepted_a_usd: USD per accepted answer of A.
        per_accepted_b_usd: USD per accepted answer of B.
        ratio: B over A with its interval.
    """

    per_accepted_a_usd: float
    per_accepted_b_usd: float
    ratio: Interval


def cost_per_accepted(
    cost_a_usd: Sequence[float | None],
    cost_b_usd: Sequence[float | None],
    accepted_a: ArrayLike,
    accepted_b: ArrayLike,
    *,
    confidence: float = 0.95,
    n_resamples: int = 2_000,
    seed: int = 0,
) -> CostRatio | Unavailable:
    """Compare what accepted answers cost.

    Args:
        cost_a_usd: USD per item of A; ``None`` where the price is unknown.
        cost_b_usd: The same of B.
        accepted_a: Shape (item,), whether A's answer was good enough.
        accepted_b: The same of B.
        confidence: Coverage aimed at.
        n_resamples: Resamples of items.
        seed: Seed of the resampling.

    Returns:
        Both costs and their ratio, or why there are none: an unknown price, no accepted answer, fewer than two items.

    Raises:
        UsageError: If the items do not pair up or a cost is negative.
    """
    n = len(cost_a_usd)
    good_a, good_b = np.asarray(accepted_a, np.float64).ravel(), np.asarray(accepted_b, np.float64).ravel()
    if {len(cost_b_usd), len(good_a), len(good_b)} != {n}:
        raise UsageError("costs and acceptances of both systems are not of the same items. Give one of each per item.")
    unknown = sum(cost is None for cost in (*cost_a_usd, *cost_b_usd))
    if unknown:
        return Unavailable(f"{unknown} of {2 * n} answers have no known price")
    a, b = np.array(cost_a_usd, np.float64), np.array(cost_b_usd, np.float64)
    if (a < 0).any() or (b < 0).any() or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise UsageError("a cost is negative or not finite. Give USD per answer, 0 for a free one.")
    if not good_a.sum() or not good_b.sum() or not a.sum():
        return Unavailable("a system has no accepted answer, or A costs nothing, so that no ratio exists")
    together = np.stack([a, b, good_a, good_b])

    def ratio(items: FloatArray) -> float:
        spent_a, spent_b, kept_a, kept_b = together[:, items.astype(np.int64)].sum(axis=1)
        # A resample without an accepted answer is infinitely dear; a huge finite number keeps its place in the order.
        return float((spent_b / max(kept_b, 1e-9)) / max(spent_a / max(kept_a, 1e-9), 1e-300))

    interval = bootstrap_ci(np.arange(n, dtype=np.float64), ratio, n_resamples, seed, confidence=confidence)
    if isinstance(interval, Unavailable):
        return interval
    return CostRatio(float(a.sum() / good_a.sum()), float(b.sum() / good_b.sum()), interval)

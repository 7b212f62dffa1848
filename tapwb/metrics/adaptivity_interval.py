"""The adaptivity gain with its interval: whole windows are resampled, every precision of a window together.

Uniform widths and the adaptive plan saw the same tokens, so a resample takes a window with all its measurements or not
at all (a paired bootstrap); most of what differs between windows cancels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tapwb.core.errors import UsageError
from tapwb.core.reading import Measured, Reading, Unavailable
from tapwb.metrics.adaptivity import adaptivity_gain_bits
from tapwb.metrics.statistics import bootstrap_ci

Rows = NDArray[np.float64]


def gain_with_interval(
    curve: Mapping[float, ArrayLike],
    mean_bits: ArrayLike,
    damage: ArrayLike,
    *,
    n_resamples: int = 4000,
    seed: int = 0,
) -> Measured:
    """Adaptivity gain in bits with a 95 % interval over windows.

    Args:
        curve: Damage of each window by bits of the baseline: uniform widths, or means of static layer-wise plans.
        mean_bits: Mean bits of the plan in each window, shape (window,).
        damage: Its damage in each window, in the unit of the curve.
        n_resamples: Resamples of windows.
        seed: Seed of the resampling.

    Returns:
        The gain (negative: adaptivity lost), or why there is none. With one window there is no interval.

    Raises:
        UsageError: If the windows of curve, bits and damage differ in number.
    """
    rows = {float(bits): np.asarray(values, np.float64) for bits, values in curve.items()}
    used, suffered = np.asarray(mean_bits, np.float64), np.asarray(damage, np.float64)
    lengths = {len(values) for values in (*rows.values(), used, suffered)}
    if len(lengths) != 1:
        raise UsageError(f"measurements of {sorted(lengths)} windows are not pairs. Measure all on the same windows.")
    gain = adaptivity_gain_bits(
        {bits: float(values.mean()) for bits, values in rows.items()}, float(used.mean()), float(suffered.mean())
    )
    if isinstance(gain, Unavailable):
        return gain

    bits = np.array(sorted(rows))
    together = np.stack([*(rows[at] for at in sorted(rows)), suffered, used])

    def statistic(windows: Rows) -> float:
        *means, damage, spent = map(float, together[:, windows.astype(np.int64)].mean(axis=1))
        return _equivalent_bits(bits, means, damage) - spent

    interval = bootstrap_ci(np.arange(len(used), dtype=np.float64), statistic, n_resamples, seed)
    if isinstance(interval, Unavailable):
        return replace(gain, n=len(used))
    return Reading(gain.value, "bit", gain.source, interval.standard_error, len(used), (interval.low, interval.high))


def difference_with_interval(
    first: ArrayLike, second: ArrayLike, *, n_resamples: int = 4000, seed: int = 0
) -> Measured:
    """Log ratio of two mean damages of the same windows, nats, with a 95 % interval; negative if the first is lower.

    Args:
        first: Damage of each window, positive.
        second: The same for the plan it is compared with.
        n_resamples: Resamples of windows.
        seed: Seed of the resampling.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    interval = bootstrap_ci(
        np.arange(len(a), dtype=np.float64),
        lambda windows: float(np.log(a[windows.astype(int)].mean() / b[windows.astype(int)].mean())),
        n_resamples,
        seed,
    )
    if isinstance(interval, Unavailable):
        return interval
    return interval.to_reading("nat", "measured:paired-windows")


def _equivalent_bits(bits: Rows, means: Sequence[float], damage: float) -> float:
    """As :func:`~tapwb.metrics.adaptivity.equivalent_uniform_bits`, with the end pieces continued.

    Only for resamples: the estimate itself is never extrapolated, but a resample may fall just outside the curve.
    """
    logs = np.log(np.maximum(means, 1e-300))
    piece = int(np.clip(np.searchsorted(-logs, -np.log(max(damage, 1e-300))) - 1, 0, len(bits) - 2))
    slope = (logs[piece + 1] - logs[piece]) or -1e-12
    return float(bits[piece] + (np.log(max(damage, 1e-300)) - logs[piece]) / slope * (bits[piece + 1] - bits[piece]))

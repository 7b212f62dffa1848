"""Intervals and tests that hold at the sample sizes people really have.

The bias-corrected and accelerated bootstrap (BCa; Efron 1987, JASA 82:171) is the default because the percentile
interval covers too little at small n. Tokens of one window are not independent: give their window as ``clusters`` and
whole windows are resampled (Davison and Hinkley 1997, section 3.8), otherwise intervals come out several times too
narrow. Everything is deterministic by ``seed``. NumPy only.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tapwb.core.errors import UsageError
from tapwb.core.reading import Reading, Unavailable

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Statistic = Callable[[FloatArray], float]
Method = Literal["bca", "percentile"]

_NORMAL = NormalDist()
#: Resampled indices held in memory at once.
_BLOCK_ELEMENTS = 4_000_000
#: Above this many units the acceleration is taken from this many groups of units: it converges much sooner.
_JACKKNIFE_UNITS = 500
#: Up to this many units every sign pattern is tried instead of a sample of them.
_EXACT_UNITS = 16


@dataclass(frozen=True, slots=True)
class Interval:
    """A statistic with its interval; ``low, high = interval`` takes the ends.

    Attributes:
        estimate: The statistic of the data as they are.
        low: Lower end.
        high: Upper end.
        confidence: Coverage aimed at, for example 0.95.
        n: Number of values.
        n_clusters: Number of units that were resampled (``n`` without clusters).
        method: How the ends were found.
        standard_error: Standard deviation of the resampled statistic.
    """

    estimate: float
    low: float
    high: float
    confidence: float
    n: int
    n_clusters: int
    method: str
    standard_error: float

    def __iter__(self) -> Iterator[float]:
        return iter((self.low, self.high))

    def map(self, function: Callable[[float], float]) -> "Interval":
        """The interval of a rising function of the statistic (both methods respect such functions exactly)."""
        estimate, low, high = function(self.estimate), function(self.low), function(self.high)
        # Local slope of the function carries the standard error over (delta method).
        step = max(self.standard_error, 1e-12)
        slope = (function(self.estimate + step / 2) - function(self.estimate - step / 2)) / step
        error = abs(slope) * self.standard_error
        return Interval(estimate, low, high, self.confidence, self.n, self.n_clusters, self.method, error)

    def to_reading(self, unit: str, source: str) -> Reading:
        """As a reading; the interval is carried as ``ci95`` only if it is one."""
        is_95 = abs(self.confidence - 0.95) < 1e-9
        return Reading(
            self.estimate, unit, source, self.standard_error, self.n, (self.low, self.high) if is_95 else None
        )


class _Resampled(Protocol):
    """A statistic that can be evaluated on resampled units."""

    n_units: int

    def estimate(self) -> float: ...

    def replicates(self, indices: IntArray) -> FloatArray: ...

    def jackknife(self) -> FloatArray: ...


class _RatioOfSums:
    """Sum of one column over sum of another: means, cluster means and ratios of means are all of this kind."""

    def __init__(self, numerator: FloatArray, denominator: FloatArray) -> None:
        self._top, self._bottom = numerator, denominator
        self.n_units = len(numerator)

    def estimate(self) -> float:
        return float(self._top.sum() / self._bottom.sum())

    def replicates(self, indices: IntArray) -> FloatArray:
        ratio: FloatArray = self._top[indices].sum(axis=1) / self._bottom[indices].sum(axis=1)
        return ratio

    def jackknife(self) -> FloatArray:
        left_out: FloatArray = (self._top.sum() - self._top) / (self._bottom.sum() - self._bottom)
        return left_out


class _AnyStatistic:
    """A Python function of all values of the resampled units."""

    def __init__(self, units: Sequence[FloatArray], statistic: Statistic) -> None:
        self._units, self._statistic = units, statistic
        self.n_units = len(units)

    def estimate(self) -> float:
        return float(self._statistic(np.concatenate(self._units)))

    def replicates(self, indices: IntArray) -> FloatArray:
        return np.array([self._statistic(np.concatenate([self._units[i] for i in row])) for row in indices.tolist()])

    def jackknife(self) -> FloatArray:
        groups = np.array_split(np.arange(self.n_units), min(self.n_units, _JACKKNIFE_UNITS))
        kept = [np.delete(np.arange(self.n_units), group).tolist() for group in groups]
        return np.array([self._statistic(np.concatenate([self._units[i] for i in rest])) for rest in kept])


def bootstrap_ci(
    values: ArrayLike,
    statistic: Statistic | None = None,
    n_resamples: int = 10_000,
    seed: int = 0,
    *,
    clusters: ArrayLike | None = None,
    confidence: float = 0.95,
    method: Method = "bca",
) -> Interval | Unavailable:
    """Bootstrap interval of a statistic of one sample.

    Args:
        values: Shape (n,), finite.
        statistic: Function of an array giving a number; by default the mean (which is also much faster).
        n_resamples: Number of resamples.
        seed: Seed of the resampling.
        clusters: Shape (n,), the group of every value; whole groups are resampled.
        confidence: Coverage aimed at.
        method: ``"bca"`` or ``"percentile"``.

    Returns:
        The interval, or why there is none (fewer than two units).

    Raises:
        UsageError: If values are not finite, lengths differ, or an option is out of range.
    """
    data = _checked(values, "values")
    labels = _labels(clusters, len(data))
    _check_options(n_resamples, confidence, method)
    n_units = int(labels.max()) + 1 if len(data) else 0
    if n_units < 2:
        return Unavailable(f"an interval needs at least 2 independent units, and there are {n_units}")
    resampled: _Resampled
    if statistic is None or statistic is np.mean:
        resampled = _RatioOfSums(_sums(labels, data), _sums(labels, np.ones_like(data)))
    else:
        order = np.argsort(labels, kind="stable")
        bounds = np.cumsum(np.bincount(labels))[:-1]
        resampled = _AnyStatistic(np.split(data[order], bounds), statistic)
    return _interval(resampled, len(data), n_resamples, seed, confidence, method)


def cluster_bootstrap_ci(
    values: ArrayLike, clusters: ArrayLike, n_resamples: int = 10_000, seed: int = 0, **options: Any
) -> Interval | Unavailable:
    """:func:`bootstrap_ci` over whole clusters, for values that come in windows, documents or users."""
    return bootstrap_ci(values, None, n_resamples, seed, clusters=clusters, **options)


def paired_ratio_ci(
    baseline: ArrayLike,
    candidate: ArrayLike,
    n_resamples: int = 10_000,
    seed: int = 0,
    *,
    mean: Literal["arithmetic", "geometric"] = "arithmetic",
    clusters: ArrayLike | None = None,
    confidence: float = 0.95,
    method: Method = "bca",
) -> Interval | Unavailable:
    """Interval of candidate over baseline, measured in pairs.

    Args:
        baseline: Shape (n,), positive.
        candidate: Shape (n,), positive; value i was measured beside baseline i.
        n_resamples: Number of resamples (of pairs).
        seed: Seed of the resampling.
        mean: ``"arithmetic"``: ratio of the means; ``"geometric"``: ratio of the geometric means, for times.
        clusters: Shape (n,), the group of every pair.
        confidence: Coverage aimed at.
        method: ``"bca"`` or ``"percentile"``.

    Raises:
        UsageError: If the samples are not pairs of positive numbers, or an option is out of range.
    """
    bottom, top = _checked(baseline, "baseline"), _checked(candidate, "candidate")
    if bottom.shape != top.shape:
        raise UsageError(f"{len(bottom)} baseline and {len(top)} candidate values are not pairs. Give one of each.")
    if (bottom <= 0).any() or (top <= 0).any():
        raise UsageError("a ratio needs positive values on both sides. Compare differences instead (bootstrap_ci).")
    if mean == "geometric":
        logs = bootstrap_ci(
            np.log(top / bottom), None, n_resamples, seed, clusters=clusters, confidence=confidence, method=method
        )
        return logs if isinstance(logs, Unavailable) else logs.map(math.exp)
    labels = _labels(clusters, len(top))
    _check_options(n_resamples, confidence, method)
    n_units = int(labels.max()) + 1 if len(top) else 0
    if n_units < 2:
        return Unavailable(f"an interval needs at least 2 independent pairs, and there are {n_units}")
    sums = _RatioOfSums(_sums(labels, top), _sums(labels, bottom))
    return _interval(sums, len(top), n_resamples, seed, confidence, method)


def permutation_p_value(
    differences: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    n_resamples: int = 9999,
    seed: int = 0,
    alternative: Literal["two-sided", "greater", "less"] = "two-sided",
) -> float:
    """Probability of a mean difference at least this large if both sides were alike (sign-flip permutation).

    Exact up to 16 units, otherwise ``p = (b + 1) / (B + 1)`` (Phipson and Smyth 2010), which is never zero.

    Args:
        differences: Shape (n,), candidate minus baseline of every pair.
        clusters: Shape (n,), the group of every pair; groups flip as one.
        n_resamples: Number of sign patterns drawn.
        seed: Seed of the draw.
        alternative: Which mean differences count as large: both ways, above zero, below zero.

    Raises:
        UsageError: If there is no difference, or one is not finite.
    """
    data = _checked(differences, "differences")
    if not len(data):
        raise UsageError("no difference to test. Give at least one pair.")
    sums = _sums(_labels(clusters, len(data)), data)
    if alternative == "less":
        sums = -sums
    observed = abs(sums.sum()) if alternative == "two-sided" else sums.sum()
    is_exact = len(sums) <= _EXACT_UNITS
    rng = np.random.default_rng(seed)
    at_least = 0
    total = 2 ** len(sums) if is_exact else n_resamples
    block = max(1, _BLOCK_ELEMENTS // len(sums))
    for start in range(0, total, block):
        size = min(block, total - start)
        if is_exact:
            patterns = np.arange(start, start + size)[:, None] >> np.arange(len(sums))[None, :]
            signs = 1.0 - 2.0 * (patterns & 1)
        else:
            signs = 1.0 - 2.0 * rng.integers(0, 2, (size, len(sums)))
        flipped = signs @ sums
        if alternative == "two-sided":
            flipped = np.abs(flipped)
        # Sums of the same numbers in another order differ in their last bits; those are ties.
        at_least += int((flipped >= observed - 1e-12 * np.abs(sums).sum()).sum())
    return at_least / total if is_exact else (at_least + 1) / (total + 1)


def percentile_ci(values: ArrayLike, quantile: float, confidence: float = 0.95) -> Interval | Unavailable:
    """A percentile with its order-statistic interval, exact for any distribution.

    The number of values below the true quantile is binomial; the ends are the values at its tails. The 95th
    percentile needs 72 values, the 99th 368; with fewer there is no interval and so no percentile worth printing.

    Args:
        values: Shape (n,), finite, independent.
        quantile: In (0, 1), for example 0.95.
        confidence: Least coverage.

    Raises:
        UsageError: If a value is not finite or an option is out of range.
    """
    data = np.sort(_checked(values, "values"))
    if not 0 < quantile < 1 or not 0 < confidence < 1:
        raise UsageError(f"quantile {quantile} and confidence {confidence} must lie between 0 and 1, ends excluded.")
    tail, n = (1 - confidence) / 2, len(data)
    least = math.ceil(math.log(tail) / math.log(max(quantile, 1 - quantile)))
    if n < least:
        return Unavailable(f"n too small: the {quantile:.0%} quantile needs {least} values, and there are {n}")
    cdf = np.cumsum(_binomial(n, quantile))
    # Value k (from 1) lies above the true quantile with probability P(count < k).
    low = int(np.searchsorted(cdf, tail, side="right"))
    high = int(np.searchsorted(cdf, 1 - tail, side="left")) + 1
    low, high = max(low, 1), min(high, n)
    return Interval(
        float(np.quantile(data, quantile)), float(data[low - 1]), float(data[high - 1]),
        confidence, n, n, "order-statistic", float("nan"),
    )  # fmt: skip


def _interval(
    resampled: _Resampled, n: int, n_resamples: int, seed: int, confidence: float, method: Method
) -> Interval:
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK_ELEMENTS // resampled.n_units)
    parts = []
    for start in range(0, n_resamples, block):
        size = min(block, n_resamples - start)
        parts.append(resampled.replicates(rng.integers(0, resampled.n_units, (size, resampled.n_units))))
    replicates = np.concatenate(parts)
    estimate = resampled.estimate()
    tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    if method == "bca":
        tails = _bca_tails(replicates, estimate, resampled.jackknife(), tails)
    low, high = np.quantile(replicates, tails)
    error = float(replicates.std(ddof=1)) if n_resamples > 1 else 0.0
    return Interval(estimate, float(low), float(high), confidence, n, resampled.n_units, method, error)


def _bca_tails(replicates: FloatArray, estimate: float, left_out: FloatArray, tails: FloatArray) -> FloatArray:
    """Corrected tail probabilities (Efron 1987, equations 2.3 and 6.6); ties count half, for discrete data."""
    # The same values summed in another order differ in their last bits; those are ties.
    hair = 1e-9 * float(np.ptp(replicates))
    tied = float((np.abs(replicates - estimate) <= hair).mean())
    below = float((replicates < estimate - hair).mean()) + 0.5 * tied
    edge = 0.5 / len(replicates)
    bias = _NORMAL.inv_cdf(min(max(below, edge), 1 - edge))
    skewed = left_out.mean() - left_out
    skewed = skewed / max(float(np.abs(skewed).max()), 1e-300)  # the acceleration has no unit; tiny cubes underflow
    spread = float((skewed**2).sum())
    acceleration = float((skewed**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0
    corrected = []
    for tail in tails:
        z = bias + _NORMAL.inv_cdf(float(tail))
        corrected.append(_NORMAL.cdf(bias + z / max(1 - acceleration * z, 1e-9)))
    return np.array(corrected)


def _binomial(n: int, probability: float) -> FloatArray:
    """Probability of 0..n successes, by logarithms so that large n does not underflow."""
    counts = np.arange(n + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    choose = log_factorial[n] - log_factorial[counts] - log_factorial[n - counts]
    mass: FloatArray = np.exp(choose + counts * math.log(probability) + (n - counts) * math.log1p(-probability))
    return mass


def _checked(values: ArrayLike, name: str) -> FloatArray:
    data = np.asarray(values, dtype=np.float64).ravel()
    bad = int((~np.isfinite(data)).sum())
    if bad:
        raise UsageError(f"{bad} of {len(data)} {name} are not finite. Drop them, and say how many were dropped.")
    return data


def _labels(clusters: ArrayLike | None, n: int) -> IntArray:
    """Clusters as numbers from 0 in order of first sorting; every value its own cluster by default."""
    if clusters is None:
        return np.arange(n, dtype=np.int64)
    labels = np.asarray(clusters).ravel()
    if len(labels) != n:
        raise UsageError(f"{len(labels)} cluster labels for {n} values. Give one label per value.")
    return np.unique(labels, return_inverse=True)[1].astype(np.int64).ravel()


def _sums(labels: IntArray, values: FloatArray) -> FloatArray:
    """Sum of the values of every cluster."""
    return np.bincount(labels, weights=values).astype(np.float64)


def _check_options(n_resamples: int, confidence: float, method: str) -> None:
    if n_resamples < 1 or not 0 < confidence < 1 or method not in ("bca", "percentile"):
        raise UsageError(
            f"n_resamples={n_resamples}, confidence={confidence}, method={method!r}: give at least one resample, a "
            "confidence between 0 and 1, and 'bca' or 'percentile'."
        )

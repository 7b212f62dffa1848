"""How a cost grows with the length of a text: a fitted ``a + b n + c n^2``, and where two such curves cross.

Coefficients are never negative, since no part of a cost is, and errors are relative, since a clock's are: the fit
minimises the sum of ``((y - f(n)) / y)^2``. Lengths beyond the measured ones are extrapolations and say so. Intervals
come from resampling the repetitions at each length; they hold what repetitions scatter, not what a wrong shape of curve
would add, so a curve of another shape is told by ``largest_error``.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tapwb.core.errors import UsageError
from tapwb.core.reading import Unavailable

FloatArray = NDArray[np.float64]
_TERMS = 3
_RESAMPLES = 1000
_TAILS = (2.5, 97.5)


@dataclass(frozen=True, slots=True)
class GrowthCurve:
    """``a + b n + c n^2`` of one cost.

    Attributes:
        coefficients: ``(a, b, c)``.
        replicates: The same of every resample, shape (resample, 3).
        measured_to: The largest length that was measured.
        largest_error: The largest relative distance of a measured median from the curve.
    """

    coefficients: FloatArray
    replicates: FloatArray
    measured_to: int
    largest_error: float

    def at(self, n_tokens: int) -> tuple[float, float, float]:
        """The cost at a length, and its 95 % interval: ``(value, low, high)``."""
        powers = _powers(np.array([n_tokens]))[0]
        low, high = np.percentile(self.replicates @ powers, _TAILS)
        return float(self.coefficients @ powers), float(low), float(high)

    def is_measured(self, n_tokens: int) -> bool:
        """Whether a length lies within what was measured; beyond it the curve is an extrapolation."""
        return n_tokens <= self.measured_to

    def to_json(self) -> dict[str, Any]:
        """Coefficients with their intervals, per token and per squared token."""
        names = ("a", "b_per_token", "c_per_token_squared")
        bounds = np.percentile(self.replicates, _TAILS, axis=0)
        return {
            **{
                name: {"value": float(value), "ci95": [float(low), float(high)]}
                for name, value, low, high in zip(names, self.coefficients, *bounds, strict=True)
            },
            "measured_to_tokens": self.measured_to,
            "largest_relative_error": self.largest_error,
        }


@dataclass(frozen=True, slots=True)
class Crossover:
    """The length from which on the first of two costs stays above the second.

    Attributes:
        n_tokens: That length.
        low: Lower end of its 95 % interval.
        high: Upper end; infinite where more than one resample in forty has no crossing.
        is_extrapolated: Whether it lies beyond what was measured of either curve.
    """

    n_tokens: float
    low: float
    high: float
    is_extrapolated: bool

    def to_json(self) -> dict[str, Any]:
        """Infinity is no JSON, so an open end is ``null``."""
        high = self.high if np.isfinite(self.high) else None
        return {"n_tokens": self.n_tokens, "ci95": [self.low, high], "is_extrapolated": self.is_extrapolated}


def fit_growth(costs: Mapping[int, Sequence[float]], *, seed: int = 0) -> GrowthCurve:
    """Fit the curve to repeated measurements.

    Args:
        costs: For each length in tokens what was measured there, in any one unit, all above zero.
        seed: Of the resampling.

    Raises:
        UsageError: If there are fewer than three lengths, or a cost is not above zero.
    """
    lengths = np.array(sorted(costs))
    values = [np.asarray(costs[int(n)], dtype=np.float64) for n in lengths]
    if len(lengths) < _TERMS or any(not len(v) or not (np.isfinite(v) & (v > 0)).all() for v in values):
        raise UsageError(
            f"a curve a + b n + c n^2 needs at least {_TERMS} lengths with costs above zero; got {len(lengths)}: "
            f"{lengths.tolist()}. Measure more lengths."
        )
    generator = np.random.default_rng(seed)
    medians = np.array([np.median(v) for v in values])
    resampled = [np.median(generator.choice(v, (_RESAMPLES, len(v))), axis=1) for v in values]
    fitted = _fitted(lengths, np.vstack([medians, np.stack(resampled, axis=1)]))
    coefficients, replicates = fitted[0], fitted[1:]
    errors = np.abs(_powers(lengths) @ coefficients / medians - 1)
    return GrowthCurve(coefficients, replicates, int(lengths[-1]), float(errors.max()))


def crossover(steeper: GrowthCurve, flatter: GrowthCurve) -> Crossover | Unavailable:
    """From which length on one cost is above the other for good.

    Args:
        steeper: The cost that grows faster in the end.
        flatter: The other.

    Returns:
        The length, or why there is none: the first never gets above the second, or always is.
    """
    found = _last_crossing(steeper.coefficients - flatter.coefficients)
    if not np.isfinite(found):
        return Unavailable("the first cost stays below the second at every length")
    if found <= 0:
        return Unavailable("the first cost is above the second at every length")
    differences = steeper.replicates - flatter.replicates
    each = np.sort([max(_last_crossing(row), 0.0) for row in differences])
    # By rank, since a resample without a crossing is infinite and percentiles cannot interpolate to it.
    low, high = (each[round(q / 100 * (len(each) - 1))] for q in _TAILS)
    measured_to = min(steeper.measured_to, flatter.measured_to)
    return Crossover(float(found), float(low), float(high), bool(found > measured_to))


def _powers(lengths: NDArray[Any]) -> FloatArray:
    n = lengths.astype(np.float64)
    return np.stack([np.ones_like(n), n, n * n], axis=-1)


def _fitted(lengths: NDArray[Any], costs: FloatArray) -> FloatArray:
    """Least squares of relative errors without negative coefficients: the best of all choices of terms.

    Args:
        lengths: Shape (length,).
        costs: Shape (fit, length).

    Returns:
        Shape (fit, 3).
    """
    # Columns are scaled to one at the largest length: squares of lengths would swamp the rest.
    scale = _powers(lengths[-1:])[0]
    columns = _powers(lengths) / scale / costs[:, :, None]
    best, least = np.zeros((len(costs), _TERMS)), np.full(len(costs), np.inf)
    for n_terms in range(1, _TERMS + 1):
        for terms in itertools.combinations(range(_TERMS), n_terms):
            some = columns[:, :, terms]
            found = np.linalg.pinv(some).sum(axis=2)  # times a vector of ones
            loss = ((np.einsum("flt,ft->fl", some, found) - 1) ** 2).sum(axis=1)
            is_better = (found >= 0).all(axis=1) & (loss < least)
            least[is_better] = loss[is_better]
            best[is_better] = 0
            best[np.ix_(is_better, terms)] = found[is_better]
    fitted: FloatArray = best / scale
    return fitted


def _last_crossing(difference: FloatArray) -> float:
    """Where ``a + b n + c n^2`` turns positive for good; 0 where it always is, infinity where it never does."""
    a, b, c = (float(x) for x in difference)
    if c < 0 or (c == 0 and (b < 0 or (b == 0 and a <= 0))):
        return float("inf")
    if c == 0:
        return 0.0 if a >= 0 else -a / b if b > 0 else float("inf")
    inside = b * b - 4 * a * c
    return 0.0 if inside < 0 else max(0.0, (-b + float(np.sqrt(inside))) / (2 * c))

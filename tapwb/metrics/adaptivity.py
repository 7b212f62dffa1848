"""Does choosing tokens pay? Two numbers that can come out negative.

*Adaptivity gain* (bits): the uniform bit-width that would give the same quality, minus the mean bits really used.
*Oracle share*: that gain over the gain of an oracle that knows every token's true damage.

Damage falls by a roughly constant factor per bit, so the uniform curve is interpolated linearly in its logarithm
between neighbouring widths, and never extrapolated: a quality outside the measured curve has no gain.
"""

import itertools
import math
from collections.abc import Mapping

from tapwb.core.errors import UsageError
from tapwb.core.reading import Measured, Reading, Unavailable

_SOURCE = "measured:log-linear-interpolation"


def equivalent_uniform_bits(uniform_curve: Mapping[float, float], damage: float) -> Measured:
    """Uniform bits at which the damage would be the same.

    Args:
        uniform_curve: Damage (KL divergence in nats, excess loss, ...; positive, lower is better) by uniform bits.
        damage: Damage to place on the curve.

    Returns:
        Bits, or why the damage has no place on the curve: outside it, not positive, or on a curve that does not fall.
    """
    if len(uniform_curve) < 2:
        return Unavailable(f"interpolation needs at least 2 uniform widths, and there are {len(uniform_curve)}")
    points = sorted((float(bits), float(value)) for bits, value in uniform_curve.items())
    if not all(math.isfinite(bits) and math.isfinite(value) and value > 0 for bits, value in points):
        return Unavailable("the uniform curve has a damage that is not a positive number, so it has no logarithm")
    if not (math.isfinite(damage) and damage > 0):
        return Unavailable(f"a damage of {damage:g} has no logarithm: measure on more tokens")
    if any(low[1] <= high[1] for low, high in itertools.pairwise(points)):
        return Unavailable("the uniform curve does not fall with bits: measure on more tokens")
    worst, best = points[0], points[-1]
    if not best[1] <= damage <= worst[1]:
        side, edge = ("worse", worst) if damage > worst[1] else ("better", best)
        return Unavailable(
            f"a damage of {damage:.3g} is {side} than uniform {edge[0]:g} bits ({edge[1]:.3g}): "
            f"measure a uniform width {'below' if side == 'worse' else 'above'} it, nothing is extrapolated"
        )
    for (low_bits, low_damage), (high_bits, high_damage) in itertools.pairwise(points):
        if high_damage <= damage <= low_damage:
            share = math.log(low_damage / damage) / math.log(low_damage / high_damage)
            return Reading(low_bits + share * (high_bits - low_bits), "bit", _SOURCE)
    raise AssertionError("a falling curve encloses every damage between its ends")


def adaptivity_gain_bits(uniform_curve: Mapping[float, float], mean_bits: float, quality: float) -> Measured:
    """Bits that adaptivity saved: equivalent uniform bits minus mean bits used. Negative: it lost.

    Args:
        uniform_curve: Damage by uniform bits, see :func:`equivalent_uniform_bits`.
        mean_bits: Mean bits of the adaptive plan.
        quality: Its damage, in the unit of the curve.

    Raises:
        UsageError: If ``mean_bits`` is not positive.
    """
    if not mean_bits > 0:
        raise UsageError(f"mean bits of {mean_bits} make no plan. Give the mean bits that were really used.")
    uniform_bits = equivalent_uniform_bits(uniform_curve, quality)
    if isinstance(uniform_bits, Unavailable):
        return uniform_bits
    return Reading(uniform_bits.value - mean_bits, "bit", _SOURCE)


def damage_at_bits(curve: Mapping[float, float], bits: float) -> Measured:
    """Damage at these bits, between the measured ones of a curve: log-linear, and never extrapolated.

    Args:
        curve: Damage in nats by mean bits.
        bits: Where to read it.
    """
    points = sorted((float(at), float(value)) for at, value in curve.items())
    if not points or not points[0][0] - 1e-9 <= bits <= points[-1][0] + 1e-9:
        span = f"{points[0][0]:g} to {points[-1][0]:g}" if points else "no"
        return Unavailable(f"{bits:g} bits lie outside what was measured ({span} bits): nothing is extrapolated")
    for at, value in points:
        if abs(at - bits) < 1e-9:
            return Reading(value, "nat", "measured:mean over windows")
    (low, below), (high, above) = next(pair for pair in itertools.pairwise(points) if pair[1][0] >= bits)
    if below <= 0 or above <= 0:
        return Unavailable("a damage that is not positive has no logarithm: measure on more tokens")
    share = (bits - low) / (high - low)
    return Reading(math.exp((1 - share) * math.log(below) + share * math.log(above)), "nat", _SOURCE)


def oracle_share(gain_bits: Measured, oracle_gain_bits: Measured) -> Measured:
    """Share of the possible gain that was reached: 1 equals the oracle, 0 uniform, negative worse than uniform."""
    if isinstance(gain_bits, Unavailable):
        return gain_bits
    if isinstance(oracle_gain_bits, Unavailable):
        return oracle_gain_bits
    if oracle_gain_bits.value <= 0:
        return Unavailable(
            f"the oracle itself gains {oracle_gain_bits.value:.3g} bits at these levels: nothing to have a share of"
        )
    return Reading(gain_bits.value / oracle_gain_bits.value, "1", _SOURCE)

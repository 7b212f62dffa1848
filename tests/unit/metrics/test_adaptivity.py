"""Does choosing tokens pay: against hand-made curves whose answer is known."""

import math

import pytest

from tapwb.core.errors import UsageError
from tapwb.core.reading import Reading, Unavailable
from tapwb.metrics.adaptivity import adaptivity_gain_bits, equivalent_uniform_bits, oracle_share

#: Damage that falls exactly 3.5-fold a bit.
CURVE = {bits: 3.5 ** (4 - bits) for bits in (3, 4, 5, 6, 8)}


@pytest.mark.parametrize("bits", [3, 3.3, 4, 5.5, 6.9, 8])
def test_a_point_on_an_exponential_curve_is_found_exactly(bits):
    """Log-linear interpolation is exact where the logarithm is linear, also across a gap of two bits."""
    assert equivalent_uniform_bits(CURVE, 3.5 ** (4 - bits)).value == pytest.approx(bits)


def test_the_gain_is_equivalent_bits_minus_bits_used():
    """Damage of uniform 5.2 bits reached with 5.0 bits is a gain of 0.2."""
    gain = adaptivity_gain_bits(CURVE, 5.0, 3.5 ** (4 - 5.2))
    assert gain.value == pytest.approx(0.2)
    assert gain.unit == "bit"


def test_a_bad_plan_loses_bits():
    """The gain is negative and says so."""
    assert adaptivity_gain_bits(CURVE, 5.0, 3.5 ** (4 - 4.6)).value == pytest.approx(-0.4)


def test_uniform_itself_gains_nothing():
    """The control of the control."""
    for bits, damage in CURVE.items():
        assert adaptivity_gain_bits(CURVE, bits, damage).value == pytest.approx(0, abs=1e-12)


def test_the_published_table_gives_its_gains():
    """Levels 4 and 5 at a mean of 4.5: oracle 0.21 bits, own entropy 0.14, random below zero."""
    uniform = {4: 0.191**2 / 0.102, 5: 0.102, 6: 0.047**2 / 0.102}
    slope = math.log(uniform[4] / uniform[5])
    gains = {damage: adaptivity_gain_bits(uniform, 4.5, damage).value for damage in (0.146, 0.160, 0.225)}
    assert gains[0.146] == pytest.approx(math.log(0.191 / 0.146) / slope)
    assert gains[0.160] == pytest.approx(0.141, abs=1e-3)
    assert gains[0.225] < -0.1


def test_neighbours_are_used_not_the_whole_curve():
    """A kink elsewhere does not move the answer."""
    bent = {4: 1.0, 5: 0.5, 6: 0.25, 8: 1e-6}
    assert equivalent_uniform_bits(bent, 0.5**1.5).value == pytest.approx(5.5)


@pytest.mark.parametrize(
    ("curve", "damage", "reason"),
    [
        (CURVE, 10.0, "worse than uniform 3 bits"),
        (CURVE, 1e-9, "better than uniform 8 bits"),
        ({4: 0.5}, 0.5, "at least 2"),
        ({4: 0.5, 5: 0.6}, 0.55, "does not fall"),
        ({4: 0.5, 5: 0.5}, 0.5, "does not fall"),
        ({4: 0.5, 5: 0.0}, 0.3, "not a positive number"),
        (CURVE, 0.0, "no logarithm"),
        (CURVE, math.nan, "no logarithm"),
    ],
)
def test_outside_what_was_measured_there_is_no_gain(curve, damage, reason):
    """Nothing is extrapolated, and the reason says what to measure."""
    found = adaptivity_gain_bits(curve, 5.0, damage)
    assert isinstance(found, Unavailable)
    assert reason in found.reason


def test_a_plan_without_bits_is_refused():
    """Zero mean bits is a mistake of the caller."""
    with pytest.raises(UsageError):
        adaptivity_gain_bits(CURVE, 0, 0.5)


def test_the_oracle_share_is_a_share_of_what_is_possible():
    """Half of the oracle's gain; without a gain of the oracle there is nothing to share."""
    half, whole = Reading(0.1, "bit", "measured:x"), Reading(0.2, "bit", "measured:x")
    assert oracle_share(half, whole).value == pytest.approx(0.5)
    assert "nothing to have a share of" in oracle_share(half, Reading(-0.1, "bit", "measured:x")).reason
    assert oracle_share(Unavailable("no run"), whole) == Unavailable("no run")
    assert oracle_share(half, Unavailable("no oracle")) == Unavailable("no oracle")

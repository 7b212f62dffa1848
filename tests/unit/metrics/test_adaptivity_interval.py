"""The gain's interval: paired by window, and wide enough to hold the truth.

Seed features: S1.34
"""

import numpy as np
import pytest

from tapwb.core.errors import UsageError
from tapwb.core.reading import Reading, Unavailable
from tapwb.metrics.adaptivity_interval import difference_with_interval, gain_with_interval


def windows(n, seed=0):
    """A uniform curve that halves per bit, with windows of very different difficulty."""
    hardness = np.random.default_rng(seed).lognormal(0, 1, n)
    return hardness, {bits: hardness * 2.0**-bits for bits in (4, 5, 6, 8)}


def test_the_gain_is_the_log_linear_one_and_windows_cancel():
    """A plan as good as 5.25 uniform bits at 5 bits gains 0.25; that windows differ widens nothing."""
    hardness, curve = windows(12)
    gain = gain_with_interval(curve, np.full(12, 5.0), hardness * 2.0**-5.25)
    assert isinstance(gain, Reading)
    assert gain.value == pytest.approx(0.25)
    assert gain.ci95 == pytest.approx((0.25, 0.25))
    assert gain.n == 12


def test_noise_between_windows_widens_the_interval_around_the_truth():
    """True gain 0.1, noise of 20 percent a window: over many tries the interval holds it about 95 times in 100."""
    held = 0
    for seed in range(60):
        hardness, curve = windows(20, seed)
        noise = np.random.default_rng(1000 + seed).lognormal(-0.02, 0.2, 20)
        gain = gain_with_interval(curve, np.full(20, 5.0), hardness * 2.0**-5.1 * noise, n_resamples=300)
        held += gain.ci95[0] <= 0.1 <= gain.ci95[1]
    assert 50 <= held < 60


def test_resamples_beyond_the_curve_do_not_break_the_interval():
    """The estimate is on the curve though single windows lie outside."""
    curve = {4: np.array([1.0, 1.0, 1.0]), 8: np.array([0.1, 0.1, 0.1])}
    gain = gain_with_interval(curve, np.full(3, 5.0), np.array([0.05, 0.3, 1.4]), n_resamples=200)
    assert gain.ci95[0] < gain.value < gain.ci95[1]


def test_what_has_no_gain_says_why():
    """Off the curve there is a reason; one window has a value without an interval; unequal lengths are an error."""
    hardness, curve = windows(4)
    assert isinstance(gain_with_interval(curve, np.full(4, 5.0), hardness * 2.0**-9), Unavailable)
    one = gain_with_interval({b: v[:1] for b, v in curve.items()}, [5.0], hardness[:1] * 2.0**-5.5)
    assert one.value == pytest.approx(0.5)
    assert one.ci95 is None
    with pytest.raises(UsageError, match="not pairs"):
        gain_with_interval(curve, [5.0], hardness)


def test_the_difference_of_two_plans_is_paired_too():
    """Twenty percent less damage in every window: no spread at all."""
    hardness, _ = windows(9)
    found = difference_with_interval(0.8 * hardness, hardness)
    assert found.value == pytest.approx(np.log(0.8))
    assert found.ci95 == pytest.approx((np.log(0.8),) * 2)

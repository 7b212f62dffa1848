"""Fitted growth: known curves come back, crossings lie where they must, intervals cover.

Seed features: S0.4
"""

import numpy as np
import pytest

from tapwb.core.errors import UsageError
from tapwb.core.reading import Unavailable
from tapwb.metrics.growth import crossover, fit_growth

LENGTHS = (1024, 2048, 4096, 8192, 16384)


def costs_of(a, b, c, noise=0.0, repeats=5, seed=0):
    """Repeated costs of a curve, each off by a factor."""
    generator = np.random.default_rng(seed)
    return {
        n: [(a + b * n + c * n * n) * float(np.exp(noise * generator.standard_normal())) for _ in range(repeats)]
        for n in LENGTHS
    }


@pytest.mark.parametrize("curve", [(0.1, 1e-3, 1e-8), (0.0, 2e-3, 0.0), (0.5, 0.0, 3e-8), (0.2, 1e-3, 0.0)])
def test_a_curve_without_noise_comes_back(curve):
    """Also where terms are absent: none turns negative to please another."""
    fitted = fit_growth(costs_of(*curve))
    for n in (*LENGTHS, 200_000):
        exact = curve[0] + curve[1] * n + curve[2] * n * n
        value, low, high = fitted.at(n)
        assert value == pytest.approx(exact, rel=1e-6)
        assert low == pytest.approx(high) == pytest.approx(exact, rel=1e-6)
    assert fitted.largest_error < 1e-6
    assert fitted.is_measured(16384)
    assert not fitted.is_measured(16385)


def test_coefficients_are_never_negative_whatever_is_measured():
    """Even of costs that fall with length."""
    falling = {n: [10.0 - n / 4096, 10.1 - n / 4096] for n in LENGTHS}
    fitted = fit_growth(falling)
    assert (fitted.coefficients >= 0).all()
    assert (fitted.replicates >= 0).all()
    assert fitted.largest_error > 0.1  # and says that the curve does not fit


def test_the_crossing_is_where_the_curves_meet():
    """Of a quadratic and a straight line, by the formula, within the measured lengths and beyond."""
    attention, state = fit_growth(costs_of(0.0, 1e-4, 2e-8)), fit_growth(costs_of(0.0, 2.6e-4, 0.0))
    found = crossover(attention, state)
    assert found.n_tokens == pytest.approx(8000, rel=1e-4)
    assert not found.is_extrapolated
    far = crossover(attention, fit_growth(costs_of(0.0, 2.1e-3, 0.0)))
    assert far.n_tokens == pytest.approx(100_000, rel=1e-4)
    assert far.is_extrapolated


def test_curves_that_do_not_cross_say_which_way():
    """A reason instead of a number."""
    low, high = fit_growth(costs_of(0.1, 1e-4, 0.0)), fit_growth(costs_of(0.2, 2e-4, 1e-8))
    never, always = crossover(low, high), crossover(high, low)
    assert isinstance(never, Unavailable)
    assert "stays below" in never.reason
    assert isinstance(always, Unavailable)
    assert "every length" in always.reason


def test_the_interval_of_the_crossing_covers_the_truth():
    """Of 60 noisy pairs of curves at least 51 hold the true length: 95 % less what medians of nine cost."""
    n_covered = 0
    for seed in range(60):
        attention = fit_growth(costs_of(0.0, 1e-4, 2e-8, 0.05, 9, seed), seed=seed)
        state = fit_growth(costs_of(0.0, 2.6e-4, 0.0, 0.05, 9, 1000 + seed), seed=seed)
        found = crossover(attention, state)
        n_covered += found.low <= 8000 <= found.high
    assert n_covered >= 51


def test_an_interval_without_an_upper_end_is_open_in_json():
    """Some resamples have no crossing at all."""
    attention = fit_growth({n: [1e-4 * n, 1.01e-4 * n, 1e-4 * n + 1e-10 * n * n] for n in LENGTHS})
    state = fit_growth({n: [1.005e-4 * n] for n in LENGTHS})
    found = crossover(attention, state)
    assert not isinstance(found, Unavailable)
    assert found.to_json()["ci95"][1] is None


@pytest.mark.parametrize("costs", [{1024: [1.0], 2048: [2.0]}, {1: [1.0], 2: [0.0], 3: [1.0]}, {1: [], 2: [1], 3: [1]}])
def test_too_little_to_fit_is_refused(costs):
    """Two lengths, a cost of nothing, a length without a measurement."""
    with pytest.raises(UsageError, match="at least 3 lengths"):
        fit_growth(costs)

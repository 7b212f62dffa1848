"""Intervals of a few windows: the quantiles of the printed tables, and coverage at every look together."""

import math

import numpy as np
import pytest

from tapwb.core.errors import UsageError
from tapwb.core.reading import Reading, Unavailable
from tapwb.metrics.degeneration import repeated_share
from tapwb.metrics.few_windows import mean_interval, t_cdf, t_quantile


@pytest.mark.parametrize(
    ("probability", "freedom", "printed"),
    [
        (0.975, 1, 12.7062),
        (0.975, 2, 4.30265),
        (0.975, 3, 3.18245),
        (0.975, 7, 2.36462),
        (0.95, 10, 1.81246),
        (0.995, 30, 2.75000),
        (0.995, 31, 2.74404),
    ],
)
def test_quantiles_are_those_of_the_tables(probability, freedom, printed):
    """Odd and even degrees of freedom, to the digits that are printed; the distribution is their inverse."""
    assert t_quantile(probability, freedom) == pytest.approx(printed, abs=6e-6)
    assert t_cdf(t_quantile(probability, freedom), freedom) == pytest.approx(probability)


def test_stopping_when_the_answer_is_clear_is_wrong_no_more_often_than_it_says():
    """Looking at 4, 8, 16 and 32 values and stopping at the first interval without the truth: at most 5 % of runs."""
    looks, n_runs = (4, 8, 16, 32), 1500
    values = np.random.default_rng(0).normal(0.7, 1.0, (n_runs, 32))

    def share_wrong(correction: int) -> float:
        wrong = 0
        for row in values:
            ends = [mean_interval(row[:n].tolist(), looks=correction) for n in looks]
            wrong += any(not one.low <= 0.7 <= one.high for one in ends)
        return wrong / n_runs

    chance = 2 * math.sqrt(0.05 * 0.95 / n_runs)
    assert share_wrong(len(looks)) < 0.05 + chance < share_wrong(1)


def test_one_value_has_no_interval_and_odd_input_is_refused():
    """Said in words; a value that is no number is an error, not a wide interval."""
    assert isinstance(mean_interval([1.0]), Unavailable)
    assert isinstance(mean_interval([]), Unavailable)
    with pytest.raises(UsageError, match="not finite"):
        mean_interval([1.0, float("nan")])
    with pytest.raises(UsageError, match="not usable"):
        mean_interval([1.0, 2.0], confidence=1.0)
    with pytest.raises(UsageError, match="no quantile"):
        t_quantile(0.2, 3)


def test_loops_are_told_from_prose():
    """A loop of three repeats all but its first runs; different tokens repeat none; two words are no text."""
    loop = repeated_share([1, 2, 3] * 10)
    assert isinstance(loop, Reading)
    assert loop.value == pytest.approx(1 - 3 / 27)
    assert repeated_share(list(range(30))) == Reading(0.0, "1", "measured:repeated runs of 4 tokens", n=27)
    assert isinstance(repeated_share([1, 2, 3, 4]), Unavailable)

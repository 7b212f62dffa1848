"""A saving exists only between two runs read by the same instrument.

Seed features: S1.33
"""

import math

import pytest

from tapwb.core.errors import UsageError
from tapwb.core.reading import Reading, Unavailable
from tapwb.metrics.energy import energy_per_token_j, energy_saved_pct
from tapwb.monitors.energy import EnergyReading

COUNTER, MODEL = "measured:nvml-total-energy", "estimated:bytes-and-ops"


def window(total_j, source=COUNTER, idle_j=10.0, uncertainty=None):
    """A reading of ten seconds."""
    total = Reading(total_j, "J", source, uncertainty)
    return EnergyReading(
        total, Reading(total_j - idle_j, "J", source), Reading(total_j / 10, "W", source), 10.0, source
    )


def test_the_saving_is_percent_of_the_baseline_with_its_source():
    """60 J instead of 100 J by one counter: 40 %, measured, printable with two decimals."""
    saved = energy_saved_pct(window(100), window(60))
    assert f"{saved:.2f}" == "40.00"
    assert (saved.unit, saved.source) == ("%", COUNTER)


def test_more_energy_is_a_negative_saving():
    """It is not cut at zero."""
    assert energy_saved_pct(window(100), window(150)).value == pytest.approx(-50)


def test_two_estimates_give_an_estimate():
    """Never called measured."""
    saved = energy_saved_pct(window(100, MODEL), window(80, MODEL))
    assert saved.source == MODEL
    assert not saved.is_measured


@pytest.mark.parametrize(
    ("baseline", "candidate", "reason"),
    [
        (None, window(60), "no matched run"),
        (Unavailable("skipped"), window(60), "no baseline energy: skipped"),
        (window(100), Unavailable("no window"), "no window"),
        (window(100), window(60, MODEL), "read both the same way"),
        (window(100, MODEL), window(60), "read both the same way"),
        (window(100), window(60, COUNTER + "+rapl-package"), "read both the same way"),
        (window(0), window(60), "nothing to save from"),
    ],
)
def test_without_a_matched_pair_there_is_no_saving_and_printing_survives(baseline, candidate, reason):
    """The reason is printed where the number would be."""
    saved = energy_saved_pct(baseline, candidate)
    assert isinstance(saved, Unavailable)
    assert reason in f"{saved:.2f}"


def test_runs_of_different_length_are_compared_per_token():
    """120 J for 40 tokens against 100 J for 20 tokens saves 40 %."""
    saved = energy_saved_pct(window(100), window(120), baseline_tokens=20, candidate_tokens=40)
    assert saved.value == pytest.approx(40)


def test_idle_subtracted_energy_is_compared_on_request():
    """(100 - 10) against (55 - 10): half."""
    assert energy_saved_pct(window(100), window(55), which="idle_subtracted").value == pytest.approx(50)


def test_errors_of_two_measurements_add_in_quadrature_and_model_errors_cancel():
    """One per cent each gives sqrt(2) per cent at equal energies."""
    saved = energy_saved_pct(window(100, uncertainty=1.0), window(100, uncertainty=1.0))
    assert saved.uncertainty == pytest.approx(math.sqrt(2))
    assert energy_saved_pct(window(100, MODEL, uncertainty=50), window(90, MODEL, uncertainty=45)).uncertainty is None


def test_energy_per_token_needs_tokens():
    """Joules per token with the count behind it; zero tokens is a mistake."""
    per_token = energy_per_token_j(window(100, uncertainty=5.0), 50)
    assert (per_token.value, per_token.unit, per_token.n, per_token.uncertainty) == (2.0, "J/token", 50, 0.1)
    with pytest.raises(UsageError):
        energy_per_token_j(window(100), 0)

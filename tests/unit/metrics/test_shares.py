"""Intervals of shares that stay honest for a handful of answers."""

import itertools

import numpy as np
import pytest

from tapwb.core.errors import UsageError
from tapwb.metrics.shares import paired_difference, share


def test_a_share_has_the_published_wilson_interval():
    """Newcombe 1998, Statistics in Medicine 17:857, table I: 81 of 263 and 0 of 20."""
    found = share([True] * 81 + [False] * 182, "measured:test")
    assert found.ci95 == pytest.approx((0.2553, 0.3662), abs=5e-4)
    assert share([False] * 20, "measured:test").ci95 == pytest.approx((0.0, 0.1611), abs=5e-4)


def test_answers_that_all_agree_still_leave_room():
    """No difference in ten pairs is not certainty."""
    found = paired_difference([True] * 10, [True] * 10, "measured:test")
    assert found.value == 0
    assert found.ci95[0] < -0.1
    assert found.ci95[1] > 0.1


def test_only_items_that_changed_decide():
    """Sign and size by hand: three won, one lost, of forty."""
    candidate = [True] * 3 + [False] + [True] * 36
    baseline = [False] * 3 + [True] + [True] * 36
    found = paired_difference(candidate, baseline, "measured:test")
    assert found.value == pytest.approx(2 / 40)
    assert found.ci95[0] < found.value < found.ci95[1]
    swapped = paired_difference(baseline, candidate, "measured:test")
    assert swapped.ci95 == pytest.approx((-found.ci95[1], -found.ci95[0]))


def test_the_paired_interval_covers_the_truth():
    """In 2,000 samples of 40 pairs whose true difference is known, about 95 in 100 intervals hold it."""
    made = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        outcome = made.choice(4, size=40, p=[0.12, 0.05, 0.53, 0.30])  # won, lost, both, neither
        candidate, baseline = (outcome == 0) | (outcome == 2), (outcome == 1) | (outcome == 2)
        low, high = paired_difference(candidate.tolist(), baseline.tolist(), "measured:test").ci95
        held += low <= 0.07 <= high
    assert 0.93 < held / 2000 < 0.98


def test_shares_stay_between_none_and_all():
    """At the edges the interval ends at the edge and holds the estimate."""
    for right, n in itertools.product((0, 1), (1, 2, 50)):
        found = share([bool(right)] * n, "measured:test")
        assert 0 <= found.ci95[0] <= found.value <= found.ci95[1] <= 1


def test_no_pairs_are_refused():
    """None at all, or lists of two lengths."""
    with pytest.raises(UsageError, match="no items"):
        share([], "measured:test")
    with pytest.raises(UsageError, match="not pairs"):
        paired_difference([True], [], "measured:test")

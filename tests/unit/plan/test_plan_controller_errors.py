"""The controller refuses what it cannot keep, and follows the scores."""

import itertools

import pytest
import torch

from tapwb.core.errors import BudgetError, PlanError
from tapwb.plan import ControllerGains, PrecisionController


def test_higher_scores_get_more_bits_on_average():
    """It is a controller of precision, not only of the mean."""
    controller = PrecisionController((4, 5, 6, 8), 5.5, spread=0.65)
    scores = torch.rand(600, generator=torch.Generator().manual_seed(0)).tolist()
    bits = [controller.next_bits(score) for score in scores]
    high = [b for b, s in zip(bits, scores, strict=True) if s > 0.7]
    low = [b for b, s in zip(bits, scores, strict=True) if s < 0.3]
    assert sum(high) / len(high) > sum(low) / len(low) + 0.5
    assert controller.mean_bits == pytest.approx(sum(bits) / 600)


def test_hysteresis_changes_level_less_often():
    """Noise around the middle between two levels does not flip the level at every token."""
    scores = (0.5 + 0.05 * torch.randn(500, generator=torch.Generator().manual_seed(0))).clamp(0, 1).tolist()

    def flips(hysteresis):
        controller = PrecisionController((5, 6), 5.5, hysteresis=hysteresis)
        bits = [controller.next_bits(score) for score in scores]
        return sum(a != b for a, b in itertools.pairwise(bits))

    assert flips(0.3) < 0.7 * flips(0.0)


def test_a_floor_is_kept_and_paid_for_later():
    """The first answer tokens get their bits; the mean still comes out."""
    controller = PrecisionController((4, 5, 6, 8), 5.0)
    assert all(controller.next_bits(0.0, at_least=7) == 8 for _ in range(4))
    for _ in range(300):
        controller.next_bits(0.5)
    assert controller.mean_bits == pytest.approx(5.0, rel=0.02)


def test_before_the_first_token_the_mean_is_the_target():
    """There is nothing to divide by yet."""
    assert PrecisionController((4, 8), 6).mean_bits == 6
    assert PrecisionController((4, 8), 6).overspent_bits == 0


def test_impossible_settings_are_refused():
    """A mean outside the levels, gains that would not settle, scores and floors out of range."""
    with pytest.raises(BudgetError, match="from 4 to 8"):
        PrecisionController((4, 8), 9)
    with pytest.raises(PlanError, match="settle"):
        ControllerGains(integral=1.5)
    with pytest.raises(PlanError, match="hysteresis"):
        PrecisionController((4, 8), 6, hysteresis=-0.1)
    with pytest.raises(PlanError, match="spread"):
        PrecisionController((4, 8), 6, spread=-1)
    controller = PrecisionController((4, 8), 6)
    with pytest.raises(PlanError, match=r"\[0, 1\]"):
        controller.next_bits(float("nan"))
    with pytest.raises(PlanError, match="above the levels"):
        controller.next_bits(0.5, at_least=16)
    assert controller.n_tokens == 0

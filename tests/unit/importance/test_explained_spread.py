"""The spread a planner may trust is recovered from damages that were made with a known one."""

import pytest
import torch

from tapwb.importance.spread import explained_spread


def made(spread, noise, n_windows=8, n_tokens=500, seed=0):
    """Scores, and log-normal damages that follow their ranks with this spread and noise of mean 1."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n_windows, n_tokens, generator=g, dtype=torch.float64)
    rest = torch.randn(n_windows, n_tokens, generator=g, dtype=torch.float64)
    return z, torch.exp(spread * z + noise * rest)


@pytest.mark.parametrize("spread", [0.2, 0.65, 1.08])
def test_a_known_spread_is_found_under_noise(spread):
    """Whatever else varies between tokens."""
    scores, damage = made(spread, noise=0.8)
    assert explained_spread(scores, damage) == pytest.approx(spread, abs=0.08)


def test_only_ranks_count_and_a_constant_factor_does_not():
    """Any monotone scale of the score, and any unit of damage."""
    scores, damage = made(0.5, noise=0.3)
    once = explained_spread(scores, damage)
    assert explained_spread(scores.exp(), 1000 * damage) == pytest.approx(once)


def test_a_useless_or_reversed_score_explains_nothing():
    """0 is uniform treatment; never negative."""
    scores, damage = made(0.8, noise=0.2)
    assert explained_spread(-scores, damage) == 0
    shuffled = scores[:, torch.randperm(scores.shape[1], generator=torch.Generator().manual_seed(1))]
    assert explained_spread(shuffled, damage) < 0.08
    assert explained_spread(torch.zeros_like(scores), damage) == 0
    assert explained_spread(scores, torch.zeros_like(damage)) == 0


def test_other_shapes_are_a_programming_error():
    """One damage per score."""
    with pytest.raises(ValueError, match="differ"):
        explained_spread(torch.rand(2, 3), torch.rand(2, 4))

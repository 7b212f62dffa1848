"""A target in bytes or in perplexity becomes the mean bits that meet it."""

import math

import pytest
import torch

from tapwb.core.errors import BudgetError
from tapwb.plan import LayerDamage
from tapwb.plan.targets import expected_excess_nats, layer_plan, mean_bits_for_bytes, mean_bits_for_ratio

LEVELS = (3, 4, 5, 6, 8)


@pytest.fixture
def layers() -> LayerDamage:
    """Two groups whose damages add up to half of what both cause together, at every level."""
    nats = torch.tensor([[0.32, 0.08, 0.02], [0.08, 0.02, 0.005]])
    uniform = {3: 0.8, 4: 0.2, 5: 0.05, 6: 0.0125, 8: 0.0125 / 3.5**2}
    return LayerDamage(("a", "b"), (100, 300), (3, 4, 5), nats, uniform)


def test_uniform_plans_are_expected_at_what_they_were_measured(layers):
    """At a level that all groups share the expectation is the measured uniform divergence itself."""
    for level in (3, 4, 5):
        plan = layer_plan(layers, (level,), level)
        assert expected_excess_nats(layers, plan) == pytest.approx(layers.uniform_nats[level])


def test_a_layer_plan_is_expected_to_beat_uniform_at_its_mean(layers):
    """The small sensitive group gets the bits."""
    plan = layer_plan(layers, LEVELS, 4.0)
    assert plan.bits[0, 0] > plan.bits[1, 0]
    assert expected_excess_nats(layers, plan) < 0.2


@pytest.mark.parametrize("ratio", [1.01, 1.05, 1.3])
def test_the_mean_for_a_ratio_is_the_smallest_that_keeps_it(layers, ratio):
    """It is kept there, and no longer a tenth of a bit below."""
    mean = mean_bits_for_ratio(layers, ratio, LEVELS)
    assert expected_excess_nats(layers, layer_plan(layers, LEVELS, mean)) <= math.log(ratio)
    below = layer_plan(layers, LEVELS, max(3.0, mean - 0.8))
    assert expected_excess_nats(layers, below) > math.log(ratio)


def test_bytes_count_the_planes_that_are_read(layers):
    """400 weights at 8 bits are 400 bytes beside 50 that never change; at a mean of 4 a step reads 250."""
    assert mean_bits_for_bytes(layers, 250, LEVELS, bytes_at_8=450) == pytest.approx(4.0)
    assert mean_bits_for_bytes(layers, 10_000, LEVELS, bytes_at_8=450) == 8


def test_targets_out_of_reach_say_what_is_in_reach(layers):
    """In one line with numbers."""
    with pytest.raises(BudgetError, match="above 1"):
        mean_bits_for_ratio(layers, 1.0, LEVELS)
    with pytest.raises(BudgetError, match="expected 1"):
        mean_bits_for_ratio(layers, 1.0001, LEVELS)
    with pytest.raises(BudgetError, match="reads 200"):
        mean_bits_for_bytes(layers, 100, LEVELS, bytes_at_8=450)
    bare = LayerDamage(("a",), (1,), (4,), torch.tensor([[0.1]]))
    with pytest.raises(BudgetError, match="Measure layers again"):
        mean_bits_for_ratio(bare, 1.1, LEVELS)

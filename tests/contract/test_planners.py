"""Every planner turns scores into a consistent plan."""

import pytest
import torch

from tapwb.core.errors import PlanError
from tapwb.plan import FloorRequest, PlannerSettings, PrecisionPlan, planners

SETTINGS = PlannerSettings(
    levels=(4, 5, 6, 8),
    mean_bits=5.5,
    thresholds=(0.25, 0.5, 0.75),
    bits=6,
    spread=0.65,
    floors=(FloorRequest("first tokens", (0, 1)),),
    sensitivity=(1.0, 2.0, 0.5),
    signal="entropy",
)


@pytest.mark.parametrize("name", planners.names())
@pytest.mark.parametrize("n_tokens", [1, 2, 17, 131])
def test_planner_covers_every_token_of_every_layer_group(name, n_tokens):
    """The plan has the shape of the text and of the layer groups, names its planner, and survives JSON."""
    plan = planners[name](torch.rand(n_tokens), SETTINGS)
    assert plan.bits.shape == (3, n_tokens)
    assert plan.planner == name
    assert sum(plan.histogram().values()) == 3 * n_tokens
    assert PrecisionPlan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("name", planners.names())
def test_planner_is_deterministic(name):
    """The same scores give the same plan, also when all scores are equal."""
    for scores in (torch.rand(29), torch.full((29,), 0.5)):
        assert planners[name](scores, SETTINGS) == planners[name](scores.clone(), SETTINGS)


@pytest.mark.parametrize("name", planners.names())
@pytest.mark.parametrize("scores", [[], [0.5, float("nan")], [0.2, 1.5], [-0.1]])
def test_planner_refuses_unusable_scores(name, scores):
    """No token, a score that is not a number, or one outside [0, 1] is an error, not a plan."""
    with pytest.raises(PlanError):
        planners[name](torch.tensor(scores), SETTINGS)


@pytest.mark.parametrize("name", planners.names())
def test_planner_describes_itself(name):
    """Each has a summary and says which settings it reads."""
    assert planners.entry(name).summary
    assert set(planners.entry(name).metadata["needs"]) <= set(PlannerSettings.__dataclass_fields__)

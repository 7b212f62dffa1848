"""The budget planner in the registry."""

from jaxtyping import Float
from torch import Tensor

from tapwb.core.errors import PlanError
from tapwb.plan.budget import budget_plan
from tapwb.plan.planner import PlannerSettings, planners
from tapwb.plan.precision_plan import PrecisionPlan


@planners.register("budget", summary="water-filling to a target mean", needs=("levels", "mean_bits", "spread"))
def plan_by_budget(scores: Float[Tensor, " token"], settings: PlannerSettings) -> PrecisionPlan:
    """:func:`budget_plan` as the registry calls it.

    Raises:
        PlanError: As there, or if no mean was given.
    """
    if settings.mean_bits is None:
        raise PlanError("the budget planner was given no target. Set mean_bits, for example 5.5.")
    return budget_plan(
        scores,
        settings.levels,
        settings.mean_bits,
        spread=settings.spread,
        floors=settings.floors,
        sensitivity=settings.sensitivity,
        layers=settings.layers,
        token_damage=settings.token_damage,
        signal=settings.signal,
        seed=settings.seed,
    )

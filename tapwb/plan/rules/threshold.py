"""The seed's rule in the registry."""

from jaxtyping import Float
from torch import Tensor

from tapwb.core.precision import SEED_THRESHOLDS
from tapwb.plan.planner import PlannerSettings, planners
from tapwb.plan.precision_plan import PrecisionPlan
from tapwb.plan.threshold import threshold_plan


@planners.register("threshold", summary="the seed's rule: levels cut at fixed scores", needs=("levels", "thresholds"))
def plan_by_threshold(scores: Float[Tensor, " token"], settings: PlannerSettings) -> PrecisionPlan:
    """:func:`threshold_plan` as the registry calls it.

    Raises:
        PlanError: As there.
    """
    return threshold_plan(
        scores,
        settings.levels,
        SEED_THRESHOLDS if settings.thresholds is None else settings.thresholds,
        signal=settings.signal,
        seed=settings.seed,
        n_layer_groups=len(settings.sensitivity),
    )

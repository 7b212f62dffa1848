"""Every token at the same bits: the planner that every other has to beat."""

from jaxtyping import Float
from torch import Tensor

from tapwb.core.errors import PlanError
from tapwb.plan.damage import check_scores
from tapwb.plan.planner import PlannerSettings, planners
from tapwb.plan.precision_plan import PrecisionPlan, uniform_plan


@planners.register("uniform", summary="every token at the same bits", needs=("bits",))
def plan_uniformly(scores: Float[Tensor, " token"], settings: PlannerSettings) -> PrecisionPlan:
    """As many tokens as there are scores, each at ``settings.bits``; the scores themselves do not matter.

    Raises:
        PlanError: If there is no token or no level.
    """
    check_scores(scores)
    if settings.bits is None:
        raise PlanError("the uniform planner was given no bits. Set bits, for example 6.")
    return uniform_plan(int(scores.numel()), settings.bits, n_layer_groups=len(settings.sensitivity))

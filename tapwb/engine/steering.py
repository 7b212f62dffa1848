"""What chooses the bits of each decode step."""

from typing import TYPE_CHECKING

from tapwb.core.precision import PrecisionRequest
from tapwb.engine.scored import Scored

if TYPE_CHECKING:
    from tapwb.execution.levels import LevelSource
    from tapwb.plan.precision_plan import PrecisionPlan


def level_source(
    request: PrecisionRequest, plan: "PrecisionPlan | None", scored: Scored | None, seed: int
) -> "LevelSource":
    """The source of levels for the answer to a prompt.

    Args:
        request: What was asked for.
        plan: Plan of the prompt; ``None`` runs the weights as loaded.
        scored: Scores of the prompt, if it was scored.
        seed: Seed of random signals.
    """
    from tapwb.execution.levels import FixedLevel, SteeredLevel, ThresholdLevel
    from tapwb.importance.stream import ImportanceStream

    if plan is None or request.kind == "uniform":
        return FixedLevel(request.bits or 16)
    # The oracle cannot decide while decoding; a saved plan says nothing about tokens that do not exist yet.
    weights = {"entropy": 1.0} if scored is None or request.kind == "oracle" else dict(scored.weights)
    stream = ImportanceStream(weights, None if scored is None else scored.facts, seed=seed)
    if request.kind == "threshold":
        return ThresholdLevel(stream, request.levels, request.thresholds or ())
    mean = request.mean_bits if request.mean_bits is not None else plan.mean_bits
    if len(plan.levels) == 1:
        return FixedLevel(plan.levels[0])
    if scored is None or not scored.importance.causal:
        return SteeredLevel(stream, plan.levels, mean)  # a stand-in steers, not what the prompt was planned with
    return SteeredLevel(stream, plan.levels, mean, spread=scored.importance.spread)

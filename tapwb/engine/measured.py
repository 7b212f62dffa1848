"""What a plan needs beside scores: the measured damage of layers, or of the tokens themselves."""

from typing import TYPE_CHECKING, TypedDict

from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.core.precision import PrecisionRequest

if TYPE_CHECKING:
    from tapwb.engine.layer_sensitivity import Subject
    from tapwb.engine.scored import Scored
    from tapwb.execution.ladder import LayerLadder
    from tapwb.plan.cell_damage import TokenDamage
    from tapwb.plan.layer_damage import LayerDamage
    from tapwb.plan.overrides import EditedPlan
    from tapwb.plan.precision_plan import PrecisionPlan


class Measured(TypedDict, total=False):
    """Arguments of :func:`tapwb.plan.request.make_plan` that come from measurements."""

    layers: "LayerDamage"
    token_damage: "TokenDamage"


def measured_for(
    engine: "Subject", request: PrecisionRequest, scored: "Scored", progress: Progress = NO_PROGRESS
) -> Measured:
    """The measurements that a request is planned with; made now where they are not at hand.

    Args:
        engine: With the model loaded.
        request: What was asked for.
        scored: The text to plan.
        progress: Where to report.
    """
    if request.kind == "layers":
        from tapwb.engine.layer_sensitivity import layer_damage_of

        return {"layers": layer_damage_of(engine, progress=progress)}
    if request.kind == "oracle":
        from tapwb.execution.scoring import measure_token_damage

        return {"token_damage": measure_token_damage(engine.nested, scored.token_ids, request.levels)}
    return {}


def ladder_for(
    engine: "Subject", request: PrecisionRequest, plan: "PrecisionPlan | None", progress: Progress = NO_PROGRESS
) -> "LayerLadder | None":
    """For each level the bits of all layer groups whose mean is that level; ``None`` if layers are not planned apart.

    While decoding, the controller walks on this ladder: one rung up is one more bit in the mean, spent where the
    measured damage of the layers says.

    Args:
        engine: With the model loaded.
        request: What was asked for.
        plan: Plan of the prompt.
        progress: Where to report.
    """
    if plan is None or (request.kind != "layers" and not _weighs_groups(request, plan)):
        return None
    import torch

    from tapwb.engine.layer_sensitivity import layer_damage_of
    from tapwb.execution.ladder import LayerLadder
    from tapwb.plan.budget import budget_plan

    if request.kind != "layers":
        # A saved plan says nothing about tokens to come: their layers are alike, and only the means are weighted.
        sizes, top = plan.group_weights or (), engine.nested.levels[-1]
        levels = {min(level, top) for level in plan.levels}
        return LayerLadder({level: torch.full((len(sizes), 1), level) for level in levels}, sizes)
    layers, neutral = layer_damage_of(engine, progress=progress), torch.full((1,), 0.5)
    plans = {level: budget_plan(neutral, plan.levels, level, spread=0, layers=layers) for level in plan.levels}
    return LayerLadder({level: rung.bits.long() for level, rung in plans.items()}, layers.n_weights)


def run_ladder(
    engine: "Subject",
    request: PrecisionRequest,
    plan: "PrecisionPlan | None",
    edited: "EditedPlan | None",
    progress: Progress = NO_PROGRESS,
) -> "LayerLadder | None":
    """As :func:`ladder_for`, with what was set by hand in a plan.

    Args:
        engine: With the model loaded.
        request: What was asked for.
        plan: Plan of the prompt.
        edited: The plan as it was edited, if it was.
        progress: Where to report.
    """
    from tapwb.engine.by_hand import edited_ladder

    ladder = ladder_for(engine, request, plan, progress)
    return ladder if edited is None else edited_ladder(edited, ladder, engine.nested)


def _weighs_groups(request: PrecisionRequest, plan: "PrecisionPlan") -> bool:
    return request.kind == "plan" and plan.group_weights is not None

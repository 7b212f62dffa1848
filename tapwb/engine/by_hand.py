"""Plans that people bring: edited on the screen, or read from a file. What the engine must know to run them."""

from typing import TYPE_CHECKING

from tapwb.core.errors import PlanError
from tapwb.core.precision import PrecisionRequest, parse_precision

if TYPE_CHECKING:
    from torch import Tensor

    from tapwb.execution.ladder import LayerLadder
    from tapwb.execution.nest import NestedModel
    from tapwb.plan.overrides import EditedPlan, LayerSizes
    from tapwb.plan.precision_plan import PrecisionPlan


def request_of(precision: "PrecisionRequest | EditedPlan | str") -> PrecisionRequest:
    """What was asked for, whichever way it was said.

    Args:
        precision: The grammar as text, parsed, or a plan that was made from it and edited.

    Raises:
        PrecisionSpecError: If a text is not in the grammar.
    """
    if isinstance(precision, str):
        return parse_precision(precision)
    return precision if isinstance(precision, PrecisionRequest) else precision.request


def group_sizes(nested: "NestedModel") -> "LayerSizes":
    """The layer groups of a nested model; every layer knows its number afterwards.

    Args:
        nested: The nested weights.
    """
    from tapwb.execution.layer_groups import assign_layer_groups
    from tapwb.plan.overrides import LayerSizes

    groups = assign_layer_groups(nested)
    return LayerSizes(
        tuple(group.name for group in groups),
        tuple(group.n_weights for group in groups),
        tuple(group.layer for group in groups),
        tuple(group.role for group in groups),
    )


def check_groups(nested: "NestedModel", plan: "PrecisionPlan", n_layers: int) -> None:
    """Make sure that each row of a plan reaches the layers it was made for.

    Args:
        nested: The nested weights.
        plan: With one layer group, one per layer, or those of the model.
        n_layers: Layers of the model.

    Raises:
        PlanError: If it has another number of layer groups.
    """
    if plan.n_layer_groups == 1:
        return
    n_groups = len(group_sizes(nested).names)
    if plan.n_layer_groups not in (n_layers, n_groups):
        raise PlanError(
            f"the plan has {plan.n_layer_groups} layer groups; this model takes 1, {n_layers} or {n_groups}. "
            "Make the plan with this model."
        )


def prompt_plan(edited: "EditedPlan", token_ids: "Tensor") -> "PrecisionPlan":
    """The plan of a prompt that was edited by hand.

    Args:
        edited: The plan with its edits.
        token_ids: The prompt, shape (1, token).

    Raises:
        PlanError: If it was made for another text.
    """
    from tapwb.plan.precision_plan import text_fingerprint

    plan = edited.plan
    if plan.n_tokens != token_ids.shape[1] or plan.text_id not in (None, text_fingerprint(token_ids)):
        raise PlanError("the edited plan was made for another text. Score the prompt again, or undo the edits.")
    return plan


def edited_ladder(edited: "EditedPlan", base: "LayerLadder | None", nested: "NestedModel") -> "LayerLadder | None":
    """What steps of the answer are read with, once layers were set by hand.

    Args:
        edited: The plan with its edits; those of layers hold for the answer, too.
        base: The ladder of the planner; ``None`` where it plans all layers alike.
        nested: The nested weights.

    Returns:
        The base where no layer was edited.
    """
    if not edited.layer_edits:
        return base
    import torch

    from tapwb.execution.ladder import LayerLadder
    from tapwb.plan.overrides import edit_plan
    from tapwb.plan.precision_plan import PrecisionPlan

    sizes = group_sizes(nested)
    levels = tuple(level for level in edited.plan.levels if level <= nested.levels[-1])
    rungs = {}
    for level in levels:
        bits = torch.full((len(sizes.names), 1), level) if base is None else base.rungs.get(level)
        if bits is not None:
            rung = PrecisionPlan(bits.to(torch.uint8), levels, "rung", group_weights=sizes.n_weights)
            again = edit_plan(edited.request, rung, edited.layer_edits, keep_mean=edited.keep_mean, sizes=sizes)
            rungs[level] = again.plan.bits.long()
    return LayerLadder(rungs, sizes.n_weights)

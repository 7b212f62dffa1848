"""From scores, measurements and what was set by hand to the plan on the screen. Pure: no model is needed any more."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tapwb.core.errors import PlanFileError
from tapwb.core.precision import NO_SIGNAL, PrecisionRequest

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from tapwb.engine.measured import Measured
    from tapwb.engine.shelf import ModelCard, ScoredPrompt
    from tapwb.importance.analyzer import TokenImportance
    from tapwb.plan.history import EditHistory
    from tapwb.plan.outlook import PlanOutlook
    from tapwb.plan.overrides import EditedPlan
    from tapwb.plan.precision_plan import PrecisionPlan


@dataclass(frozen=True, slots=True, eq=False)
class LaidPlan:
    """The planner's plan, and what was made of it.

    Attributes:
        planned: The planner's, or the one read from a file.
        edited: With what was set by hand; ``None`` where the planner's stands as it is.
    """

    planned: "PrecisionPlan"
    edited: "EditedPlan | None"

    @property
    def plan(self) -> "PrecisionPlan":
        """The plan that a run uses."""
        return self.planned if self.edited is None else self.edited.plan


def lay_plan(
    request: PrecisionRequest,
    scored: "ScoredPrompt",
    card: "ModelCard",
    known: "Measured",
    history: "EditHistory | None" = None,
    imported: "tuple[str, PrecisionPlan] | None" = None,
    *,
    keep_mean: bool = True,
    seed: int = 0,
) -> LaidPlan:
    """Plan a scored prompt and lay the edits over the plan.

    Args:
        request: What was asked for.
        scored: The prompt with its scores.
        card: The model's levels and layer groups.
        known: Measurements that the request needs (:func:`tapwb.engine.measured.measured_for`).
        history: What was set by hand.
        imported: Name and plan of a file that stands in the place of the planner's.
        keep_mean: Whether everything else pays for the edits.
        seed: Seed of the random and shuffled controls.

    Raises:
        PlanError: If scores are missing, or an edit names what does not exist.
    """
    from tapwb.plan.overrides import edit_plan
    from tapwb.plan.request import make_plan

    if imported is None:
        planned = make_plan(request, _importance(request, scored), facts=scored.scored.facts, seed=seed, **known)
    else:
        name, planned = imported
        request = PrecisionRequest("plan", path=name, levels=planned.levels)
    edits = () if history is None else history.edits
    if not edits and imported is None:
        return LaidPlan(planned, None)
    edited = edit_plan(
        request,
        planned,
        edits,
        keep_mean=keep_mean,
        levels=card.levels,
        sizes=card.sizes,
        scores=scores_of(planned, scored),
        layers=known.get("layers"),
    )
    return LaidPlan(planned, edited)


def scores_of(plan: "PrecisionPlan", scored: "ScoredPrompt") -> "Float[Tensor, ' token'] | None":
    """The scores that a plan was made from, if they are among those at hand."""
    found = scored.scored.importance.parts.get(plan.signal)
    return None if found is None else found[0]


def outlook_of(plan: "PrecisionPlan", scored: "ScoredPrompt", card: "ModelCard", known: "Measured") -> "PlanOutlook":
    """What a plan of a prompt is expected to cost.

    Args:
        plan: The plan.
        scored: The prompt with its scores.
        card: The model.
        known: Measurements at hand.
    """
    from tapwb.plan.outlook import outlook

    return outlook(plan, card.sizes, card.bytes_per_step_at_8, scores_of(plan, scored), known.get("layers"))


def plan_from_file(content: str, name: str, scored: "ScoredPrompt | None", card: "ModelCard | None") -> "PrecisionPlan":
    """A plan that was exported, if it fits the prompt and the model on the screen.

    Args:
        content: The file's text.
        name: Its name, for messages.
        scored: The prompt.
        card: The model.

    Raises:
        PlanFileError: If it is no plan, or was made for another text or model.
    """
    from tapwb.plan.precision_plan import PrecisionPlan, text_fingerprint

    if scored is None or card is None:
        raise PlanFileError(f"plan file {name!r} needs a scored prompt to lie on. Load a model and score one.")
    try:
        data: Any = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise PlanFileError(f"plan file {name!r} is not JSON: {error}. Export the plan again.") from None
    try:
        plan = PrecisionPlan.from_json(data)
    except PlanFileError as error:
        raise PlanFileError(f"plan file {name!r}: {error}") from None
    token_ids = scored.scored.token_ids
    if plan.n_tokens != token_ids.shape[1] or plan.text_id not in (None, text_fingerprint(token_ids)):
        raise PlanFileError(
            f"plan file {name!r} is for another text ({plan.n_tokens} tokens; this prompt has {token_ids.shape[1]}). "
            "Use it with its own text, or make a new plan."
        )
    if plan.n_layer_groups not in (1, len(card.sizes.names)):
        raise PlanFileError(
            f"plan file {name!r} has {plan.n_layer_groups} layer groups; this model has {len(card.sizes.names)}. "
            "Use it with its own model, or make a new plan."
        )
    return plan


def _importance(request: PrecisionRequest, scored: "ScoredPrompt") -> "TokenImportance":
    """The scores at hand; where no token is to be preferred, scores that say so."""
    if request.signal != NO_SIGNAL or NO_SIGNAL in scored.scored.importance.parts:
        return scored.scored.importance
    import torch

    from tapwb.importance.analyzer import TokenImportance
    from tapwb.importance.signal import spread_of

    alike = torch.full(scored.scored.token_ids.shape, 0.5)
    return TokenImportance(alike, NO_SIGNAL, True, {NO_SIGNAL: alike}, spread_of(NO_SIGNAL))

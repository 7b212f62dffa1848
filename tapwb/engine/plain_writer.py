"""The decode loop with everything that a request puts into it, but for the prompt."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tapwb.core.precision import PrecisionRequest
from tapwb.engine.routing import routing_for
from tapwb.engine.scored import Scored
from tapwb.engine.steering import level_source

if TYPE_CHECKING:
    from tapwb.engine.layer_sensitivity import Subject
    from tapwb.execution.ladder import LayerLadder
    from tapwb.execution.trace import Trace
    from tapwb.models.info import LoadedModel
    from tapwb.plan.precision_plan import PrecisionPlan


def plain_writer(
    engine: "Subject",
    handle: "LoadedModel",
    request: PrecisionRequest,
    plan: "PrecisionPlan | None",
    scored: Scored | None,
    seed: int,
    *,
    ladder: "LayerLadder | None",
    cache: Any,
) -> "Callable[..., tuple[str, Trace]]":
    """What writes one token after the other: :func:`tapwb.execution.decode.decode` without what depends on the prompt.

    Args:
        engine: With the model loaded.
        handle: The model as it is run.
        request: What was asked for.
        plan: Plan of the prompt; ``None`` runs the weights as loaded.
        scored: Scores of the prompt, if it was scored.
        seed: Seed of random signals.
        ladder: What a step at a level is read with, if layers are planned apart.
        cache: A transformers cache.

    Raises:
        UsageError: If the request asks for a router that was not trained.
    """
    from tapwb.execution.decode import decode

    return functools.partial(
        decode,
        handle.model,
        handle.tokenizer,
        prompt_bits=16 if plan is None else plan.bits.clamp(max=engine.nested.levels[-1]),
        levels=level_source(request, plan, scored, seed),
        ladder=ladder,
        routing=routing_for(engine, request, seed),
        cache=cache,
    )

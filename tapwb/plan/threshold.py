"""The seed's rule: levels cut at fixed scores.

Levels ascend, thresholds strictly increase in (0, 1), and there is one fewer of them than of levels. A token gets the
level whose piece of [0, 1] its score falls into. **Tie rule: a score equal to a threshold goes to the higher level.**
(The seed left the tie, the normalisation and the number of thresholds open: fault F1.11. Scores here are ranks.)

Levels of 16 and 32 are kept in the plan as asked; they hold no more information than the reference weights and are
executed as the reference.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tapwb.core.errors import PlanError, PrecisionSpecError
from tapwb.core.precision import check_thresholds
from tapwb.plan.damage import REFERENCE_BITS, check_scores
from tapwb.plan.precision_plan import PrecisionPlan, plan_levels


def threshold_plan(
    scores: Float[Tensor, " token"],
    levels: Sequence[int],
    thresholds: Sequence[float],
    *,
    signal: str = "none",
    seed: int | None = None,
    n_layer_groups: int = 1,
) -> PrecisionPlan:
    """Cut the scores at the thresholds.

    Args:
        scores: In [0, 1], shape (token,).
        levels: Bit-widths, ascending.
        thresholds: One fewer, strictly increasing in (0, 1), compared in the precision of ``scores``.
        signal: What scored the tokens, for the record.
        seed: Seed of the scores, for the record.
        n_layer_groups: Groups of layers; the rule treats all alike.

    Raises:
        PlanError: If levels, thresholds or scores are not as said.
    """
    check_scores(scores)
    chosen = plan_levels(levels)
    try:
        cuts = check_thresholds(tuple(thresholds), chosen)
    except PrecisionSpecError as error:
        raise PlanError(str(error)) from None
    exact = scores if scores.dtype == torch.float64 else scores.float()
    # Same type on both sides: 0.7 as fp32 is below 0.7 as fp64, and a tie must be a tie.
    bounds = torch.tensor(cuts, dtype=exact.dtype, device=exact.device)
    piece = torch.bucketize(exact, bounds, right=True)
    bits = torch.tensor(chosen, dtype=torch.uint8, device=exact.device)[piece]
    notes = tuple(
        f"{level} bits are executed as the reference: the weights hold no more"
        for level in chosen
        if level >= REFERENCE_BITS
    )
    return PrecisionPlan(
        bits.expand(n_layer_groups, -1).clone(),
        chosen,
        "threshold",
        signal,
        thresholds=cuts,
        seed=seed,
        notes=notes,
    )

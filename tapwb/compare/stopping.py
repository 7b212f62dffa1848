"""When a comparison that is looked at while it runs may stop: success, futility, or the end of the budget."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from tapwb.compare.confidence_sequence import ConfidenceSequence
from tapwb.core.errors import UsageError

Intent = Literal["superiority", "non-inferiority", "equivalence"]
Reason = Literal["success", "futility", "budget", "go on"]


@dataclass(frozen=True, slots=True)
class Stop:
    """What the looks say.

    Attributes:
        reason: ``"success"``: the question is answered; ``"futility"``: the difference is too small to matter;
            ``"budget"``: all planned clusters are in; ``"go on"``: none of these.
        n_clusters: Clusters after which that was known.
    """

    reason: Reason
    n_clusters: int


def decide_stop(sequence: ConfidenceSequence, *, intent: Intent, margin: float | None, n_planned: int) -> Stop:
    """The first look at which the comparison may stop.

    Args:
        sequence: Intervals of the effect, turned so that positive means B is better (``turned()`` where less is).
        intent: What the plan asks.
        margin: Smallest difference that matters, in the unit of the intervals; ``None`` only for superiority.
        n_planned: Clusters that are paid for.

    Raises:
        UsageError: If the intent needs a margin and there is none.
    """
    if margin is None and intent != "superiority":
        raise UsageError(f"{intent} is asked without a margin. Say how large a difference matters.")
    is_inside = np.zeros(len(sequence.counts), bool)
    if margin is not None:
        is_inside = (sequence.low > -margin) & (sequence.high < margin)
    is_apart = (sequence.low > 0) | (sequence.high < 0)
    success = {
        "superiority": is_apart,
        "equivalence": is_inside | (sequence.low > (margin or 0)) | (sequence.high < -(margin or 0)),
        "non-inferiority": (sequence.low > -(margin or 0)) | (sequence.high < -(margin or 0)),
    }[intent]
    for place in np.flatnonzero(success | is_inside):
        return Stop("success" if success[place] else "futility", int(sequence.counts[place]))
    last = int(sequence.counts[-1])
    return Stop("budget" if last >= n_planned else "go on", last)

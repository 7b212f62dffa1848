"""Entropy of the previous step: the causal shadow of the token's own entropy."""

import torch
from jaxtyping import Float
from torch import Tensor

from tapwb.importance.facts import TokenFacts
from tapwb.importance.signal import entropy_nats, fact, signals


@signals.register(
    "entropy_prev",
    summary="entropy of the distribution that this token was drawn from",
    needs=frozenset({"logits"}),
    causal=True,
    spread=0.3,
    source="step confidence for escalation, Schuster et al. 2022 (CALM, arXiv:2207.07061); correlation 0.2 measured",
    decode_as="entropy_prev",
)
def entropy_prev(facts: TokenFacts) -> Float[Tensor, "batch token"]:
    """Entropy (nats) of row t - 1; the first token has no opinion (NaN).

    Causal: it is the distribution that produced token t. It tells how hard t was to predict, which is only loosely
    how much t suffers from rounding.

    Raises:
        UsageError: If no logits were captured.
    """
    own = entropy_nats(fact(facts, "entropy_prev", "logits", "low_logits"))
    return torch.cat([torch.full_like(own[:, :1], torch.nan), own[:, :-1]], dim=1)

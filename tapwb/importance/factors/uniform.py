"""Control: no token matters more than another."""

import torch
from jaxtyping import Float
from torch import Tensor

from tapwb.importance.facts import TokenFacts
from tapwb.importance.signal import signals


@signals.register(
    "uniform",
    summary="control: all tokens alike",
    needs=frozenset(),
    causal=True,
    spread=0.0,
    source="control",
    decode_as="uniform",
)
def uniform(facts: TokenFacts) -> Float[Tensor, "batch token"]:
    """The same value for every token. Causal: it needs nothing."""
    return torch.zeros(facts.token_ids.shape, device=facts.token_ids.device)

"""Control: a meaningless score. A signal that cannot beat it is useless."""

import torch
from jaxtyping import Float
from torch import Tensor

from tapwb.importance.facts import TokenFacts
from tapwb.importance.signal import ENTROPY_SPREAD, signals


@signals.register(
    "random",
    summary="control: a seeded random score",
    needs=frozenset(),
    causal=True,
    # The planner must treat it exactly like the default signal, so that the two differ only in which token gets what.
    spread=ENTROPY_SPREAD,
    source="control",
    decode_as="random",
)
def random(facts: TokenFacts) -> Float[Tensor, "batch token"]:
    """Uniform numbers in [0, 1) from ``facts.seed`` and the position, independent of torch's global generator.

    Causal: it needs nothing.
    """
    generator = torch.Generator().manual_seed(facts.seed * 1_000_003 + facts.first_index)
    return torch.rand(facts.token_ids.shape, generator=generator).to(facts.token_ids.device)

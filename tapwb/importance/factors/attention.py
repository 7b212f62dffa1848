"""Attention received: a token that later queries look at is worth keeping precise."""

import torch
from jaxtyping import Float
from torch import Tensor

from tapwb.importance.facts import TokenFacts
from tapwb.importance.signal import fact, signals

#: The first tokens soak up attention whatever they say (Xiao et al. 2023, attention sinks); a plan protects them by a
#: floor, so here they would only push every other token's rank down.
N_SINK_TOKENS = 4


@signals.register(
    "attention",
    summary="attention received from later queries, per query that can see the token",
    needs=frozenset({"attention_received"}),
    causal=False,
    spread=0.11,
    source="H2O, Zhang et al. 2023 (arXiv:2306.14048); normalisation of ZipCache, He et al. 2024 (arXiv:2405.14256)",
    decode_as="",
)
def attention(facts: TokenFacts) -> Float[Tensor, "batch token"]:
    """Mean attention probability received, already divided by the number of queries that can see the token.

    Not causal: it takes the queries of *later* tokens. Usable in prefill from probe rows, and for downgrading cache
    entries that are already written. The first four tokens have no opinion (NaN).

    Raises:
        UsageError: If attention was not captured.
    """
    raw = fact(facts, "attention", "attention_received").float().clone()
    raw[:, facts.positions().to(raw.device) < N_SINK_TOKENS] = torch.nan
    return raw

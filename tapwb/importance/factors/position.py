"""Position: sinks at the start, the end of the prompt, and the start of the answer."""

import torch
from jaxtyping import Float
from torch import Tensor

from tapwb.importance.facts import TokenFacts
from tapwb.importance.signal import signals

#: Tokens over which each effect falls to 1/e.
_SINK_TOKENS = 4.0
_RECENCY_TOKENS = 64.0
_ANSWER_TOKENS = 16.0


@signals.register(
    "position",
    summary="attention sinks, nearness to the end of the prompt, early answer",
    needs=frozenset(),
    causal=True,
    spread=0.1,
    source="StreamingLLM, Xiao et al. 2023 (arXiv:2309.17453); early answer tokens, PMPD 2024 (arXiv:2410.13461)",
    decode_as="position",
)
def position(facts: TokenFacts) -> Float[Tensor, "batch token"]:
    """Sum of three exponentials of distance, each at most 1.

    Causal: the index and the length of the prompt are known before anything runs.
    """
    index = facts.positions()
    to_answer = index - facts.n_prompt
    sink = torch.exp(-index / _SINK_TOKENS)
    recency = torch.where(to_answer < 0, torch.exp((to_answer + 1) / _RECENCY_TOKENS), 0.0)
    early = torch.where(to_answer >= 0, torch.exp(-to_answer / _ANSWER_TOKENS), 0.0)
    return (sink + recency + early).expand(facts.token_ids.shape)

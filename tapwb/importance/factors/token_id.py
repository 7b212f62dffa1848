"""Token id: what a token is, before any context: rare, a number, a control token."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from tapwb.importance.facts import TokenFacts, zipf_log_frequency
from tapwb.importance.signal import signals

#: A digit counts as ten times rarer than it is: numbers must be right to the last place.
_DIGIT_BONUS_NATS = math.log(10)


@signals.register(
    "token_id",
    summary="rarity of the id, digits and control tokens first",
    needs=frozenset(),
    causal=True,
    spread=0.1,
    source="frequency prior: Zipf-Mandelbrot; the measured rank correlation with damage on SmolLM2-135M is about 0",
    decode_as="token_id",
)
def token_id(facts: TokenFacts) -> Float[Tensor, "batch token"]:
    """Surprisal of the id without context (nats), plus a bonus for digits; control tokens above everything.

    Causal: a table look-up on the id.
    """
    ids = facts.token_ids
    frequency = facts.token_frequency
    prior = (zipf_log_frequency(facts.vocab_size) if frequency is None else frequency).to(ids.device)
    raw = -prior.float()[ids]
    if facts.token_texts:
        digit = [[any(c.isdigit() for c in text) for text in row] for row in facts.token_texts]
        raw = raw + _DIGIT_BONUS_NATS * torch.tensor(digit, device=ids.device)
    if facts.special_ids:
        special = torch.isin(ids, torch.tensor(sorted(facts.special_ids), device=ids.device))
        raw = raw.masked_fill(special, math.inf)
    return raw

"""Surprisal: how unlikely the token was, given what came before it."""

import torch
from jaxtyping import Float
from torch import Tensor

from tapwb.importance.facts import TokenFacts
from tapwb.importance.signal import fact, signals


@signals.register(
    "surprisal",
    summary="negative log-probability of the token given the tokens before it",
    needs=frozenset({"logits"}),
    causal=True,
    spread=0.22,
    source="Hale 2001, 'A probabilistic Earley parser'; selective use in LLMLingua, Jiang et al. 2023; correlation 0.2",
    decode_as="surprisal",
)
def surprisal(facts: TokenFacts) -> Float[Tensor, "batch token"]:
    """-log p(token t | tokens before t), nats; the first token has no opinion (NaN).

    Causal: row t - 1 and the id of t are known before t is processed.

    Raises:
        UsageError: If no logits were captured.
    """
    logits = fact(facts, "surprisal", "logits", "low_logits")[:, :-1]
    chosen = logits.gather(-1, facts.token_ids[:, 1:, None].to(logits.device)).squeeze(-1).float()
    # logsumexp row by row keeps one row of the vocabulary in fp32 at a time, not the whole text.
    rows = [torch.logsumexp(logits[:, t].float(), dim=-1) for t in range(logits.shape[1])]
    unknown = torch.full((logits.shape[0], 1), torch.nan, device=logits.device)
    if not rows:
        return unknown
    return torch.cat([unknown, torch.stack(rows, dim=1) - chosen], dim=1)

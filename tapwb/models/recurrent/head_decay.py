"""Linear attention with one decay per head and token: ``S = exp(g) S + k v^T``, ``o = S^T q``.

Mamba-2 and retention are this recurrence. Its chunked matrix form is that of Dao & Gu 2024 (arXiv:2405.21060, section
6) and Sun et al. 2023 (arXiv:2307.08621, equation 7): attention under a mask inside a chunk, a carried state between
chunks. Every exponent is a sum of log-decays over a stretch of tokens, so it is never positive.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from tapwb.models.recurrent.chunks import carry, join, split

#: Tokens of a chunk: work inside a chunk grows with it, the number of carried states falls with it.
CHUNK_TOKENS = 64


def segment_decay(log_decay: Float[Tensor, "... position"]) -> Float[Tensor, "... position position"]:
    """What is left at position ``i`` of a write at position ``j``: ``exp`` of the log-decays behind ``j`` up to ``i``.

    Each sum is added up on its own. Differences of two running sums would lose the small one behind a large one: after
    a log-decay of -1000 the next ones are only known to 6e-5.

    Args:
        log_decay: Never positive.

    Returns:
        Row ``i``, column ``j``; ones on the diagonal, zeros above it.
    """
    length = log_decay.shape[-1]
    lower = torch.ones(length, length, dtype=torch.bool, device=log_decay.device).tril()
    steps = log_decay.unsqueeze(-1).expand(*log_decay.shape, length)
    sums = steps.masked_fill(~lower.tril(-1), 0).cumsum(-2)
    return sums.masked_fill(~lower, -torch.inf).exp()


def attend(
    q: Float[Tensor, "... position key"],
    k: Float[Tensor, "... position key"],
    v: Float[Tensor, "... position value"],
    decay: Float[Tensor, "... position position"],
) -> Float[Tensor, "... position value"]:
    """Attention without softmax under a mask of decays.

    Args:
        q: Reads.
        k: Where values are written.
        v: What is written.
        decay: From :func:`segment_decay`.
    """
    return (q @ k.mT * decay) @ v


def chunked(
    q: Float[Tensor, "batch token group key"],
    k: Float[Tensor, "batch token group key"],
    v: Float[Tensor, "batch token head value"],
    log_decay: Float[Tensor, "batch token head"],
    state: Float[Tensor, "batch head key value"],
) -> tuple[Float[Tensor, "batch token head value"], Float[Tensor, "batch head key value"]]:
    """Outputs and the state after the last token.

    Args:
        q: Reads; consecutive heads share the reads and keys of their group.
        k: Keys.
        v: Values.
        log_decay: Logarithm of the factor on the state before each token is written.
        state: Before the first token.
    """
    n_tokens, n_heads = v.shape[1], v.shape[2]
    by_group = (k.shape[2], n_heads // k.shape[2])
    length = min(CHUNK_TOKENS, n_tokens)
    q, k = split(q, length).unsqueeze(3), split(k, length).unsqueeze(3)
    v, log_decay = split(v, length).unflatten(2, by_group), split(log_decay, length).unflatten(2, by_group)
    decay = segment_decay(log_decay)
    since_start = log_decay.cumsum(-1).exp().unsqueeze(-1)
    writes = k.mT @ (v * decay[..., -1, :].unsqueeze(-1))
    starts, last = carry(state.unflatten(1, by_group), since_start[..., -1:, :], writes)
    out = attend(q, k, v, decay) + (q @ starts) * since_start
    return join(out.flatten(2, 3), n_tokens), last.flatten(1, 2)


def parallel(
    q: Float[Tensor, "batch token group key"],
    k: Float[Tensor, "batch token group key"],
    v: Float[Tensor, "batch token head value"],
    decay: Float[Tensor, "*batch head token token"],
) -> Float[Tensor, "batch token head value"]:
    """Outputs of a whole sequence as one masked matrix, from an empty state.

    Args:
        q: Reads.
        k: Keys.
        v: Values.
        decay: Mask of each head.
    """
    by_group = (k.shape[2], v.shape[2] // k.shape[2])
    q, k = (x.transpose(1, 2).unsqueeze(2) for x in (q, k))
    v, decay = v.transpose(1, 2).unflatten(1, by_group), decay.unflatten(-3, by_group)
    return attend(q, k, v, decay).flatten(1, 2).transpose(1, 2)

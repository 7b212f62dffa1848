"""Linear attention whose decay differs from key channel to key channel, as in RWKV-5, 6 and 7.

Splitting the decay between two tokens into a factor of the reader and one of the writer makes scores a plain matrix
product, but the writer's factor is an exponential of a positive number and overflows where a channel forgets fast. Here
scores are made gap by gap: a key is multiplied by one more decay for each token that it is carried on. Factors are at
most one, so nothing overflows, and a channel that has forgotten is zero.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from tapwb.models.recurrent.chunks import carry, join, split
from tapwb.models.recurrent.forgetting import forget

#: Tokens of a chunk: scores cost a pass over the channels for every gap, so chunks are short.
CHUNK_TOKENS = 16


def scores(
    q: Float[Tensor, "... position key"], k: Float[Tensor, "... position key"], decay: Float[Tensor, "... position key"]
) -> Float[Tensor, "... position position"]:
    """``q_i`` times ``k_j``, after the decays of the tokens between them, in row ``i`` and column ``j < i``; else zero.

    Args:
        q: Reads.
        k: Keys.
        decay: Factors in [0, 1].
    """
    length = k.shape[-2]
    shape = torch.broadcast_shapes(q.shape, k.shape)
    found = q.new_zeros(*shape[:-1], length)
    carried = k[..., : length - 1, :]
    for gap in range(1, length):
        if gap > 1:
            carried = carried[..., :-1, :] * decay[..., gap - 1 : length - 1, :]
        found.diagonal(-gap, -2, -1).copy_((q[..., gap:, :] * carried).sum(-1))
    return found


def before(log_decay: Float[Tensor, "... position key"]) -> Float[Tensor, "... position key"]:
    """Decay by all earlier positions, one at the first; from sums of logarithms, as a product rounds every factor."""
    earlier = log_decay[..., :-1, :].cumsum(-2)
    return torch.cat([torch.zeros_like(log_decay[..., :1, :]), earlier], dim=-2).exp()


def behind(log_decay: Float[Tensor, "... position key"]) -> Float[Tensor, "... position key"]:
    """Decay by all later positions: one at the last."""
    return before(log_decay.flip(-2)).flip(-2)


def bonus_step(
    r: Float[Tensor, "batch head key"],
    k: Float[Tensor, "batch head key"],
    v: Float[Tensor, "batch head value"],
    log_decay: Float[Tensor, "*batch head key"],
    bonus: Float[Tensor, "head key"],
    state: Float[Tensor, "batch head key value"],
) -> tuple[Float[Tensor, "batch head value"], Float[Tensor, "batch head key value"]]:
    """One token of RWKV-5 or 6: it is read with a bonus before it is written.

    Args:
        r: Receptance: what is read.
        k: Key.
        v: Value.
        log_decay: Logarithm of the factor on the state.
        bonus: Weight of the token itself.
        state: Before it.
    """
    write = k.unsqueeze(-1) * v.unsqueeze(-2)
    seen = torch.addcmul(state, bonus.unsqueeze(-1), write)
    out = (r.unsqueeze(-2) @ seen).squeeze(-2)
    return out, forget(state, log_decay.unsqueeze(-1), write)


def bonus_chunked(
    r: Float[Tensor, "batch token head key"],
    k: Float[Tensor, "batch token head key"],
    v: Float[Tensor, "batch token head value"],
    log_decay: Float[Tensor, "#batch token head key"],
    bonus: Float[Tensor, "head key"],
    state: Float[Tensor, "batch head key value"],
) -> tuple[Float[Tensor, "batch token head value"], Float[Tensor, "batch head key value"]]:
    """Many tokens of RWKV-5 or 6; arguments as in :func:`bonus_step`, with tokens."""
    n_tokens = v.shape[1]
    length = min(CHUNK_TOKENS, n_tokens)
    r, k, v, log_decay = (split(x, length) for x in (r, k, v, log_decay))
    decay = log_decay.exp()
    pairs = scores(r, k, decay) + torch.diag_embed((r * bonus.unsqueeze(-2) * k).sum(-1))
    writes = (k * behind(log_decay)).mT @ v
    whole = log_decay.sum(-2).exp().unsqueeze(-1)
    starts, last = carry(state, whole.expand(len(state), *whole.shape[1:]), writes)
    out = pairs @ v + (r * before(log_decay)) @ starts
    return join(out, n_tokens), last

"""Tokens cut into chunks of equal length, and the one loop over chunks that stays a loop."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def split(x: Float[Tensor, "batch token head ..."], length: int) -> Float[Tensor, "batch chunk head position ..."]:
    """Chunks of ``length`` tokens, the last filled up with zeros: key, value and log-decay of zero change no state.

    Args:
        x: One tensor of the inputs.
        length: Tokens of a chunk.
    """
    batch, n_tokens, *rest = x.shape
    missing = -n_tokens % length
    if missing:
        x = torch.cat([x, x.new_zeros(batch, missing, *rest)], dim=1)
    return x.reshape(batch, -1, length, *rest).transpose(2, 3)


def join(y: Float[Tensor, "batch chunk head position value"], n_tokens: int) -> Float[Tensor, "batch token head value"]:
    """The inverse of :func:`split`, without the filling.

    Args:
        y: Outputs by chunk.
        n_tokens: Tokens that there really are.
    """
    return y.transpose(2, 3).flatten(1, 2)[:, :n_tokens]


def carry(state: Tensor, decays: Tensor, writes: Tensor) -> tuple[Tensor, Tensor]:
    """The state at the start of each chunk: ``state = decay * state + write``, chunk by chunk.

    Args:
        state: Before the first chunk, shape (batch, ...).
        decays: Factor of each whole chunk, shape (batch, chunk, ...), broadcast against the state.
        writes: What each chunk adds to the state at its end, shape (batch, chunk, ...).

    Returns:
        States of shape (batch, chunk, ...), and the state after the last chunk.
    """
    starts: list[Tensor] = []
    for decay, write in zip(decays.unbind(1), writes.unbind(1), strict=True):
        starts.append(state)
        state = torch.addcmul(write, decay, state)
    return stack(starts), state


def stack(by_chunk: Sequence[Tensor]) -> Tensor:
    """Tensors of one chunk each, with the axis of chunks behind the batch.

    Args:
        by_chunk: In order.
    """
    return torch.stack(list(by_chunk), dim=1)

"""One step of forgetting that does not drift.

In fp32 a factor just below one is rounded by up to 3e-8. Where it is the same for every token, so is the error, and the
errors add up: 1e-5 of the state after a thousand tokens. What is lost of a slow decay has all its digits.
"""

import torch
from torch import Tensor

#: Above this log-decay what is lost is subtracted; below it a state is gone before errors add up.
_SLOW_LOG_DECAY = -0.5


def forget(state: Tensor, log_decay: Tensor, write: Tensor) -> Tensor:
    """``exp(log_decay) * state + write``.

    Args:
        state: Before the token.
        log_decay: Never positive but for a rounding; broadcast against the state.
        write: What the token adds.
    """
    kept, change = split_decay(log_decay)
    return torch.addcmul(torch.addcmul(write, change, state), kept, state)


def split_decay(log_decay: Tensor) -> tuple[Tensor, Tensor]:
    """A decay as the sum of two factors, for several states: one that fp32 holds exactly, or nothing beside it.

    Args:
        log_decay: As in :func:`forget`.

    Returns:
        One and the (negative) change of a slow decay; a fast decay and zero.
    """
    slow = log_decay > _SLOW_LOG_DECAY
    return torch.where(slow, 1.0, log_decay.exp()), torch.where(slow, log_decay.expm1(), 0.0)

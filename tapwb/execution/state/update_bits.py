"""Rounding what a token writes into a state to that token's bits.

A state has no token axis, but its updates have: the vectors whose outer product a token adds. Each of them is rounded
symmetrically, to the nearest, with one scale for its last axis, at the level of its token. Decays, step sizes and what
only reads are not touched: their errors would not be the token's own.
"""

import dataclasses
from typing import TypeVar

import torch
from torch import Tensor

from tapwb.core.errors import UnsupportedBits
from tapwb.models.recurrent.form import TokenInputs

InputsT = TypeVar("InputsT", bound=TokenInputs)
#: From here on an update is left as it is.
EXACT_BITS = 16
_LOWEST_BITS = 2


def round_updates(inputs: InputsT, bits: int | Tensor) -> InputsT:
    """The same tokens with updates at their bits.

    Args:
        inputs: Of a form.
        bits: One level, or one for each token, shape (token,) or (batch * token,): 2 to 15; from 16 on nothing changes.

    Raises:
        UnsupportedBits: If a level is below 2.
    """
    if isinstance(bits, int):
        if bits >= EXACT_BITS:
            return inputs
        bits = torch.full((inputs.n_tokens,), bits)
    if bits.numel() and int(bits.min()) < _LOWEST_BITS:
        raise UnsupportedBits(
            f"updates of a state cannot be rounded to {int(bits.min())} bits. Give {_LOWEST_BITS} or more; from "
            f"{EXACT_BITS} on they are left as they are."
        )
    names = inputs.WRITTEN
    return dataclasses.replace(inputs, **{name: _rounded(getattr(inputs, name), bits) for name in names})


def _rounded(x: Tensor, bits: Tensor) -> Tensor:
    """One vector of each token (or head) at the token's bits.

    Args:
        x: Shape (batch, token, ..., channel).
        bits: Shape (token,) or (batch * token,).
    """
    by_token = bits.view(-1, x.shape[1]).to(x.device)[(..., *(None,) * (x.ndim - 2))]
    steps = torch.exp2(by_token.clamp(max=EXACT_BITS - 1).float() - 1) - 1
    scale = x.abs().amax(dim=-1, keepdim=True) / steps
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))
    return torch.where(by_token >= EXACT_BITS, x, (x / safe).round() * safe)

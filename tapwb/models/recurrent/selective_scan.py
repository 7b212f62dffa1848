"""Selective scan of Mamba-1 (Gu & Dao 2023, arXiv:2312.00752, equation 2 with section 3.2's discretization).

``h = exp(dt A) h + dt B x``, ``y = C h + D x``; every channel keeps ``state`` numbers of its own. Their decays depend
on channel, state and token at once, so there is no matrix form: the recurrence stays a loop, with two operations in it,
and all the rest is done for a block of tokens together.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tapwb.models.recurrent.form import RecurrentForm, State, StateSpec, TokenInputs, check_tokens

#: Tokens that are prepared together: enough to hide the cost of a call, few enough for decays to stay in the cache.
_BLOCK_TOKENS = 16


@dataclass(frozen=True, slots=True, eq=False)
class MambaInputs(TokenInputs):
    """What a Mamba-1 layer gives its scan.

    Attributes:
        x: Inputs behind the convolution, shape (batch, token, channel).
        dt: Step sizes behind the softplus, never negative.
        A: Rates, negative, shape (channel, state).
        B: How a token is written, shape (batch, token, state).
        C: How the state is read.
        D: Weight of the input itself, shape (channel,); ``None`` for none.
    """

    x: Float[Tensor, "batch token channel"]
    dt: Float[Tensor, "batch token channel"]
    A: Float[Tensor, "channel state"]
    B: Float[Tensor, "batch token state"]
    C: Float[Tensor, "batch token state"]
    D: Float[Tensor, " channel"] | None = None

    PER_TOKEN: ClassVar[tuple[str, ...]] = ("x", "dt", "B", "C")
    WRITTEN: ClassVar[tuple[str, ...]] = ("x", "B")


@dataclass(frozen=True, slots=True)
class SelectiveScan(RecurrentForm[MambaInputs]):
    """The scan of one layer.

    Attributes:
        channels: Inner width of the layer.
        state_size: Numbers that each channel keeps.
    """

    channels: int
    state_size: int

    def state_spec(self) -> tuple[StateSpec, ...]:
        """One tensor, ``"ssm"``, of shape (channel, state)."""
        meaning = "decayed sum of what each channel wrote"
        return (StateSpec("ssm", ("channel", "state"), (self.channels, self.state_size), meaning),)

    def step(self, inputs: MambaInputs, state: State) -> tuple[Float[Tensor, "batch token channel"], State]:
        """See :meth:`RecurrentForm.step`."""
        check_tokens(inputs, single=True)
        x, dt, b, c = inputs.x[:, 0], inputs.dt[:, 0], inputs.B[:, 0], inputs.C[:, 0]
        decay = torch.exp(dt.unsqueeze(-1) * inputs.A)
        h = torch.addcmul((dt * x).unsqueeze(-1) * b.unsqueeze(-2), decay, state["ssm"])
        y = (h @ c.unsqueeze(-1)).squeeze(-1)
        return _with_skip(y, x, inputs.D).unsqueeze(1), {"ssm": h}

    def chunk(self, inputs: MambaInputs, state: State) -> tuple[Float[Tensor, "batch token channel"], State]:
        """See :meth:`RecurrentForm.chunk`."""
        check_tokens(inputs)
        h, outputs = state["ssm"], []
        for start in range(0, inputs.n_tokens, _BLOCK_TOKENS):
            block = inputs.tokens(start, start + _BLOCK_TOKENS)
            # Tokens first: what the loop takes is then contiguous.
            x, dt, b, c = (tensor.transpose(0, 1) for tensor in (block.x, block.dt, block.B, block.C))
            decays = (dt.unsqueeze(-1) * inputs.A).exp_()
            writes = (dt * x).unsqueeze(-1) * b.unsqueeze(-2)
            for decay, write, read in zip(decays, writes, c.unsqueeze(-1), strict=True):
                h = torch.addcmul(write, decay, h)
                outputs.append((h @ read).squeeze(-1))
        return _with_skip(torch.stack(outputs, dim=1), inputs.x, inputs.D), {"ssm": h}


def _with_skip(y: Tensor, x: Tensor, weight: Tensor | None) -> Tensor:
    return y if weight is None else torch.addcmul(y, x, weight)

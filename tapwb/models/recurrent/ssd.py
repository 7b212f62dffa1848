"""State space duality of Mamba-2 (Dao & Gu 2024, arXiv:2405.21060; algorithm of its section 6).

``h = exp(dt A) h + dt x B^T``, ``y = h C + D x``: Mamba's recurrence with one decay for a whole head, which makes it
linear attention with ``q = C``, ``k = B`` and ``v = dt x``.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tapwb.models.recurrent.form import ParallelForm, State, StateSpec, TokenInputs, check_tokens
from tapwb.models.recurrent.head_decay import chunked, parallel, segment_decay


@dataclass(frozen=True, slots=True, eq=False)
class SSDInputs(TokenInputs):
    """What a Mamba-2 layer gives its recurrence.

    Attributes:
        x: Inputs behind the convolution, shape (batch, token, head, channel).
        dt: Step sizes behind the softplus and its limits, never negative, shape (batch, token, head).
        A: Rates, negative, shape (head,).
        B: How a token is written, shape (batch, token, group, state); consecutive heads share a group.
        C: How the state is read.
        D: Weight of the input itself, shape (head,); ``None`` for none.
    """

    x: Float[Tensor, "batch token head channel"]
    dt: Float[Tensor, "batch token head"]
    A: Float[Tensor, " head"]
    B: Float[Tensor, "batch token group state"]
    C: Float[Tensor, "batch token group state"]
    D: Float[Tensor, " head"] | None = None

    PER_TOKEN: ClassVar[tuple[str, ...]] = ("x", "dt", "B", "C")
    WRITTEN: ClassVar[tuple[str, ...]] = ("x", "B")


@dataclass(frozen=True, slots=True)
class SSD(ParallelForm[SSDInputs]):
    """The recurrence of one layer.

    Attributes:
        heads: Heads, a multiple of the groups of B and C.
        head_channels: Channels of a head.
        state_size: Numbers that each channel keeps.
    """

    heads: int
    head_channels: int
    state_size: int

    def state_spec(self) -> tuple[StateSpec, ...]:
        """One tensor, ``"ssm"``, of shape (head, channel, state)."""
        shape = (self.heads, self.head_channels, self.state_size)
        return (StateSpec("ssm", ("head", "channel", "state"), shape, "decayed sum of dt x B^T"),)

    def step(self, inputs: SSDInputs, state: State) -> tuple[Float[Tensor, "batch token head channel"], State]:
        """See :meth:`RecurrentForm.step`."""
        check_tokens(inputs, single=True)
        x, dt = inputs.x[:, 0], inputs.dt[:, 0]
        b, c = (tensor[:, 0].repeat_interleave(self.heads // tensor.shape[2], dim=1) for tensor in (inputs.B, inputs.C))
        decay = torch.exp(dt * inputs.A)[..., None, None]
        h = torch.addcmul((dt.unsqueeze(-1) * x).unsqueeze(-1) * b.unsqueeze(-2), decay, state["ssm"])
        y = (h @ c.unsqueeze(-1)).squeeze(-1)
        return _with_skip(y, x, inputs.D).unsqueeze(1), {"ssm": h}

    def chunk(self, inputs: SSDInputs, state: State) -> tuple[Float[Tensor, "batch token head channel"], State]:
        """See :meth:`RecurrentForm.chunk`."""
        check_tokens(inputs)
        written = inputs.x * inputs.dt.unsqueeze(-1)
        y, last = chunked(inputs.C, inputs.B, written, inputs.dt * inputs.A, state["ssm"].mT)
        return _with_skip(y, inputs.x, inputs.D), {"ssm": last.mT.contiguous()}

    def parallel(self, inputs: SSDInputs) -> Float[Tensor, "batch token head channel"]:
        """See :meth:`ParallelForm.parallel`."""
        check_tokens(inputs)
        decay = segment_decay((inputs.dt * inputs.A).transpose(1, 2))
        return _with_skip(parallel(inputs.C, inputs.B, inputs.x * inputs.dt.unsqueeze(-1), decay), inputs.x, inputs.D)


def _with_skip(y: Tensor, x: Tensor, weight: Tensor | None) -> Tensor:
    return y if weight is None else torch.addcmul(y, x, weight.unsqueeze(-1))

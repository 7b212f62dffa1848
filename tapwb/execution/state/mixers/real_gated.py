"""The recurrence of RecurrentGemma: one real factor and one sum per channel (De et al. 2024, arXiv:2402.19427, eq. 4).

``h = a h + x``; gates, and what scales an input by its decay, belong to the layer. A factor of zero begins a text.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tapwb.models.recurrent.form import RecurrentForm, State, StateSpec, TokenInputs, check_tokens


@dataclass(frozen=True, slots=True, eq=False)
class RealGatedInputs(TokenInputs):
    """What a layer gives its recurrence.

    Attributes:
        x: What is added, shape (batch, token, channel).
        decay: Factor on the state before, in [0, 1].
    """

    x: Float[Tensor, "batch token channel"]
    decay: Float[Tensor, "batch token channel"]

    PER_TOKEN: ClassVar[tuple[str, ...]] = ("x", "decay")
    WRITTEN: ClassVar[tuple[str, ...]] = ("x",)


@dataclass(frozen=True, slots=True)
class RealGated(RecurrentForm[RealGatedInputs]):
    """The recurrence of one layer; its output is its state.

    Attributes:
        channels: Width of the layer.
    """

    channels: int

    def state_spec(self) -> tuple[StateSpec, ...]:
        """One tensor, ``"h"``, of shape (channel,)."""
        return (StateSpec("h", ("channel",), (self.channels,), "decayed sum of gated inputs"),)

    def step(self, inputs: RealGatedInputs, state: State) -> tuple[Float[Tensor, "batch token channel"], State]:
        """See :meth:`RecurrentForm.step`."""
        check_tokens(inputs, single=True)
        h = torch.addcmul(inputs.x[:, 0], inputs.decay[:, 0], state["h"])
        return h.unsqueeze(1), {"h": h}

    def chunk(self, inputs: RealGatedInputs, state: State) -> tuple[Float[Tensor, "batch token channel"], State]:
        """See :meth:`RecurrentForm.chunk`.

        Chunks are as long as there are chunks: all are added up side by side from nothing, then what came before each
        is carried into it.
        """
        check_tokens(inputs)
        n_tokens = inputs.n_tokens
        length = math.isqrt(n_tokens - 1) + 1
        x, decay = _fold(inputs.x, length, 0.0), _fold(inputs.decay, length, 1.0)
        sums, factors = [x[:, :, 0]], [decay[:, :, 0]]
        for position in range(1, length):
            sums.append(torch.addcmul(x[:, :, position], decay[:, :, position], sums[-1]))
            factors.append(decay[:, :, position] * factors[-1])
        h, starts = state["h"], []
        for chunk in range(x.shape[1]):
            starts.append(h)
            h = torch.addcmul(sums[-1][:, chunk], factors[-1][:, chunk], h)
        start = torch.stack(starts, dim=1).unsqueeze(2)
        out = torch.addcmul(torch.stack(sums, dim=2), torch.stack(factors, dim=2), start)
        return out.flatten(1, 2)[:, :n_tokens], {"h": h}


def _fold(
    x: Float[Tensor, "batch token channel"], length: int, filling: float
) -> Float[Tensor, "batch chunk position channel"]:
    """Chunks of ``length`` tokens; the last is filled up with what changes no state."""
    missing = -x.shape[1] % length
    filled = torch.cat([x, x.new_full((len(x), missing, x.shape[2]), filling)], dim=1)
    return filled.unflatten(1, (-1, length))

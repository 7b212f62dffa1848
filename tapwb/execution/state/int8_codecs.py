"""States at 8 bits with a scale for each row: rounded to the nearest, the control that fails, or at random.

Rounding to the nearest forgets every increment below half a step. Rounding up with the probability of the remainder
(stochastic rounding) keeps sums right on average and pays with noise.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tapwb.execution.state.codec import HeldState, codecs, row_scale

_TOP = 127


@dataclass(frozen=True, slots=True)
class Int8Codec:
    """One byte a number, one bf16 scale a row."""

    def encode(self, state: Tensor) -> HeldState:
        """See :class:`~tapwb.execution.state.codec.StateCodec`."""
        scale = row_scale(state, _TOP)
        codes = self._rounded(state / scale).clamp(-_TOP, _TOP).to(torch.int8)
        return HeldState(tuple(state.shape), {"codes": codes, "scale": scale.bfloat16()})

    def decode(self, held: HeldState) -> Tensor:
        """See :class:`~tapwb.execution.state.codec.StateCodec`."""
        return held.parts["codes"].float() * held.parts["scale"].float()

    def _rounded(self, exact: Tensor) -> Tensor:
        return exact.round()


@dataclass(frozen=True, slots=True)
class RandomInt8Codec(Int8Codec):
    """The same with stochastic rounding.

    What it stores depends on what it stored before: noise that followed from the state alone would round the same state
    the same way for ever, and sums would stop all the same.
    """

    _generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def _rounded(self, exact: Tensor) -> Tensor:
        noise = torch.rand(exact.shape, generator=self._generator).to(exact.device)
        return torch.floor(exact + noise)


codecs.add("int8", Int8Codec(), "8 bits to the nearest, scale by row: forgets slow signals")
codecs.add("int8-random", RandomInt8Codec(), "8 bits with stochastic rounding: right on average, noisy")

"""States at 8 bits with the rounding error kept beside them at 4: error feedback.

What rounding to 8 bits leaves is stored too, in sixteenths of a step, two residuals a byte. The next state starts from
the sum, so an increment is lost only below a thirty-second of an 8-bit step: twelve bits a number, near fp16 in size of
error and, unlike it, even over the whole row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tapwb.execution.state.codec import HeldState, codecs, row_scale

_TOP = 127
_PARTS = 16  # of a step that the residual tells apart
_LOWEST, _HIGHEST = -8, 7


@dataclass(frozen=True, slots=True)
class FeedbackCodec:
    """One byte and half a byte a number, one bf16 scale a row."""

    def encode(self, state: Tensor) -> HeldState:
        """See :class:`~tapwb.execution.state.codec.StateCodec`."""
        scale = row_scale(state, _TOP)
        exact = state / scale
        codes = exact.round().clamp(-_TOP, _TOP)
        residuals = ((exact - codes) * _PARTS).round().clamp(_LOWEST, _HIGHEST).to(torch.int8)
        if residuals.shape[-1] % 2:
            residuals = torch.nn.functional.pad(residuals, (0, 1))
        nibbles = (residuals - _LOWEST).to(torch.uint8)
        packed = nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)
        parts = {"codes": codes.to(torch.int8), "residuals": packed, "scale": scale.bfloat16()}
        return HeldState(tuple(state.shape), parts)

    def decode(self, held: HeldState) -> Tensor:
        """See :class:`~tapwb.execution.state.codec.StateCodec`."""
        packed = held.parts["residuals"]
        nibbles = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)[..., : held.shape[-1]]
        residuals = nibbles.float() + _LOWEST
        return (held.parts["codes"].float() + residuals / _PARTS) * held.parts["scale"].float()


codecs.add("int8+4", FeedbackCodec(), "8 bits and the rounding error at 4: twelve bits a number")

"""States as floating-point numbers: fp32, the specification, and the 16-bit types in which others keep them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tapwb.execution.state.codec import HeldState, codecs


@dataclass(frozen=True, slots=True)
class FloatCodec:
    """Rounding to a floating-point type.

    Attributes:
        dtype: The type.
    """

    dtype: torch.dtype

    def encode(self, state: Tensor) -> HeldState:
        """See :class:`~tapwb.execution.state.codec.StateCodec`."""
        return HeldState(tuple(state.shape), {"values": state.to(self.dtype)})

    def decode(self, held: HeldState) -> Tensor:
        """See :class:`~tapwb.execution.state.codec.StateCodec`."""
        return held.parts["values"].float()


codecs.add("fp32", FloatCodec(torch.float32), "as it is computed")
codecs.add("fp16", FloatCodec(torch.float16), "10 binary digits behind the first; loses what is small beside it")
codecs.add("bf16", FloatCodec(torch.bfloat16), "7 binary digits behind the first: slow sums come to a stop")

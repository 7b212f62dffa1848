"""What an RWKV model keeps of a sequence: a few tensors per layer, of one size at every length.

A state is a value. ``forward`` and ``step`` take one and return a new one; no tensor in it is written in place, so the
state before a token can be kept, compared, quantized or gone back to without a copy.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LayerState:
    """The state of one layer.

    Attributes:
        time_shift: Normalised input of the time mix at the last token.
        channel_shift: Normalised input of the channel mix at the last token.
        wkv: The memory. RWKV-4: (batch, 3, width) with numerator, denominator and their exponent (``v4.py``).
            RWKV-5.2 and 7: (batch, head, key, value), one matrix per head.
    """

    time_shift: Float[Tensor, "batch width"]
    channel_shift: Float[Tensor, "batch width"]
    wkv: Float[Tensor, "batch ..."]


@dataclass(frozen=True, slots=True)
class RwkvState:
    """The state of a model, one entry per layer."""

    layers: tuple[LayerState, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(t.nbytes for layer in self.layers for t in (layer.time_shift, layer.channel_shift, layer.wkv))

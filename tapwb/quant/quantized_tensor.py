"""The record of one quantized tensor: packed codes, two numbers per group, and how to read them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from tapwb.quant.packing import unpack_codes


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedTensor:
    """A tensor in few bits.

    Attributes:
        packed: All codes as one bit stream (:func:`tapwb.quant.packing.pack_codes`), groups one after the other.
        scale: One number per group; what it means is the scheme's.
        offset: One number per group: the value of code 0 for uniform grids (always 0 if symmetric).
        shape: Of the original tensor.
        dtype: Of the original tensor, and of what comes out by default.
        bits: Width of a code.
        scheme: Registered name of the quantizer.
        granularity: Which values share a scale.
        group_size: Values per group in ``per_group``.
        items_per_group: Codes per group, filling included.
    """

    packed: UInt8[Tensor, " byte"]
    scale: Float[Tensor, " group"]
    offset: Float[Tensor, " group"]
    shape: tuple[int, ...]
    dtype: torch.dtype
    bits: int
    scheme: str
    granularity: str
    group_size: int
    items_per_group: int

    @property
    def n_groups(self) -> int:
        """Groups, each with its own scale."""
        return int(self.scale.shape[0])

    @property
    def zero_point(self) -> Float[Tensor, " group"]:
        """The (real-valued) code that stands for 0 on a uniform grid: ``-offset / scale``; 0 where the scale is 0."""
        scale, offset = self.scale.float(), self.offset.float()
        return torch.where(scale != 0, -offset / scale, torch.zeros_like(scale))

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales, and offsets; offsets that are all zero by construction are not stored."""
        offsets = 0 if self.scheme == "symmetric" else self.offset.numel() * self.offset.element_size()
        return self.packed.numel() + self.scale.numel() * self.scale.element_size() + offsets

    @property
    def effective_bits(self) -> float:
        """Stored bits per value, scales, offsets and filling included; 0 for an empty tensor."""
        count = torch.Size(self.shape).numel()
        return 8 * self.nbytes / count if count else 0.0

    def codes(self) -> UInt8[Tensor, "group item"]:
        """The codes, one row per group."""
        flat = unpack_codes(self.packed, self.bits, self.n_groups * self.items_per_group)
        return flat.reshape(self.n_groups, self.items_per_group)

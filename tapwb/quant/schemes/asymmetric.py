"""Asymmetric: grid points at equal distances from the smallest to the largest value of the group.

``code = round((w - offset) / scale)`` and ``w = offset + code * scale`` with ``offset = min`` and
``scale = (max - min) / (2**bits - 1)``. The offset is a real number (what llama.cpp calls the minimum), not a code: a
group that lies far from zero keeps its full resolution, and a constant group is its offset.
"""

import torch
from torch import Tensor

from tapwb.quant.scheme import quantizers


@quantizers.register("asymmetric", summary="uses every code between smallest and largest value; for skewed values")
class Asymmetric:
    """Uniform quantizer with an offset."""

    def fit(self, groups: Tensor, bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Offset at the smallest value, scale such that the largest is the last grid point."""
        low, high = groups.aminmax(dim=-1)
        return span_grid(low, high, bits, dtype)

    def encode(self, groups: Tensor, scale: Tensor, offset: Tensor, bits: int) -> Tensor:
        """Nearest grid point."""
        return nearest_code(groups, scale, offset, bits)

    def decode(self, codes: Tensor, scale: Tensor, offset: Tensor, bits: int) -> Tensor:
        """Value of the grid point."""
        return code_value(codes, scale, offset)


def span_grid(low: Tensor, high: Tensor, bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(scale, offset) of a grid from ``low`` to ``high``; the scale makes up for what rounding the offset moved."""
    offset = low.to(dtype)
    return ((high - offset.float()).clamp_min(0) / ((1 << bits) - 1)).to(dtype), offset


def nearest_code(groups: Tensor, scale: Tensor, offset: Tensor, bits: int) -> Tensor:
    """Code of the nearest grid point; 0 throughout a group with scale 0."""
    wide = scale.float().unsqueeze(-1)
    steps = torch.where(wide > 0, (groups - offset.float().unsqueeze(-1)) / wide, torch.zeros_like(groups))
    return steps.round().clamp(0, (1 << bits) - 1).to(torch.uint8)


def code_value(codes: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """``offset + code * scale`` in fp32."""
    return offset.float().unsqueeze(-1) + codes.float() * scale.float().unsqueeze(-1)

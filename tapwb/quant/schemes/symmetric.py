"""Symmetric: grid points at equal distances on both sides of zero, which is itself a point.

``code = round(w / scale) + n`` and ``w = (code - n) * scale`` with ``n = 2**(bits - 1) - 1`` and ``scale = max |w| /
n``. One of the codes is not used, in exchange for +max and -max being treated alike (Nagel et al. 2021, arXiv
2106.08295, section 2.2).
"""

import torch
from torch import Tensor

from tapwb.quant.scheme import quantizers


@quantizers.register("symmetric", summary="zero exact, equal range on both sides; for zero-centred values")
class Symmetric:
    """Signed uniform quantizer; the offset is always 0 and not used."""

    def fit(self, groups: Tensor, bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Scale such that the largest magnitude is the last grid point."""
        low, high = groups.aminmax(dim=-1)
        largest = torch.maximum(-low, high)
        # A constant group is one step: (c / n) * n would miss c by a rounding.
        scale = torch.where(low == high, largest, largest / _half_range(bits)).to(dtype)
        return scale, torch.zeros_like(scale)

    def encode(self, groups: Tensor, scale: Tensor, offset: Tensor, bits: int) -> Tensor:
        """Nearest grid point."""
        n = _half_range(bits)
        wide = scale.float().unsqueeze(-1)
        steps = torch.where(wide > 0, groups / wide, torch.zeros_like(groups))
        return (steps.round().clamp(-n, n) + n).to(torch.uint8)

    def decode(self, codes: Tensor, scale: Tensor, offset: Tensor, bits: int) -> Tensor:
        """Value of the grid point."""
        return (codes.float() - _half_range(bits)) * scale.float().unsqueeze(-1)


def _half_range(bits: int) -> int:
    return (1 << (bits - 1)) - 1

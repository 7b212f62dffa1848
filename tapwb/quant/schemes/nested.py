"""Nested as one of the schemes: what :mod:`tapwb.quant.nested` reads at a level, for comparison with the others.

The codes are the top bits of the 8-bit cell, the numbers per group are (step, min), or the fitted pair at 1 and 2 bits.
Cells are read at their middle, so below 8 bits the extreme values of a group are not reproduced and quantizing twice
narrows it.
"""

import torch
from torch import Tensor

from tapwb.quant.nested import LOW_LEVELS, cell_codes, cell_range, fit_low_level
from tapwb.quant.packing import CODE_BITS, level_affine
from tapwb.quant.scheme import quantizers


@quantizers.register(
    "nested", summary="top bits of one 8-bit code; every width from the same copy", min_bits=1, idempotent=False
)
class Nested:
    """Mid-rise cells whose every prefix is again a quantization."""

    def fit(self, groups: Tensor, bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(step, min) of the 8-bit cells, or the fitted (scale, offset) at 1 and 2 bits."""
        low, step = _cells(groups, dtype)
        return fit_low_level(cell_codes(groups, low, step), groups, bits, dtype) if bits in LOW_LEVELS else (step, low)

    def encode(self, groups: Tensor, scale: Tensor, offset: Tensor, bits: int) -> Tensor:
        """Top ``bits`` bits of the 8-bit cell."""
        # At 1 and 2 bits the stored pair describes the reading, not the cells, so these are found again.
        low, step = _cells(groups, scale.dtype) if bits in LOW_LEVELS else (offset, scale)
        return cell_codes(groups, low, step) >> (CODE_BITS - bits)

    def decode(self, codes: Tensor, scale: Tensor, offset: Tensor, bits: int) -> Tensor:
        """Middle of the cell, or the fitted value."""
        wide, start = level_affine(offset, scale, bits, {bits: (scale, offset)})
        return start.unsqueeze(-1) + codes.float() * wide.unsqueeze(-1)


def _cells(groups: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    low, high = groups.aminmax(dim=-1)
    return cell_range(low, high, dtype)

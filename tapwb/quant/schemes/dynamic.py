"""Dynamic: every group chooses its own grid, by the error it really makes.

The candidates are the full span of the group, the span symmetric around zero, and both narrowed to a share of their
width (clipping the few largest values buys finer steps for all others). The candidate with the smallest squared error
wins; the full span comes first and wins ties. The error is therefore never above that of ``asymmetric`` at the same
bits. All candidates are uniform grids, so decoding is that of ``asymmetric`` and costs nothing extra.

The price is paid when quantizing: one pass per candidate. Clipping by error search is that of OmniQuant's and HQQ's
data-free starting points; no calibration data is used.
"""

import torch
from torch import Tensor

from tapwb.quant.scheme import quantizers
from tapwb.quant.schemes.asymmetric import code_value, nearest_code, span_grid

WIDTH_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)


@quantizers.register("dynamic", summary="the best of several grids per group, by squared error; slower to make")
class Dynamic:
    """Uniform quantizer that searches its grid."""

    def fit(self, groups: Tensor, bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The candidate grid with the least squared error, per group."""
        low, high = groups.aminmax(dim=-1)
        largest = torch.maximum(-low, high)
        best_scale, best_offset = span_grid(low, high, bits, dtype)
        best = _squared_error(groups, best_scale, best_offset, bits)
        for share in WIDTH_SHARES:
            for start, end in ((low, high), (-largest, largest)):
                middle, half = (start + end) / 2, (end - start) / 2 * share
                scale, offset = span_grid(middle - half, middle + half, bits, dtype)
                error = _squared_error(groups, scale, offset, bits)
                better = error < best
                best = torch.where(better, error, best)
                best_scale = torch.where(better, scale, best_scale)
                best_offset = torch.where(better, offset, best_offset)
        return best_scale, best_offset

    def encode(self, groups: Tensor, scale: Tensor, offset: Tensor, bits: int) -> Tensor:
        """Nearest grid point; values outside the grid get its nearest end."""
        return nearest_code(groups, scale, offset, bits)

    def decode(self, codes: Tensor, scale: Tensor, offset: Tensor, bits: int) -> Tensor:
        """Value of the grid point."""
        return code_value(codes, scale, offset)


def _squared_error(groups: Tensor, scale: Tensor, offset: Tensor, bits: int) -> Tensor:
    codes = nearest_code(groups, scale, offset, bits)
    return (code_value(codes, scale, offset) - groups).square().sum(dim=-1)

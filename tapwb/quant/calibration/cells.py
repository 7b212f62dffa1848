"""Where the 256 cells of a group lie: a search over shift and width.

Plain cells reach from the smallest to the largest weight. But at 4 bits there are only sixteen of them for (say) 64
weights, and how well they happen to fit differs a lot from grid to grid: trying some dozens of grids and keeping the
best takes a quarter off the squared error of Gaussian weights, and far more where the weights already lie on a grid of
their own. The score of a grid is the sum over all levels, so that no level is bought with another.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tapwb.quant.calibration.levels import CELL_WEIGHTS, cell_width
from tapwb.quant.metadata import metadata_dtype
from tapwb.quant.packing import CODE_BITS

#: Widths to try, relative to 256 cells between the extremes. Below 1 the outermost weights are clipped.
WIDTHS = (0.8, 0.84, 0.88, 0.92, 0.96, 1.0, 1.04, 1.08)
#: Shifts to try for each width, spread over one cell of 4 bits.
N_SHIFTS = 16
#: Share of the mean importance that every column gets: columns that the text did not use are not free.
FLOOR = 0.3
#: Weights per block: enough that a step outweighs its call, few enough that its temporaries stay in the cache.
_BLOCK_WEIGHTS = 1 << 19


def search_cells(
    groups: Float[Tensor, "row group column"], variance: Float[Tensor, "group column"]
) -> tuple[Float[Tensor, "row group"], Float[Tensor, "row group"]]:
    """The best (min, step) of every group, as they will be stored.

    Args:
        groups: Weights, fp32.
        variance: Of each input column; 0 for padding.

    Returns:
        Lower edge of the first cell and width of an 8-bit cell, fp16 (fp32 beyond its range).
    """
    importance = variance.clamp_min(0)
    importance = importance + FLOOR * importance.mean().clamp_min(1e-30) * (importance > 0)
    low, high = groups.amin(-1), groups.amax(-1)
    dtype = metadata_dtype(float(groups.abs().max()), float((high - low).max()) / 255)
    group_min, group_step = low.clone(), ((high - low) / 256)
    rows_per_block = max(1, _BLOCK_WEIGHTS // (groups.shape[1] * groups.shape[2]))
    for start in range(0, groups.shape[0], rows_per_block):
        block = slice(start, start + rows_per_block)
        group_min[block], group_step[block] = _search_block(groups[block], importance, low[block], high[block])
    return group_min.to(dtype), group_step.to(dtype)


def _search_block(groups: Tensor, importance: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    # A constant group keeps cells of width 0: its value is the lower edge.
    step = (high - low) / 256
    safe = torch.where(step > 0, step, torch.ones_like(step))
    best_loss = torch.full_like(low, torch.inf)
    best_width, best_shift = torch.ones_like(low), torch.zeros_like(low)
    place = (groups - ((low + high) / 2).unsqueeze(-1)) / safe.unsqueeze(-1)  # in plain cells from the middle
    scratch = [torch.empty_like(place) for _ in range(4)]
    for width in WIDTHS:
        scaled = place / width + 128
        for index in range(N_SHIFTS):
            shift = cell_width(4) * ((index + 0.5) / N_SHIFTS - 0.5)
            loss = _loss(scaled, shift, importance, scratch) * width**2
            better = loss < best_loss
            best_loss = torch.where(better, loss, best_loss)
            best_width.masked_fill_(better, width)
            best_shift.masked_fill_(better, shift)
    new_step = step * best_width
    return (low + high) / 2 + (best_shift - 128) * new_step, new_step


def _loss(scaled: Tensor, shift: float, importance: Tensor, scratch: Sequence[Tensor]) -> Tensor:
    """Weighted squared error of all levels, each in units of its own plain rounding error.

    Everything but the result is computed in the four tensors of ``scratch``: memory made anew for each of a hundred
    grids would cost as much as the arithmetic.
    """
    place, inside, error, total = scratch
    torch.sub(scaled, shift, out=place)
    torch.clamp(place, 0, 255.999, out=inside)
    clipped = place.sub_(inside)
    # The place inside a cell of the top level is as good as random: only clipping tells the grids apart.
    torch.mul(clipped, clipped, out=total).add_(1 / 12).mul_(CELL_WEIGHTS[CODE_BITS])
    for bits, weight in CELL_WEIGHTS.items():
        if bits != CODE_BITS:
            share = 1 / cell_width(bits)
            torch.mul(inside, share, out=error).frac_().sub_(0.5).add_(clipped, alpha=share)
            total.addcmul_(error, error, value=weight)
    return total.mul_(importance).sum(-1)

"""Which side of a boundary: error feedback for several levels at once.

GPTQ (Frantar et al. 2023, arXiv 2210.17323) rounds one column after the other and lets the columns that are still to
come make up for the error, weighed by the inverse covariance of the inputs. With nested cells every level has its own
error but all share one code. Here every level keeps its own feedback, and a weight may take one of the few 8-bit cells
around its true place: at a boundary between two wide cells a step of one narrow cell swaps the sign of the wide cell's
error, which costs the 8-bit reading next to nothing and gives the lower levels a choice in every eighth weight (4 bits)
to every second one (6 bits). Rounding freely at 4 bits would lose less there and ruin the 8-bit reading of that code.
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from tapwb.quant.calibration.levels import CLOSE, Freedom, cell_width

_COLUMNS_PER_BLOCK = 64
_ROWS_PER_BLOCK = 2048


def round_jointly(
    weight: Float[Tensor, "row column"],
    group_min: Float[Tensor, "row group"],
    group_step: Float[Tensor, "row group"],
    covariance: Float[Tensor, "column column"],
    group_size: int,
    freedom: Freedom = CLOSE,
) -> UInt8[Tensor, "row column"]:
    """Codes whose reading at all levels disturbs the outputs least.

    Args:
        weight: fp32, columns padded to whole groups.
        group_min: Lower edge of the cells, as stored.
        group_step: Width of an 8-bit cell, as stored.
        covariance: Of the inputs, padded with zeros.
        group_size: Columns per group.
        freedom: How far a weight may move, and for which levels.
    """
    damped = covariance + torch.eye(covariance.shape[0]) * _damping(covariance, freedom.damping)
    # Columns with the loudest inputs first: their errors have the most others to be made up by.
    order = damped.diagonal().argsort(descending=True, stable=True)
    group = order // group_size
    feedback = _inverse_factor(damped[order][:, order])
    codes = torch.empty(weight.shape, dtype=torch.uint8)
    for start in range(0, weight.shape[0], _ROWS_PER_BLOCK):
        rows = slice(start, start + _ROWS_PER_BLOCK)
        step = group_step[rows].float()
        step = torch.where(step > 0, step, torch.ones_like(step))[:, group]
        place = (weight[rows][:, order] - group_min[rows].float()[:, group]) / step
        codes[rows] = _round_rows(place, step, feedback, freedom)[:, order.argsort()].to(torch.uint8)
    return codes


def _damping(covariance: Tensor, share: float) -> float:
    return max(share * float(covariance.diagonal().mean()), 1e-12)


def _inverse_factor(covariance: Tensor) -> Tensor:
    """Upper Cholesky factor of the inverse covariance: row k says how later columns make up for column k."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(covariance.double()))
    return torch.linalg.cholesky(inverse, upper=True).float()


def _round_rows(place: Tensor, step: Tensor, feedback: Tensor, freedom: Freedom) -> Tensor:
    """Codes of some rows; ``place`` is where each weight lies, in 8-bit cells from the lower edge."""
    levels = torch.tensor([float(cell_width(bits)) for bits in freedom.weights]).view(-1, 1, 1)
    cost = torch.tensor(list(freedom.weights.values())).view(-1, 1, 1) / levels.square()
    rows, columns = place.shape
    moves = torch.arange(-freedom.reach, freedom.reach + 1.0).unsqueeze(-1)
    # Column by column, so that what one step touches lies together in memory.
    place, step = place.T.contiguous(), step.T.contiguous()
    codes = torch.empty_like(place)
    # What the feedback of the columns so far adds to each level's target, in units of the weights.
    pending = torch.zeros(columns, len(levels), rows)
    for start in range(0, columns, _COLUMNS_PER_BLOCK):
        end = min(columns, start + _COLUMNS_PER_BLOCK)
        errors = torch.empty(end - start, len(levels), rows)
        for column in range(start, end):
            width = step[column]
            target = pending[column].div_(width).add_(place[column])
            candidates = (place[column].floor().clamp_(0, 255) + moves).clamp_(0, 255)
            read = (candidates / levels).floor_().add_(0.5).mul_(levels)
            best = (read - target.unsqueeze(1)).square_().mul_(cost).sum(0).argmin(0, keepdim=True)
            codes[column] = candidates.gather(0, best)[0]
            chosen = read.gather(1, best.expand(len(levels), -1, -1))[:, 0]
            error = torch.sub(target, chosen, out=errors[column - start]).mul_(width / feedback[column, column])
            pending[column + 1 : end].addcmul_(feedback[column, column + 1 : end].view(-1, 1, 1), error, value=-1)
        if end < columns:
            rest = pending[end:].flatten(1)
            rest.addmm_(feedback[start:end, end:].T, errors.flatten(1), alpha=-1)
    return codes.T

"""The table that is embedding and head at once: codes that make a better head and stay a good embedding.

A table is always read at 8 bits, so only that level counts, and it keeps its plain cells: at 256 cells a group, moving
them gains nothing. Error feedback lets the errors of a row cancel for the inputs that a head really gets; each weight
stays within a cell of its own, so an embedding, which reads single rows, is disturbed by a little more than rounding.
"""

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from tapwb.core.errors import InvalidTensor
from tapwb.quant.calibration.fit import CalibratedCells, level_correction, plain_cells
from tapwb.quant.calibration.levels import CLOSE, LEVELS
from tapwb.quant.calibration.rounding import round_jointly
from tapwb.quant.calibration.statistics import InputStatistics
from tapwb.quant.nested import NestedLayout, pack_cells, padded_groups
from tapwb.quant.packing import CODE_BITS

_ONE_LEVEL = dataclasses.replace(CLOSE, weights={CODE_BITS: 1.0})
#: Rows at a time: a vocabulary is far larger than any other side of a matrix.
_ROWS_PER_BLOCK = 8192


@torch.no_grad()
def calibrate_table(
    weight: Float[Tensor, "row column"], inputs: InputStatistics, *, group_size: int
) -> CalibratedCells:
    """Choose codes for a head that is read at 8 bits only.

    Args:
        weight: Any floating-point matrix; computed in fp32.
        inputs: Statistics of the head's inputs, gathered on a text.
        group_size: Columns per group, a multiple of 8.

    Returns:
        Cells whose gain and bias are zero but at 8 bits.

    Raises:
        InvalidTensor: If the statistics are of another width, or empty.
    """
    columns = int(weight.shape[1])
    covariance = inputs.covariance
    if len(covariance) != columns:
        raise InvalidTensor(f"statistics of {len(covariance)} inputs do not fit a table of {columns} columns.")
    groups = padded_groups(weight, group_size)
    missing = groups.shape[1] * group_size - columns
    covariance = torch.nn.functional.pad(covariance, (0, missing, 0, missing))
    group_min, group_step = plain_cells(groups)
    codes = round_jointly(groups.flatten(1), group_min, group_step, covariance, group_size, _ONE_LEVEL)
    codes = codes.reshape(groups.shape)
    level_gain, level_bias = torch.zeros(2, len(LEVELS), weight.shape[0], dtype=torch.float16)
    index = LEVELS.index(CODE_BITS)
    for start in range(0, weight.shape[0], _ROWS_PER_BLOCK):
        rows = slice(start, start + _ROWS_PER_BLOCK)
        read = pack_cells(weight[rows], codes[rows], group_min[rows], group_step[rows], NestedLayout.named("8"))
        level_gain[index, rows], level_bias[index, rows] = level_correction(
            weight[rows], read.dequantize(CODE_BITS), inputs
        )
    return CalibratedCells(codes, group_min, group_step, level_gain, level_bias, columns)

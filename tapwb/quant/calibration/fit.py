"""One weight, calibrated: cells, codes and what each level leaves over."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from tapwb.core.errors import InvalidTensor
from tapwb.quant.calibration.cells import search_cells
from tapwb.quant.calibration.levels import LEVELS
from tapwb.quant.calibration.rounding import round_jointly
from tapwb.quant.calibration.statistics import InputStatistics
from tapwb.quant.nested import NestedLayout, NestedTensor, pack_cells, padded_groups


@dataclass(frozen=True, slots=True, eq=False)
class CalibratedCells:
    """A calibrated weight before it is cut into planes; serves every layout.

    Attributes:
        codes: 8-bit code of every weight, shape (row, group, column); the last group is padded.
        group_min: Lower edge of the cells, shape (row, group).
        group_step: Width of an 8-bit cell, shape (row, group).
        level_bias: For each of ``LEVELS``, what the layer must add to its output, fp16, shape (level, row).
        columns: Columns of the weight, without padding.
    """

    codes: UInt8[Tensor, "row group column"]
    group_min: Float[Tensor, "row group"]
    group_step: Float[Tensor, "row group"]
    level_bias: Float[Tensor, "level row"]
    columns: int

    def pack(self, weight: Float[Tensor, "row column"], layout: NestedLayout) -> NestedTensor:
        """The planes of one layout.

        Args:
            weight: The unquantized weight; levels of 1 and 2 bits are fitted to it.
            layout: How the codes are cut.

        Raises:
            InvalidTensor: If the weight has another shape.
        """
        if tuple(weight.shape) != (self.codes.shape[0], self.columns):
            raise InvalidTensor(
                f"calibrated cells of a {self.codes.shape[0]} x {self.columns} weight do not fit one of "
                f"{tuple(weight.shape)}. Calibrate this model again."
            )
        return pack_cells(weight, self.codes, self.group_min, self.group_step, layout)


@torch.no_grad()
def calibrate_weight(
    weight: Float[Tensor, "row column"], inputs: InputStatistics, *, group_size: int
) -> CalibratedCells:
    """Choose cells and codes for one weight.

    Args:
        weight: Any floating-point matrix; computed in fp32.
        inputs: Statistics of the layer's inputs, gathered on a text.
        group_size: Columns per group, a multiple of 8.

    Raises:
        InvalidTensor: If the statistics are of another width, or empty.
    """
    groups = padded_groups(weight, group_size)
    n_groups = groups.shape[1]
    columns = int(weight.shape[1])
    covariance, mean = inputs.covariance, inputs.mean
    if mean.numel() != columns:
        raise InvalidTensor(f"statistics of {mean.numel()} inputs do not fit a weight of {columns} columns.")
    missing = n_groups * group_size - columns
    covariance = torch.nn.functional.pad(covariance, (0, missing, 0, missing))
    group_min, group_step = search_cells(groups, covariance.diagonal().reshape(n_groups, group_size))
    codes = round_jointly(groups.flatten(1), group_min, group_step, covariance, group_size)
    codes = codes.reshape(groups.shape)
    nested = pack_cells(weight, codes, group_min, group_step, NestedLayout.named("8"))
    left_over = [(weight.float() - nested.dequantize(bits)) @ mean for bits in LEVELS]
    return CalibratedCells(codes, group_min, group_step, torch.stack(left_over).half(), columns)

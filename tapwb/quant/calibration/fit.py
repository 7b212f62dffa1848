"""One weight, calibrated: cells, codes and what each level loses in a way that is known beforehand."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from tapwb.core.errors import InvalidTensor
from tapwb.quant.calibration.cells import search_cells
from tapwb.quant.calibration.levels import CLOSE, LEVELS, Freedom
from tapwb.quant.calibration.rounding import round_jointly
from tapwb.quant.calibration.statistics import InputStatistics
from tapwb.quant.metadata import metadata_dtype
from tapwb.quant.nested import NestedLayout, NestedTensor, cell_codes, cell_range, pack_cells, padded_groups


@dataclass(frozen=True, slots=True)
class CellParts:
    """Which steps of calibration to take; what is left out stays as plain rounding has it.

    Attributes:
        search: Slide and stretch the cells of every group.
        feedback: Let weights near a boundary take the side on which errors cancel.
        gain: Undo by how much a level shrinks each output.
        bias: Add back what a level loses on average.
    """

    search: bool = True
    feedback: bool = True
    gain: bool = True
    bias: bool = True


ALL_PARTS = CellParts()
#: No level is further off than this; what says otherwise is a row of noise.
_MAX_GAIN = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class CalibratedCells:
    """A calibrated weight before it is cut into planes; serves every layout.

    Attributes:
        codes: 8-bit code of every weight, shape (row, group, column); the last group is padded.
        group_min: Lower edge of the cells, shape (row, group).
        group_step: Width of an 8-bit cell, shape (row, group).
        level_gain: For each of ``LEVELS``, the share by which the layer must raise its output, fp16, shape
            (level, row).
        level_bias: What it must then add to it, fp16, shape (level, row).
        columns: Columns of the weight, without padding.
    """

    codes: UInt8[Tensor, "row group column"]
    group_min: Float[Tensor, "row group"]
    group_step: Float[Tensor, "row group"]
    level_gain: Float[Tensor, "level row"]
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
    weight: Float[Tensor, "row column"],
    inputs: InputStatistics,
    *,
    group_size: int,
    parts: CellParts = ALL_PARTS,
    freedom: Freedom = CLOSE,
) -> CalibratedCells:
    """Choose cells and codes for one weight.

    Args:
        weight: Any floating-point matrix; computed in fp32.
        inputs: Statistics of the layer's inputs, gathered on a text.
        group_size: Columns per group, a multiple of 8.
        parts: Steps to take; without any of them the result is that of plain rounding.
        freedom: How far weights may move for the lower levels.

    Raises:
        InvalidTensor: If the statistics are of another width, or empty.
    """
    groups = padded_groups(weight, group_size)
    n_groups = groups.shape[1]
    columns = int(weight.shape[1])
    covariance = inputs.covariance
    if len(covariance) != columns:
        raise InvalidTensor(f"statistics of {len(covariance)} inputs do not fit a weight of {columns} columns.")
    missing = n_groups * group_size - columns
    covariance = torch.nn.functional.pad(covariance, (0, missing, 0, missing))
    if parts.search:
        group_min, group_step = search_cells(groups, covariance.diagonal().reshape(n_groups, group_size))
    else:
        group_min, group_step = plain_cells(groups)
    if parts.feedback:
        # The fewer tokens there were for each input, the less of what they have in common is the model's habit.
        freedom = replace(freedom, damping=max(freedom.damping, columns / inputs.n_tokens))
        codes = round_jointly(groups.flatten(1), group_min, group_step, covariance, group_size, freedom)
        codes = codes.reshape(groups.shape)
    else:
        codes = cell_codes(groups, group_min, group_step)
    nested = pack_cells(weight, codes, group_min, group_step, NestedLayout.named("8"))
    put_back = [level_correction(weight, nested.dequantize(bits), inputs, parts) for bits in LEVELS]
    level_gain, level_bias = (torch.stack(tables) for tables in zip(*put_back, strict=True))
    return CalibratedCells(codes, group_min, group_step, level_gain, level_bias, columns)


def level_correction(
    weight: Float[Tensor, "row column"],
    read: Float[Tensor, "row column"],
    inputs: InputStatistics,
    parts: CellParts = ALL_PARTS,
) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"]]:
    """(gain, bias) of every row that bring ``(1 + gain) * read @ x + bias`` nearest to ``weight @ x``.

    The gain is that of least squares on inputs around their mean; the mean is what the bias is for.

    Args:
        weight: The weight as it is.
        read: The weight as a level reads it.
        inputs: Statistics of the layer's inputs.
        parts: What of the two to work out; the other is zero.

    Returns:
        fp16, as they are stored: the bias makes up for the rounding of the gain.

    Raises:
        InvalidTensor: If the statistics are of another width, or empty.
    """
    weight = weight.float()
    gain = torch.zeros(weight.shape[0], dtype=torch.float16)
    if parts.gain:
        covariance = inputs.covariance
        spread = read @ covariance
        power = (spread * read).sum(1)
        # A row that is nowhere louder than the noise of the sums keeps its size.
        shared = (spread * weight).sum(1)
        gain = torch.where(power > 0, shared / power - 1, torch.zeros_like(power)).clamp(-_MAX_GAIN, _MAX_GAIN).half()
    if not parts.bias:
        return gain, torch.zeros_like(gain)
    return gain, inputs.row_sums(weight - read * (1 + gain.float().unsqueeze(-1))).half()


def plain_cells(
    groups: Float[Tensor, "row group column"],
) -> tuple[Float[Tensor, "row group"], Float[Tensor, "row group"]]:
    """(min, step) as plain rounding stores them."""
    low, high = groups.amin(-1), groups.amax(-1)
    return cell_range(low, high, metadata_dtype(float(groups.abs().max()), float((high - low).max()) / 255))

"""nested_linear for speed: rows sorted by level, each level's weight unpacked once, block by block.

No row is computed at two levels and no full-size float weight is ever alive: a block of output rows is unpacked
(:func:`~tapwb_kernels.nested_dequantize.blocked.unpack_lanes`), used, and its buffer is gone. With few rows the scale
is applied to the sums of each group instead of to the weights; the offset always goes through the sum of the
activations::

    y[r, o] = sum_g scale[o, g] * (sum_k x[r, g, k] * q[o, g, k]) + sum_g offset[o, g] * (sum_k x[r, g, k])
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from tapwb_kernels.layout import Refit, group_size_of, level_affine, planes_for
from tapwb_kernels.nested_dequantize.blocked import row_blocks, unpack_lanes

FEW_ROWS = 2
"""Up to here scaling the sums of groups beats scaling the weights."""


def nested_linear(
    x: Float[Tensor, "row in"],
    planes: Sequence[UInt8[Tensor, "out group _"]],
    plane_bits: Sequence[int],
    group_min: Float[Tensor, "out group"],
    group_step: Float[Tensor, "out group"],
    bits: Int[Tensor, "row"] | int,
    *,
    refit: Refit | None = None,
    bias: Float[Tensor, "out"] | None = None,
) -> Float[Tensor, "row out"]:
    """As :func:`tapwb_kernels.nested_linear.reference.nested_linear`, faster.

    Args:
        x: Activations.
        planes: Packed planes of the weight, most significant first.
        plane_bits: Width of each plane.
        group_min: Smallest weight of each group.
        group_step: Width of an 8-bit cell of each group.
        bits: Level of each row, 1 to 8; one number when all rows share it (saves looking at the tensor).
        refit: Own scale and offset of the 1- and 2-bit levels.
        bias: Added to every row.

    Raises:
        ValueError: If a level cannot be read.
    """
    levels = [bits] if isinstance(bits, int) else torch.unique(bits).tolist()
    if isinstance(bits, int) or len(levels) == 1:
        y = _one_level(x.float(), planes, plane_bits, group_min, group_step, levels[0], refit)
    else:
        y = torch.empty(x.shape[0], group_min.shape[0], dtype=torch.float32, device=x.device)
        for level in levels:
            rows = torch.nonzero(bits == level).squeeze(1)
            y[rows] = _one_level(x[rows].float(), planes, plane_bits, group_min, group_step, level, refit)
    if bias is not None:
        y += bias.float()
    return y.to(x.dtype)


def _one_level(
    x: Tensor,
    planes: Sequence[Tensor],
    plane_bits: Sequence[int],
    group_min: Tensor,
    group_step: Tensor,
    bits: int,
    refit: Refit | None,
) -> Tensor:
    """All rows at one level: (row, in) to (row, out) in fp32."""
    out_features, groups = group_min.shape
    size = group_size_of(planes, plane_bits)
    scale, offset = level_affine(group_min, group_step, bits, refit)
    lanes = 8 // max(plane_bits[: planes_for(plane_bits, bits)])
    # Padding columns of the weight hold values; zeros here keep them out of every sum.
    padded = F.pad(x, (0, groups * size - x.shape[1])).view(x.shape[0], groups, size)
    y = padded.sum(-1) @ offset.T
    by_lane = padded.view(x.shape[0], groups, lanes, size // lanes).permute(2, 1, 0, 3)
    x_lanes = by_lane.reshape(lanes * groups, x.shape[0], size // lanes)
    few = x.shape[0] <= FEW_ROWS
    x_rows = x_lanes if few else x_lanes.permute(1, 0, 2).reshape(x.shape[0], groups * size)
    for block in row_blocks(out_features, groups * size, x.device):
        q = unpack_lanes([plane[block] for plane in planes], plane_bits, bits).float()
        if few:
            sums = torch.bmm(x_rows, q.view(q.shape[0], lanes * groups, size // lanes).permute(1, 2, 0))
            sums = sums.view(lanes, groups, x.shape[0], q.shape[0]).sum(0)
            y[:, block] += (sums * scale[block].T.unsqueeze(1)).sum(0)
        else:
            q *= scale[block][:, None, :, None]
            y[:, block] += x_rows @ q.view(q.shape[0], groups * size).T
    return y

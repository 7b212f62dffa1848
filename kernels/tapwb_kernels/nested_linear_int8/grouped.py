"""nested_linear_int8 with matrix products: rows sorted by level, one product per group of columns, integers throughout.

The sums of a group are integers below 2**24, which fp32 holds exactly whatever the order they are added in: the matrix
product of the machine is then an integer product. It is no faster than the product with floating-point activations
(the group-wise scales cost a pass over the output per group); what it shows is the arithmetic of an integer unit.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int8, UInt8
from torch import Tensor

from tapwb_kernels.layout import Refit, group_size_of, level_affine
from tapwb_kernels.nested_dequantize.blocked import row_blocks, unpack_lanes

MAX_CODE = 127
"""Largest magnitude of an activation code: symmetric, so -128 is not used."""

_EXACT_BELOW = 1 << 24


def nested_linear_int8(
    codes: Int8[Tensor, "row in"],
    row_scale: Float[Tensor, " row"],
    planes: Sequence[UInt8[Tensor, "out group _"]],
    plane_bits: Sequence[int],
    group_min: Float[Tensor, "out group"],
    group_step: Float[Tensor, "out group"],
    bits: Int[Tensor, " row"] | int,
    *,
    refit: Refit | None = None,
) -> Float[Tensor, "row out"]:
    """As :func:`tapwb_kernels.nested_linear_int8.reference.nested_linear_int8`, in matrix products.

    Args:
        codes: Activations as integers in [-127, 127].
        row_scale: What one code step of each row is worth.
        planes: Packed planes of the weight, most significant first.
        plane_bits: Width of each plane.
        group_min: Smallest weight of each group.
        group_step: Width of an 8-bit cell of each group.
        bits: Level of each row, 1 to 8; one number when all rows share it.
        refit: Own scale and offset of the 1- and 2-bit levels.

    Raises:
        ValueError: If a level cannot be read, or a group is so large that its sums would not be exact.
    """
    size = group_size_of(planes, plane_bits)
    if MAX_CODE * 255 * size >= _EXACT_BELOW:
        raise ValueError(
            f"sums over groups of {size} columns are not exact in fp32: quantize with groups of at most 512"
        )
    levels = [bits] if isinstance(bits, int) else torch.unique(bits).tolist()
    if isinstance(bits, int) or len(levels) == 1:
        return _one_level(codes, row_scale, planes, plane_bits, group_min, group_step, levels[0], refit)
    y = torch.empty(codes.shape[0], group_min.shape[0], dtype=torch.float32, device=codes.device)
    for level in levels:
        rows = torch.nonzero(bits == level).squeeze(1)
        y[rows] = _one_level(
            codes[rows], row_scale[rows], planes, plane_bits, group_min, group_step, level, refit
        )  # fmt: skip
    return y


def _one_level(
    codes: Tensor,
    row_scale: Tensor,
    planes: Sequence[Tensor],
    plane_bits: Sequence[int],
    group_min: Tensor,
    group_step: Tensor,
    bits: int,
    refit: Refit | None,
) -> Tensor:
    """All rows at one level: (row, in) to (row, out) in fp32."""
    out_features, groups = group_min.shape
    n_rows, size = codes.shape[0], group_size_of(planes, plane_bits)
    scale, offset = level_affine(group_min, group_step, bits, refit)
    x = (
        F.pad(codes.float(), (0, groups * size - codes.shape[1]))
        .view(n_rows, groups, size)
        .transpose(0, 1)
        .contiguous()
    )
    y = x.sum(-1).T @ offset.T
    for block in row_blocks(out_features, groups * size, codes.device):
        lanes = unpack_lanes([plane[block] for plane in planes], plane_bits, bits)
        # Lanes of a group stand in the order of its columns, so (group, column) is one contiguous run again.
        q = lanes.permute(2, 0, 1, 3).reshape(groups, lanes.shape[0], size).float()
        for group in range(groups):
            y[:, block].addcmul_(x[group] @ q[group].T, scale[block, group])
    return y * row_scale.float()[:, None]

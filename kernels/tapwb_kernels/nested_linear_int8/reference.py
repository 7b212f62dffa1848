"""nested_linear_int8, the specification: integer activations times the integer codes of a weight, summed exactly."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Int8, UInt8
from torch import Tensor

from tapwb_kernels.layout import Refit, join_code, level_affine


def nested_linear_int8(
    codes: Int8[Tensor, "row in"],
    row_scale: Float[Tensor, " row"],
    planes: Sequence[UInt8[Tensor, "out group _"]],
    plane_bits: Sequence[int],
    group_min: Float[Tensor, "out group"],
    group_step: Float[Tensor, "out group"],
    bits: Int[Tensor, " row"],
    *,
    refit: Refit | None = None,
) -> Float[Tensor, "row out"]:
    """``y[r] = row_scale[r] * (codes[r] @ dequantize(weight, bits[r]).T)``; formula in the folder's README.

    Args:
        codes: Activations as integers in [-127, 127].
        row_scale: What one code step of each row is worth.
        planes: Packed planes of the weight, most significant first.
        plane_bits: Width of each plane.
        group_min: Smallest weight of each group.
        group_step: Width of an 8-bit cell of each group.
        bits: Level of each row, 1 to 8.
        refit: Own scale and offset of the 1- and 2-bit levels.

    Returns:
        fp32.

    Raises:
        ValueError: If a level cannot be read.
    """
    n_rows, n_cols = codes.shape
    out_features, groups = group_min.shape
    y = torch.zeros(n_rows, out_features, dtype=torch.float32, device=codes.device)
    for row, level in enumerate(bits.tolist()):
        scale, offset = level_affine(group_min, group_step, level, refit)
        q = join_code(planes, plane_bits, level).long()
        x = torch.zeros(groups * q.shape[-1], dtype=torch.long, device=codes.device)
        x[:n_cols] = codes[row].long()  # columns that pad the weight meet zeros
        x = x.view(groups, -1)
        products = (q * x).sum(-1)
        total = (scale * products.float() + offset * x.sum(-1).float()).sum(-1)
        y[row] = row_scale[row].float() * total
    return y

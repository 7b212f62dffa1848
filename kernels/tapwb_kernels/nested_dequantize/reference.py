"""nested_dequantize, the specification: packed planes to the weight read at some number of bits. No tricks."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from tapwb_kernels.layout import Refit, join_code, level_affine


def nested_dequantize(
    planes: Sequence[UInt8[Tensor, "row group _"]],
    plane_bits: Sequence[int],
    group_min: Float[Tensor, "row group"],
    group_step: Float[Tensor, "row group"],
    bits: int,
    n_cols: int,
    dtype: torch.dtype = torch.float32,
    *,
    refit: Refit | None = None,
) -> Float[Tensor, "row n_cols"]:
    """Read a nested weight at ``bits`` bits.

    ``w = offset + q * scale`` in fp32, ``q`` the top ``bits`` bits of the code (:mod:`tapwb_kernels.layout`), then
    cast.

    Args:
        planes: Packed planes, most significant first; those below the level may be missing.
        plane_bits: Width of each plane.
        group_min: Smallest weight of each group.
        group_step: Width of an 8-bit cell of each group.
        bits: Level, 1 to 8.
        n_cols: Columns of the weight; padding of the last group beyond them is dropped.
        dtype: Of the result.
        refit: Own scale and offset of the 1- and 2-bit levels.

    Raises:
        ValueError: If the level is outside 1..8, or is 1 or 2 and has no refit.
    """
    code = join_code(planes, plane_bits, bits)
    scale, offset = level_affine(group_min, group_step, bits, refit)
    weight = offset.unsqueeze(-1) + code.float() * scale.unsqueeze(-1)
    return weight.flatten(1)[:, :n_cols].to(dtype)

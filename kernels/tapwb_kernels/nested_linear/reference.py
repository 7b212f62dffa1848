"""nested_linear, the specification: each row of activations is multiplied by the weight read at that row's bits."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from tapwb_kernels.layout import Refit
from tapwb_kernels.nested_dequantize.reference import nested_dequantize


def nested_linear(
    x: Float[Tensor, "row in"],
    planes: Sequence[UInt8[Tensor, "out group _"]],
    plane_bits: Sequence[int],
    group_min: Float[Tensor, "out group"],
    group_step: Float[Tensor, "out group"],
    bits: Int[Tensor, "row"],
    *,
    refit: Refit | None = None,
    bias: Float[Tensor, "out"] | None = None,
) -> Float[Tensor, "row out"]:
    """``y[r] = x[r] @ dequantize(weight, bits[r]).T + bias``, accumulated in fp32, returned in ``x.dtype``.

    Args:
        x: Activations.
        planes: Packed planes of the weight, most significant first.
        plane_bits: Width of each plane.
        group_min: Smallest weight of each group.
        group_step: Width of an 8-bit cell of each group.
        bits: Level of each row, 1 to 8.
        refit: Own scale and offset of the 1- and 2-bit levels.
        bias: Added to every row.

    Raises:
        ValueError: If a level cannot be read.
    """
    y = torch.zeros(x.shape[0], group_min.shape[0], dtype=torch.float32, device=x.device)
    for row, level in enumerate(bits.tolist()):
        weight = nested_dequantize(planes, plane_bits, group_min, group_step, level, x.shape[1], refit=refit)
        y[row] = weight @ x[row].float()
    if bias is not None:
        y += bias.float()
    return y.to(x.dtype)

"""nested_dequantize in Triton: one program makes a tile of rows of one group; the maths is in the README here."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from tapwb_kernels.layout import Refit, group_size_of, level_affine, planes_for

MAX_PLANES = 4
BLOCK_R = 64
"""Rows per program: 64 x 64 columns keep 8 warps busy with coalesced loads of whole plane rows."""


@triton.jit
def _plane_codes(plane_ptr, group_index, offs_c, mask, GROUP: tl.constexpr, WIDTH: tl.constexpr):
    # Column c of a group sits in byte c % H, at bit WIDTH * (c // H).
    H: tl.constexpr = GROUP * WIDTH // 8
    byte = tl.load(plane_ptr + group_index[:, None] * H + (offs_c % H)[None, :], mask=mask, other=0).to(tl.int32)
    return (byte >> (offs_c // H * WIDTH)[None, :]) & ((1 << WIDTH) - 1)


@triton.jit
def nested_dequantize_kernel(
    out_ptr,
    plane0_ptr,
    plane1_ptr,
    plane2_ptr,
    plane3_ptr,
    scale_ptr,
    offset_ptr,
    n_rows,
    n_cols,
    n_groups,
    GROUP: tl.constexpr,
    W0: tl.constexpr,
    W1: tl.constexpr,
    W2: tl.constexpr,
    W3: tl.constexpr,
    DROP: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One block of rows by one group of columns: unpack the planes, scale, store."""
    group = tl.program_id(1)
    # 64-bit: an embedding of 256k rows x 8k columns has more than 2**31 weights.
    offs_r = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    offs_c = tl.arange(0, BLOCK_C)
    in_rows = offs_r < n_rows
    mask = in_rows[:, None] & (offs_c < GROUP)[None, :]
    group_index = offs_r * n_groups + group

    code = _plane_codes(plane0_ptr, group_index, offs_c, mask, GROUP, W0)
    if W1 > 0:
        code = (code << W1) | _plane_codes(plane1_ptr, group_index, offs_c, mask, GROUP, W1)
    if W2 > 0:
        code = (code << W2) | _plane_codes(plane2_ptr, group_index, offs_c, mask, GROUP, W2)
    if W3 > 0:
        code = (code << W3) | _plane_codes(plane3_ptr, group_index, offs_c, mask, GROUP, W3)
    q = (code >> DROP).to(tl.float32)

    scale = tl.load(scale_ptr + group_index, mask=in_rows, other=0.0)
    offset = tl.load(offset_ptr + group_index, mask=in_rows, other=0.0)
    weight = offset[:, None] + q * scale[:, None]
    column = group * GROUP + offs_c
    out = out_ptr + offs_r[:, None] * n_cols + column[None, :]
    tl.store(out, weight.to(out_ptr.dtype.element_ty), mask=mask & (column < n_cols)[None, :])


def nested_dequantize(
    planes: Sequence[Tensor],
    plane_bits: Sequence[int],
    group_min: Tensor,
    group_step: Tensor,
    bits: int,
    n_cols: int,
    dtype: torch.dtype = torch.float32,
    *,
    refit: Refit | None = None,
) -> Tensor:
    """As the reference beside this file; planes must be contiguous, and at most four of them are read.

    Raises:
        ValueError: If the level cannot be read, or takes more than four planes.
    """
    used = planes_for(plane_bits, bits)
    if used > MAX_PLANES:
        raise ValueError(f"{used} planes at {bits} bits: this kernel reads at most {MAX_PLANES}; use the reference")
    rows, groups = group_min.shape
    size = group_size_of(planes, plane_bits)
    scale, offset = level_affine(group_min, group_step, bits, refit)
    out = torch.empty(rows, n_cols, dtype=dtype, device=group_min.device)
    if out.numel() == 0:
        return out
    widths = [*plane_bits[:used], *[0] * (MAX_PLANES - used)]
    pointers = [*[plane.contiguous() for plane in planes[:used]], *[planes[0]] * (MAX_PLANES - used)]
    nested_dequantize_kernel[(triton.cdiv(rows, BLOCK_R), groups)](
        out,
        *pointers,
        scale.contiguous(),
        offset.contiguous(),
        rows,
        n_cols,
        groups,
        GROUP=size,
        W0=widths[0],
        W1=widths[1],
        W2=widths[2],
        W3=widths[3],
        DROP=sum(widths) - bits,
        BLOCK_R=BLOCK_R,
        BLOCK_C=triton.next_power_of_2(size),
    )
    return out

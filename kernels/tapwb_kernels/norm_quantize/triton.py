"""norm_quantize in Triton: one program holds one row in registers and never writes the normed row."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tapwb_kernels.norm_quantize.reference import TOP

MAX_COLUMNS = 1 << 15
"""A row lives in registers: beyond this it would not fit."""

_ROUND = tl.constexpr(12582912.0)  # 1.5 * 2**23: adding and taking it away again rounds to the nearest even integer


@triton.jit
def norm_quantize_kernel(
    code_ptr, scale_ptr, score_ptr, x_ptr, residual_ptr, weight_ptr, n_cols, x_stride, residual_stride, eps,
    weight_offset, TOP: tl.constexpr, HAS_RESIDUAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row: norm, largest and median magnitude, codes."""
    row = tl.program_id(0).to(tl.int64)
    offs = tl.arange(0, BLOCK)
    mask = offs < n_cols
    s = tl.load(x_ptr + row * x_stride + offs, mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        s += tl.load(residual_ptr + row * residual_stride + offs, mask=mask, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + offs, mask=mask, other=0.0).to(tl.float32) + weight_offset
    y = s / tl.sqrt_rn(tl.sum(s * s) / n_cols + eps) * weight
    magnitude = tl.where(mask, tl.abs(y), 0.0)
    # The maximum of a row with a NaN may or may not be NaN; the sum always is.
    poison = tl.sum(magnitude * 0.0)
    largest = tl.max(magnitude) + poison
    scale = tl.div_rn(largest, TOP * 1.0)
    is_finite = poison == 0.0
    # Bits of magnitudes order like the magnitudes: 31 halvings of the range of bits find the median exactly.
    bits = tl.where(mask, magnitude.to(tl.int32, bitcast=True), 0x7FFFFFFF)
    low, high = tl.zeros([], tl.int32), tl.full([], 0x7FFFFFFF, tl.int32)
    wanted = (n_cols + 1) // 2
    for _ in range(31):
        middle = low + (high - low) // 2
        enough = tl.sum((bits <= middle).to(tl.int32)) >= wanted
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, middle + 1)
    median = high.to(tl.float32, bitcast=True)
    score = tl.where(largest > 0, tl.where(median > 0, tl.div_rn(largest, median), float("inf")), 1.0)
    tl.store(scale_ptr + row, scale)
    tl.store(score_ptr + row, tl.where(is_finite, score, float("nan")))
    safe = tl.where((largest > 0) & is_finite, scale, 1.0)
    exact = tl.where(is_finite, tl.div_rn(y, tl.zeros_like(y) + safe), 0.0)
    code = tl.minimum(tl.maximum((exact + _ROUND) - _ROUND, -TOP), TOP)
    tl.store(code_ptr + row * n_cols + offs, code.to(tl.int8), mask=mask)


def norm_quantize(
    x: Tensor, weight: Tensor, eps: float, *, weight_offset: float = 0.0, residual: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """As the reference beside this file.

    Args:
        x: Activations, shape (row, column).
        weight: Of the norm, shape (column,).
        eps: Added to the mean square.
        weight_offset: 1 for families that store the weight less one.
        residual: Added to ``x`` before the norm, as ``x``.

    Returns:
        Codes (row, column) int8, scales and scores (row,) fp32.

    Raises:
        ValueError: If a row has no columns, or more than ``MAX_COLUMNS``.
    """
    n_rows, n_cols = x.shape
    if not 1 <= n_cols <= MAX_COLUMNS:
        raise ValueError(f"rows of {n_cols} columns do not fit: 1 to {MAX_COLUMNS} do; use the reference for others")
    x = x if x.stride(1) == 1 else x.contiguous()
    other = x if residual is None else residual if residual.stride(1) == 1 else residual.contiguous()
    codes = torch.empty(n_rows, n_cols, dtype=torch.int8, device=x.device)
    scale = torch.empty(n_rows, dtype=torch.float32, device=x.device)
    score = torch.empty_like(scale)
    if n_rows:
        block = triton.next_power_of_2(n_cols)
        norm_quantize_kernel[(n_rows,)](
            *(codes, scale, score, x, other, weight.contiguous(), n_cols, x.stride(0), other.stride(0)),
            *(float(eps), float(weight_offset)),
            TOP=TOP,
            HAS_RESIDUAL=residual is not None,
            BLOCK=block,
            num_warps=max(1, min(16, block // 512)),
        )
    return codes, scale, score

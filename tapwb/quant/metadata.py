"""Rounding of the few numbers per group (scale, offset, minimum, step) that a quantized tensor keeps beside its codes.

Codes are always computed with the *rounded* numbers, so that what is stored and what it meant agree. fp16 has 11 bits
of precision, which is plenty for a scale, but it ends at 65504 and gets coarse below 2e-7.
"""

import torch
from torch import Tensor

FP16_MAX = 65504.0
SMALLEST_STEP = 2.0**-20
"""A tensor whose largest step is below this lives where fp16 has fewer than five bits of precision left."""


def metadata_dtype(largest_magnitude: float, largest_step: float) -> torch.dtype:
    """fp16, or fp32 for a tensor that as a whole lies outside fp16's range or is constant.

    Single tiny groups of an ordinary tensor stay in fp16: their absolute error (below 6e-8) is far below that of their
    neighbours.
    """
    outside = largest_magnitude > FP16_MAX or (largest_magnitude > 0 and largest_step < SMALLEST_STEP)
    return torch.float32 if outside else torch.float16


def round_down(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The largest number of ``dtype`` (fp16 or fp32) that is not above ``x`` (fp32)."""
    if dtype == torch.float32:
        return x
    near = x.to(torch.float16)
    return torch.where(near.float() > x, _neighbour(near, up=False), near)


def round_up(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The smallest number of ``dtype`` (fp16 or fp32) that is not below ``x`` (fp32)."""
    if dtype == torch.float32:
        return x
    near = x.to(torch.float16)
    return torch.where(near.float() < x, _neighbour(near, up=True), near)


def _neighbour(x: Tensor, *, up: bool) -> Tensor:
    """Next fp16 number; written on the bit patterns because ``torch.nextafter`` does not know fp16 on every device."""
    pattern = x.view(torch.int16)
    away = (x > 0) if up else (x < 0)
    smallest = torch.tensor(1 if up else -0x7FFF, dtype=torch.int16, device=x.device)  # least positive, least negative
    stepped = torch.where(x == 0, smallest, torch.where(away, pattern + 1, pattern - 1))
    return stepped.view(torch.float16)

"""norm_quantize, the specification: RMS norm of each row, its symmetric 8-bit codes, and its outlier score."""

import torch
from jaxtyping import Float, Int8
from torch import Tensor

TOP = 127
"""Largest magnitude of a code: symmetric, so -128 is not used."""


def norm_quantize(
    x: Float[Tensor, "row column"],
    weight: Float[Tensor, " column"],
    eps: float,
    *,
    weight_offset: float = 0.0,
    residual: Float[Tensor, "row column"] | None = None,
) -> tuple[Int8[Tensor, "row column"], Float[Tensor, " row"], Float[Tensor, " row"]]:
    """Codes, scale and outlier score of a row ``s = x + residual`` after its norm.

    The norm is ``y = s / sqrt(mean(s**2) + eps) * (weight + weight_offset)``.

    Args:
        x: Activations.
        weight: Of the norm.
        eps: Added to the mean square.
        weight_offset: 1 for families that store the weight less one (Gemma).
        residual: Added to ``x`` before the norm.

    Returns:
        Codes in [-127, 127] with ``y ~ codes * scale``; the scale, a row's largest magnitude over 127; and the score,
        largest over median magnitude (the lower of two middles): 1 for a row of zeros, infinite where over half of it
        is zero. A row that holds NaN or infinity has a scale that is not finite, codes of zero, and a score of NaN.
    """
    total = x.float() if residual is None else x.float() + residual.float()
    y = total * torch.rsqrt(total.square().mean(-1, keepdim=True) + eps) * (weight.float() + weight_offset)
    magnitude = y.abs()
    largest = magnitude.amax(-1)
    scale = largest / TOP
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))[:, None]
    is_finite = torch.isfinite(scale)
    codes = (y / safe).round().clamp(-TOP, TOP)
    codes = torch.where(is_finite[:, None], codes, torch.zeros_like(codes)).to(torch.int8)
    middle = magnitude.median(-1).values
    score = torch.where(largest > 0, largest / middle, torch.ones_like(largest))
    return codes, scale, torch.where(is_finite, score, torch.full_like(score, torch.nan))

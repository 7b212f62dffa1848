"""Logarithmic: a sign bit and magnitudes at equal *ratios*, so that small values keep their relative precision.

The top code bit is the sign; the rest, ``m`` in 0 .. n with ``n = 2**(bits - 1) - 1``, is 0 for zero and otherwise the
magnitude ``scale * 2**(-spacing * (n - m))``: ``scale`` is the largest magnitude of the group, ``spacing`` (stored as
the group's offset) the distance of neighbouring magnitudes in octaves. Spacing 1 is the power-of-two quantizer of
Miyashita et al. 2016 (arXiv 1603.01025); here each group takes, out of a few total ranges, the one with the smallest
sum of squared *relative* errors, for relative precision is what this scheme is chosen for. At 2 bits the codes are
-scale, 0, scale.
"""

import torch
from torch import Tensor

from tapwb.quant.scheme import quantizers

RANGES_OCTAVES = (2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 11.0, 15.0)
"""Candidate ratios of the largest to the smallest non-zero magnitude, in octaves."""


@quantizers.register("logarithmic", summary="sign and logarithm; for values over many orders of magnitude")
class Logarithmic:
    """Sign-and-logarithm quantizer; values are rounded to the nearest representable value, not logarithm."""

    def fit(self, groups: Tensor, bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Largest magnitude, and the spacing with the least squared relative error, per group."""
        scale = groups.abs().amax(dim=-1).to(dtype)
        steps = max(1, _n_magnitudes(bits) - 1)
        best_spacing = torch.full_like(scale, RANGES_OCTAVES[0] / steps)
        best = self._relative_error(groups, scale, best_spacing, bits)
        for octaves in RANGES_OCTAVES[1:]:
            spacing = torch.full_like(scale, octaves / steps)
            error = self._relative_error(groups, scale, spacing, bits)
            better = error < best
            best = torch.where(better, error, best)
            best_spacing = torch.where(better, spacing, best_spacing)
        return scale, best_spacing

    def encode(self, groups: Tensor, scale: Tensor, offset: Tensor, bits: int) -> Tensor:
        """Nearest value of the same sign, or zero."""
        n = _n_magnitudes(bits)
        magnitude = groups.abs()
        wide = scale.float().unsqueeze(-1)
        ratio = torch.where(wide > 0, magnitude / wide, torch.zeros_like(groups))
        exact = n + torch.log2(ratio.clamp_min(2.0**-126)) / offset.float().unsqueeze(-1)
        # A hair of slack: a value that is itself a level must not fall to the level below by rounding of the logarithm.
        below = torch.floor(exact + 1e-3).clamp(0, n)
        above = (below + 1).clamp_max(n)
        low, high = _magnitude(below, scale, offset, n), _magnitude(above, scale, offset, n)
        m = torch.where(magnitude - low <= high - magnitude, below, above)
        negative = (groups < 0) & (m > 0)  # zero has one code, so that equal values have equal codes
        return (m + negative * (n + 1)).to(torch.uint8)

    def decode(self, codes: Tensor, scale: Tensor, offset: Tensor, bits: int) -> Tensor:
        """Sign times magnitude."""
        n = _n_magnitudes(bits)
        value = _magnitude((codes & n).float(), scale, offset, n)
        return torch.where(codes > n, -value, value)

    def _relative_error(self, groups: Tensor, scale: Tensor, spacing: Tensor, bits: int) -> Tensor:
        codes = self.encode(groups, scale, spacing, bits)
        error = self.decode(codes, scale, spacing, bits) - groups
        # Exact zeros stay exact in every candidate; the floor only keeps them out of the division.
        return (error / groups.abs().clamp_min(2.0**-100)).square().sum(dim=-1)


def _n_magnitudes(bits: int) -> int:
    """Non-zero magnitudes (per sign)."""
    return (1 << (bits - 1)) - 1


def _magnitude(m: Tensor, scale: Tensor, spacing: Tensor, n: int) -> Tensor:
    value = scale.float().unsqueeze(-1) * torch.exp2(spacing.float().unsqueeze(-1) * (m - n))
    return torch.where(m > 0, value, torch.zeros_like(value))

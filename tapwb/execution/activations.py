"""Activations at 8 bits, with the tokens that 8 bits would spoil kept wide.

Each row of a linear layer's input gets symmetric codes in [-127, 127] and one scale, the row's largest magnitude over
127. A few values thousands of times larger than the rest, as the first token of a text carries in some layers (Sun et
al. 2024, arXiv:2402.17762), then leave no codes for the rest. With the row's largest magnitude M and median magnitude
m, rounding errs by M / (127 sqrt 12) and a normal row spreads by m / 0.67, so that the error is M / m / 650 of that.
Rows above a ratio M / m are *wide*: their rounding error is coded again, as a second digit of 8 bits. Every product is
then one of two 8-bit integers, and a wide token costs exactly a second row. LLM.int8() (Dettmers et al. 2022,
arXiv:2208.07339) splits outlier channels off instead, and keeps them in 16-bit floats for all tokens.

The embedding and the head keep their activations as they are.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tapwb.core.activation_spec import ActivationRequest
from tapwb.core.reading import Measured, Reading, Unavailable
from tapwb.execution import dispatch
from tapwb.execution.bits import Bits, BitsContext
from tapwb.quant.nested import NestedTensor

#: Largest code of a digit.
_TOP = 127
#: The second digit covers half a step of the first to either side.
_DIGIT = 2 * _TOP
_SOURCE = "measured:rows of this run"


@dataclass(frozen=True, slots=True, eq=False)
class RowCodes:
    """Activations as integers: ``x[r] = scale[r] * (high[r] + low[r] / 254)``.

    Attributes:
        high: First digit, shape (row, in), int8.
        scale: What a step of the first digit is worth, shape (row,), fp32.
        wide: Indices of the rows that have a second digit, shape (wide,).
        low: Their second digit, shape (wide, in), int8.
    """

    high: Tensor
    scale: Tensor
    wide: Tensor
    low: Tensor

    def dequantize(self) -> Tensor:
        """The activations the codes stand for, shape (row, in), fp32."""
        x = self.high.float()
        x[self.wide] += self.low.float() / _DIGIT
        return x * self.scale[:, None]


def quantize_rows(x: Tensor, wide: Tensor, *, scale: Tensor | None = None) -> RowCodes:
    """Symmetric codes of each row.

    Args:
        x: Shape (row, in), any floating type. A row that holds NaN or infinity has a scale that is not finite, and so
            has every result of it.
        wide: Which rows get a second digit, shape (row,), bool.
        scale: Scales to use, shape (row,); by default each row's own largest magnitude over 127.
    """
    values = x.float()
    step = values.abs().amax(-1) / _TOP if scale is None else scale
    safe = torch.where(step > 0, step, torch.ones_like(step))[:, None]
    exact = values / safe
    high = exact.round().clamp_(-_TOP, _TOP)
    rows = torch.nonzero(wide).squeeze(1)
    low = ((exact[rows] - high[rows]) * _DIGIT).round_().clamp_(-_TOP, _TOP)
    return RowCodes(high.to(torch.int8), step, rows, low.to(torch.int8))


def outlier_ratio(x: Tensor) -> Tensor:
    """Largest over median magnitude of each row; infinite where over half of a row is zero.

    Args:
        x: Shape (row, in).

    Returns:
        Shape (row,), fp32; 1 for a row of zeros.
    """
    magnitude = x.float().abs()
    largest, middle = magnitude.amax(-1), magnitude.median(-1).values
    return torch.where(largest > 0, largest / middle, torch.ones_like(largest))


@dataclass(slots=True)
class SiteUse:
    """What one linear layer was fed.

    Attributes:
        rows: Rows multiplied.
        wide: Rows of them that had two digits.
        in_features: Columns of a row.
        out_features: Columns of its result.
    """

    rows: int
    wide: int
    in_features: int
    out_features: int


@dataclass(slots=True)
class ActivationUse:
    """Activation precision of the passes under way, and the record of what was chosen.

    Attributes:
        request: The rule.
        seed: Seed of the ``random`` control.
        sites: What each linear layer was fed, by name.
    """

    request: ActivationRequest
    seed: int = 0
    sites: dict[str, SiteUse] = field(default_factory=dict)
    _random: torch.Generator = field(default_factory=torch.Generator)

    def __post_init__(self) -> None:
        self._random.manual_seed(self.seed)

    @contextmanager
    def on(self, context: BitsContext) -> Iterator["ActivationUse"]:
        """Run passes of a nested model with this precision; ``16`` changes nothing.

        Args:
            context: Of the nested model.
        """
        with context.activations(None if self.request.kind == "16" else self.linear):
            yield self

    def linear(self, x: Tensor, weight: NestedTensor, bits: Bits, site: str) -> Tensor:
        """Multiply rows by a weight read at each row's level, both as integers.

        Args:
            x: Shape (row, in).
            weight: Nested weight of shape (out, in).
            bits: One level, or one per row.
            site: Name of the layer, for the record.

        Returns:
            Shape (row, out), in the dtype of ``x``.
        """
        codes = self._codes(x)
        y = dispatch.linear_int8(codes.high, codes.scale, weight, bits)
        n_wide = int(codes.wide.numel())
        if n_wide:
            level = bits if isinstance(bits, int) else bits[codes.wide]
            y[codes.wide] += dispatch.linear_int8(codes.low, codes.scale[codes.wide] / _DIGIT, weight, level)
        use = self.sites.setdefault(site, SiteUse(0, 0, weight.shape[1], weight.shape[0]))
        use.rows, use.wide = use.rows + x.shape[0], use.wide + n_wide
        return y.to(x.dtype)

    @property
    def wide_share(self) -> Measured:
        """Share of rows with two digits, over all layers."""
        return self._share(lambda use: use.wide, lambda use: use.rows, "wide share")

    @property
    def products_ratio(self) -> Measured:
        """8-bit products made for each product of the layers: 1, and one more for the wide rows."""
        return self._share(
            lambda use: (use.rows + use.wide) * use.in_features * use.out_features,
            lambda use: use.rows * use.in_features * use.out_features,
            "number of products",
        )

    @property
    def bytes_ratio(self) -> Measured:
        """Bytes of the inputs of the layers, codes and scales, against 16 bits."""
        return self._share(
            lambda use: (use.rows + use.wide) * use.in_features + 4 * use.rows,
            lambda use: 2 * use.rows * use.in_features,
            "number of bytes",
        )

    def to_json(self) -> dict[str, Any]:
        """The rule and what it chose, layer by layer."""
        return {
            "activations": str(self.request),
            "wide_share": self.wide_share,
            "int8_products_ratio": self.products_ratio,
            "bytes_ratio": self.bytes_ratio,
            "wide_share_by_layer": {name: use.wide / use.rows for name, use in self.sites.items() if use.rows},
        }

    def _codes(self, x: Tensor) -> RowCodes:
        kind, none = self.request.kind, torch.zeros(x.shape[0], dtype=torch.bool, device=x.device)
        if kind == "tensor":
            largest = x.float().abs().amax() if x.numel() else x.new_zeros((), dtype=torch.float32)
            return quantize_rows(x, none, scale=(largest / _TOP).expand(x.shape[0]))
        if kind == "int8" or self.request.ratio is None:
            return quantize_rows(x, none)
        wide = outlier_ratio(x) > self.request.ratio
        if kind == "random":
            order = torch.randperm(x.shape[0], generator=self._random).to(x.device)
            wide = wide[order]
        return quantize_rows(x, wide)

    def _share(self, top: Any, bottom: Any, what: str) -> Measured:
        below = sum(bottom(use) for use in self.sites.values())
        if not below:
            return Unavailable(f"no layer ran with 8-bit activations, so there is no {what}")
        return Reading(sum(top(use) for use in self.sites.values()) / below, "1", _SOURCE)

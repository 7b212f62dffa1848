"""Which kernel runs, chosen once and visibly. The only caller of ``tapwb_kernels``."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

import tapwb_kernels.nested_linear.grouped as grouped
import tapwb_kernels.nested_linear.reference as reference
from tapwb.core.errors import UnsupportedBits
from tapwb.quant.nested import NestedTensor

KernelName = Literal["grouped", "reference"]


@dataclass(frozen=True, slots=True)
class KernelChoice:
    """What runs and why; copied into every trace.

    Attributes:
        name: The implementation.
        reason: Why this one.
    """

    name: KernelName
    reason: str


_DEFAULT = KernelChoice("grouped", "PyTorch: rows grouped by level, each level's weight unpacked block by block")
_choice = _DEFAULT


def current() -> KernelChoice:
    """The kernel in use for linear layers."""
    return _choice


@contextmanager
def force(name: KernelName, reason: str = "forced by the caller") -> Iterator[None]:
    """Use one implementation inside the block; tests compare the fast path with the reference this way."""
    global _choice
    before = _choice
    _choice = KernelChoice(name, reason)
    try:
        yield
    finally:
        _choice = before


def linear(x: Tensor, weight: NestedTensor, bits: int | Tensor) -> Tensor:
    """Multiply each row by the weight read at that row's level.

    Args:
        x: Shape (row, in).
        weight: Nested weight of shape (out, in).
        bits: One level, or one per row, shape (row,). Levels above the stored ones read the top level.

    Returns:
        Shape (row, out), in the dtype of ``x``.
    """
    _check_levels(weight, bits)
    stored = (weight.planes, weight.layout.plane_bits, weight.group_min, weight.group_step)
    top = weight.layout.levels[-1]
    if _choice.name == "grouped":
        level = min(bits, top) if isinstance(bits, int) else bits.clamp(max=top)
        return grouped.nested_linear(x, *stored, level, refit=weight.refit)
    per_row = torch.full((x.shape[0],), bits) if isinstance(bits, int) else bits
    return reference.nested_linear(x, *stored, per_row.clamp(max=top), refit=weight.refit)


def _check_levels(weight: NestedTensor, bits: int | Tensor) -> None:
    """1 and 2 bits need a scale of their own, which not every layout keeps."""
    lowest = bits if isinstance(bits, int) else int(bits.min()) if bits.numel() else 8
    if lowest < 1 or (lowest <= 2 and lowest not in weight.levels):
        raise UnsupportedBits(
            f"{lowest} bits cannot be read from planes {weight.layout.name} (levels {list(weight.levels)}). "
            "Load the model with that level: load_model(..., levels=[...])."
        )


def embedding(token_ids: Tensor, table: NestedTensor) -> Tensor:
    """Rows of a nested table at 8 bits.

    Args:
        token_ids: Shape (token,).
        table: Nested table of shape (vocabulary, hidden).

    Returns:
        Shape (token, hidden), fp32.
    """
    return table.rows(token_ids).dequantize(8)

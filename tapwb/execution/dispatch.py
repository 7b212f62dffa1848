"""Which kernel runs, chosen once and visibly. The only caller of ``tapwb_kernels``."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

import tapwb_kernels.nested_linear.bag_choice as bag_choice
import tapwb_kernels.nested_linear.bags as bags
import tapwb_kernels.nested_linear.choice as choice
import tapwb_kernels.nested_linear.grouped as grouped
import tapwb_kernels.nested_linear.native as native_product
import tapwb_kernels.nested_linear.reference as reference
import tapwb_kernels.nested_linear.triton_choice as triton_choice
import tapwb_kernels.nested_linear_int8.grouped as int8_grouped
import tapwb_kernels.nested_linear_int8.reference as int8_reference
from tapwb.core import settings
from tapwb.core.errors import ExecutionError, UnsupportedBits
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.quant.nested import LOW_LEVELS, NestedLayout, NestedTensor
from tapwb.quant.packing import CODE_BITS, planes_for
from tapwb_kernels.capability import why_not_triton

KernelName = Literal["native", "triton", "bags", "grouped", "reference"]


@dataclass(frozen=True, slots=True)
class KernelChoice:
    """What runs and why; copied into every trace.

    Attributes:
        name: The implementation.
        reason: Why this one.
    """

    name: KernelName
    reason: str


ROUNDED_ROWS = choice.ROUNDED_ROWS
"""Rows from which on :func:`rounding` rounds."""

_TOP = CODE_BITS
"""Planes always add up to a whole code, so every layout can be read at its level."""

LARGEST_ERROR: dict[KernelName, float] = {
    "native": native_product.RELATIVE_ERROR,
    "triton": triton_choice.BOUNDS[torch.float32],
    "bags": bag_choice.RELATIVE_ERROR,
    "grouped": 1e-5,
    "reference": 1e-5,
}
"""What a product may be off, as a share of its norm, before the kernel counts as wrong; without :func:`rounding`."""

_USUAL_GROUP = 64
_GROUPED = "PyTorch: rows grouped by level, each level's weight unpacked block by block"
_BAGS = "PyTorch: embedding bags over weights laid out by columns; more than a few rows unpacked block by block"
_native = choice.NativeChoice(lambda: settings.cache_dir() / "native")
_triton = triton_choice.TritonChoice()
_bags = bag_choice.BagChoice()
_forced: KernelChoice | None = None
_may_round: ContextVar[bool] = ContextVar("may_round", default=False)
_can_round: ContextVar[bool] = ContextVar("can_round", default=True)


def current(device: torch.device | str = "cpu") -> KernelChoice:
    """The kernel in use for linear layers: on a CPU the one of decode steps, builds the native kernel if need be.

    Args:
        device: Where the model runs.
    """
    if _forced is not None:
        return _forced
    if torch.device(device).type != "cpu":
        return _on_card(torch.device(device))
    kernel = _native.kernel()
    if kernel is None:
        why = f"no native kernel: {_native.why_none()}"
        if _bags.is_used():
            return KernelChoice("bags", f"{_BAGS}; {why}")
        return KernelChoice("grouped", f"{_GROUPED}; {why}")
    verdicts = _native.verdicts()
    declined = next((_describe(case, verdict) for case, verdict in verdicts.items() if not verdict.is_used), "")
    if declined and not any(verdict.is_used for verdict in verdicts.values()):
        return KernelChoice("grouped", f"{_GROUPED}; {declined}")
    many = f"more than {choice.MAX_ROWS} rows"
    several = f"{many} 32 outputs at a time" if kernel.panel_group else f"{many} in PyTorch, grouped by level"
    if can_round():
        several += f", {ROUNDED_ROWS} and more of a prompt in bf16"
    also = f"; PyTorch also for {declined}" if declined else ""
    return KernelChoice("native", f"C++ ({kernel.instructions}) straight from the planes; {several}{also}")


def can_round() -> bool:
    """Whether this processor multiplies the rows of a prompt faster in bf16 (:func:`rounding`)."""
    if not _can_round.get() or (_forced is not None and _forced.name != "native"):
        return False
    kernel = _native.kernel()
    return kernel is not None and kernel.rounds(ROUNDED_ROWS, _USUAL_GROUP)


@contextmanager
def exact_prompts() -> Iterator[None]:
    """Round nothing inside the block, whatever it runs; what is compared token by token is run this way."""
    token = _can_round.set(False)
    try:
        yield
    finally:
        _can_round.reset(token)


@contextmanager
def rounding() -> Iterator[None]:
    """Let products of at least ``ROUNDED_ROWS`` rows inside the block be rounded to bf16, where that is faster.

    What a text costs at its bits is measured without: it must not depend on the processor.
    """
    token = _may_round.set(True)
    try:
        yield
    finally:
        _may_round.reset(token)


class ColumnTensor(NestedTensor):
    """A nested weight that lies in a table, column by column; its planes are made when they are asked for.

    Args:
        columns: The table.
        shape: (rows, columns) of the weight.
        layout: How its codes are cut into planes.
        refit: For levels 1 and 2, if the layout has them: (scale, offset) of each group.
    """

    __slots__ = ("columns",)
    columns: bags.Columns

    def __init__(
        self,
        columns: bags.Columns,
        shape: tuple[int, int],
        layout: NestedLayout,
        refit: dict[int, tuple[Tensor, Tensor]],
    ) -> None:
        low, step = columns.numbers.permute(1, 2, 0)
        values = {"columns": columns, "shape": shape, "layout": layout, "refit": refit}
        for name, value in (values | {"group_min": low, "group_step": step, "group_size": columns.group_size}).items():
            object.__setattr__(self, name, value)  # the record it extends is frozen

    @classmethod
    def of(cls, nested: NestedTensor) -> "ColumnTensor":
        """Copy a weight into a table."""
        columns = bags.lay_out(nested.planes, nested.layout.plane_bits, nested.group_min, nested.group_step)
        return cls(columns, nested.shape, nested.layout, nested.refit)

    def __reduce__(self) -> tuple[Any, ...]:
        return ColumnTensor, (self.columns, self.shape, self.layout, self.refit)

    @property
    def planes(self) -> tuple[Tensor, ...]:  # type: ignore[override]
        """The planes, most significant first; no other reader has to know of the table."""
        return self.columns.planes()

    def bytes_read(self, bits: int) -> int:
        """As of the planes: the codes down to the level, and two numbers per group."""
        self._check(bits)
        rows, groups = self.group_min.shape
        read = planes_for(self.layout.plane_bits, bits)
        codes = rows * groups * self.group_size * sum(self.layout.plane_bits[:read]) // CODE_BITS
        pair = self.refit[bits] if bits in LOW_LEVELS else (self.group_min, self.group_step)
        return codes + sum(t.numel() * t.element_size() for t in pair)


def takes_columns(weight: NestedTensor) -> bool:
    """Whether a weight is better laid out column by column: no native kernel, and the self-test on bags says so.

    Args:
        weight: Nested weight.
    """
    if not weight.group_min.is_cpu or min(weight.shape) < 1 or weight.shape[0] < bags.LEAST_OUT:
        return False
    if _forced is not None:
        return _forced.name == "bags"
    return _native.kernel() is None and _bags.verdict(weight.layout.plane_bits, weight.group_size).is_used


def prepare(progress: Progress = NO_PROGRESS) -> None:
    """Build the native kernel now if none was built on this machine, instead of at the first product.

    Args:
        progress: Told that it takes seconds; not told where there is nothing to wait for.
    """
    if _native.has_library():
        return
    progress.stage("build the native kernel", total=1, unit="library")
    _native.kernel()
    progress.advance()


def chosen_for(weight: NestedTensor, bits: int, n_rows: int) -> KernelChoice:
    """What :func:`linear` runs for rows of one level that need no gradient, and why.

    Args:
        weight: Nested weight.
        bits: Level of all rows.
        n_rows: Number of rows.
    """
    if _forced is not None:
        return _forced
    x = weight.group_step.new_empty((n_rows, weight.shape[1]), dtype=torch.float32)
    if _is_on_card(x):
        widths = weight.layout.plane_bits
        told = _triton.verdict(x, widths, weight.group_size, min(bits, _TOP), n_rows, has_refit=bool(weight.refit))
        return KernelChoice("triton" if told.is_used else "grouped", told.reason)
    if isinstance(weight, ColumnTensor):
        return KernelChoice("bags", _bags.verdict(weight.layout.plane_bits, weight.group_size).reason)
    reason = choice.why_not(x, weight.planes, weight.group_min, weight.group_step)
    kernel = _native.kernel()
    if not reason and kernel is None:
        reason = f"no native kernel: {_native.why_none()}"
    if not reason and kernel is not None and not kernel.takes(n_rows, weight.group_size):
        reason = f"{n_rows} rows are multiplied in PyTorch on this processor"
    if not reason and n_rows > choice.MAX_ROWS and weight.shape[0] * weight.shape[1] < choice.LEAST_PANEL_WEIGHTS:
        reason = f"{n_rows} rows of a small matrix are multiplied in PyTorch"
    if reason:
        return KernelChoice("grouped", reason)
    verdict = _native.verdict(weight.layout.plane_bits, weight.group_size, min(bits, _TOP), n_rows)
    return KernelChoice("native" if verdict.is_used else "grouped", verdict.reason)


def native() -> choice.NativeChoice:
    """The native kernel of this machine with the verdicts of its self-test."""
    return _native


def is_forced() -> bool:
    """Whether the caller asked for one implementation (:func:`force`)."""
    return _forced is not None


@contextmanager
def force(name: KernelName, reason: str = "forced by the caller") -> Iterator[None]:
    """Use one implementation inside the block; tests compare the fast paths with the reference this way.

    ``"native"`` and ``"triton"`` leave out what their self-tests say; what they cannot take (another device, more rows)
    runs grouped.

    Raises:
        ExecutionError: If the native kernel is asked for and cannot be had.
    """
    global _forced
    if name == "native" and _native.kernel() is None:
        raise ExecutionError(f"there is no native kernel: {_native.why_none()}. Use grouped.")
    before = _forced
    _forced = KernelChoice(name, reason)
    try:
        yield
    finally:
        _forced = before


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
    level = min(bits, _TOP) if isinstance(bits, int) else bits.clamp(max=_TOP)
    if isinstance(weight, ColumnTensor) and (_forced is None or _forced.name == "bags"):
        return bags.nested_linear(x, weight.columns, level, refit=weight.refit)
    stored = (weight.planes, weight.layout.plane_bits, weight.group_min, weight.group_step)
    if _forced is not None and _forced.name == "reference":
        return reference.nested_linear(x, *stored, _per_row(bits, x.shape[0]).clamp(max=_TOP), refit=weight.refit)
    if _is_on_card(x) and (_forced is None or _forced.name == "triton"):
        is_forced = _forced is not None
        y = triton_choice.nested_linear(_triton, x, *stored, level, refit=weight.refit, is_forced=is_forced)
        if y is not None:
            return y
    elif _forced is None or _forced.name == "native":
        is_forced, may_round = _forced is not None, _may_round.get()
        y = choice.nested_linear(
            _native, x, *stored, level, refit=weight.refit, is_forced=is_forced, may_round=may_round
        )
        if y is not None:
            return y
    return grouped.nested_linear(x, *stored, level, refit=weight.refit)


def linear_int8(codes: Tensor, row_scale: Tensor, weight: NestedTensor, bits: int | Tensor) -> Tensor:
    """As :func:`linear`, with activations that are 8-bit codes; all sums of products are sums of integers.

    Args:
        codes: Codes in [-127, 127], int8, shape (row, in).
        row_scale: What a code step of each row is worth, shape (row,).
        weight: Nested weight of shape (out, in).
        bits: One level, or one per row, shape (row,). Levels above the stored ones read the top level.

    Returns:
        Shape (row, out), fp32.
    """
    _check_levels(weight, bits)
    stored = (weight.planes, weight.layout.plane_bits, weight.group_min, weight.group_step)
    if _forced is None or _forced.name != "reference":
        level = min(bits, _TOP) if isinstance(bits, int) else bits.clamp(max=_TOP)
        return int8_grouped.nested_linear_int8(codes, row_scale, *stored, level, refit=weight.refit)
    levels = _per_row(bits, codes.shape[0]).clamp(max=_TOP)
    return int8_reference.nested_linear_int8(codes, row_scale, *stored, levels, refit=weight.refit)


def _is_on_card(x: Tensor) -> bool:
    return x.is_cuda


def _on_card(device: torch.device) -> KernelChoice:
    """What self-tests on a card said so far; they are made when a layout and a number of rows are first met."""
    if reason := why_not_triton(device):
        return KernelChoice("grouped", f"{_GROUPED}; no Triton kernel: {reason}")
    verdicts = [verdict for case, verdict in _triton.verdicts().items() if torch.device(case[0]).type == device.type]
    declined = next((f"; PyTorch also where {verdict.reason}" for verdict in verdicts if not verdict.is_used), "")
    if any(verdict.is_used for verdict in verdicts):
        return KernelChoice("triton", f"Triton straight from the planes, where its self-test was passed{declined}")
    return KernelChoice("grouped", f"{_GROUPED}{declined}" if verdicts else f"{_GROUPED}; no Triton kernel tried yet")


def _describe(case: choice.Case, verdict: choice.Verdict) -> str:
    planes, group_size, bits, n_rows = case
    return f"planes {'+'.join(map(str, planes))}, group {group_size}, {bits} bits, {n_rows} rows: {verdict.reason}"


def _per_row(bits: int | Tensor, n_rows: int) -> Tensor:
    return torch.full((n_rows,), bits) if isinstance(bits, int) else bits


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

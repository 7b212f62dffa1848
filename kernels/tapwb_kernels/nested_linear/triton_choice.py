"""Whether the Triton kernel is used on a card: a self-test when a layout and a number of rows are first met.

The kernel must agree with exact arithmetic and must not be slower than the PyTorch path on the same card; where it is
neither, PyTorch runs and the reason is told. From ``DENSE_ROWS`` rows on a product is arithmetic and not bytes: the
weight is then made into floats once per level and multiplied by the library's own product.
"""

import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tapwb_kernels.capability import why_not_triton
from tapwb_kernels.launch import row_bucket
from tapwb_kernels.layout import Refit, group_size_of
from tapwb_kernels.nested_dequantize.reference import nested_dequantize
from tapwb_kernels.nested_linear import grouped
from tapwb_kernels.nested_linear.choice import RandomWeight, random_weight

DENSE_ROWS = 64
"""Rows from which on weights are made into floats once."""

BOUNDS = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Largest error of a product, as a share of its norm: fp32 sums, and one rounding to the dtype of the activations."""

_TIMED_OUT, _TIMED_COLUMNS, _REPEATS = 4096, 4096, 5

Case = tuple[str, torch.dtype, tuple[int, ...], int, int, int]
"""Device, dtype of the activations, plane widths, group size, level, rows (a bucket)."""


@dataclass(frozen=True, slots=True)
class TritonVerdict:
    """What the self-test found.

    Attributes:
        is_used: Whether the Triton kernel is used.
        reason: Why, in one line.
    """

    is_used: bool
    reason: str


class TritonChoice:
    """The verdicts on the Triton kernel, made when first asked for.

    Args:
        seconds: Times a call on a device; events on a card by default.
    """

    def __init__(self, seconds: Callable[[Callable[[], Tensor], torch.device], float] | None = None) -> None:
        self._seconds = device_seconds if seconds is None else seconds
        self._lock = threading.RLock()
        self._known: dict[Case, TritonVerdict] = {}

    def verdict(
        self, x: Tensor, plane_bits: Sequence[int], group_size: int, bits: int, n_rows: int, *, has_refit: bool = True
    ) -> TritonVerdict:
        """What the self-test says about rows of one level.

        Args:
            x: Activations; device and dtype count.
            plane_bits: Width of each plane.
            group_size: Columns of a group.
            bits: Level, 1 to 8.
            n_rows: Number of rows.
            has_refit: Whether levels 1 and 2 have a scale of their own.
        """
        if reason := why_not(x):
            return TritonVerdict(is_used=False, reason=reason)
        if bits <= 2 and not has_refit:
            return TritonVerdict(is_used=False, reason=f"{bits} bits have no refitted scale")
        rows = DENSE_ROWS if n_rows >= DENSE_ROWS else min(row_bucket(n_rows), DENSE_ROWS - 1)
        case = (str(x.device), x.dtype, tuple(plane_bits), group_size, bits, rows)
        found = self._known.get(case)
        if found is None:
            with self._lock:
                found = self._known.get(case) or self._judge(x, case)
                self._known[case] = found
        return found

    def verdicts(self) -> dict[Case, TritonVerdict]:
        """All verdicts known so far."""
        return dict(self._known)

    def _judge(self, x: Tensor, case: Case) -> TritonVerdict:
        _, dtype, plane_bits, group_size, bits, n_rows = case
        try:
            error = relative_error(x.device, dtype, plane_bits, group_size, bits, n_rows)
            if not error <= BOUNDS[dtype]:
                return TritonVerdict(False, f"the Triton kernel is wrong on this card: relative error {error:.1e}")
            triton_s, torch_s = self._times(x.device, dtype, plane_bits, group_size, bits, n_rows)
        except (RuntimeError, ValueError, OSError) as fault:
            # A kernel that this driver or this version of Triton cannot build or launch.
            return TritonVerdict(False, f"the Triton kernel does not run here: {type(fault).__name__}: {fault}")
        times = f"{triton_s * 1e6:.0f} against {torch_s * 1e6:.0f} microseconds, error {error:.1e}"
        if triton_s > torch_s:
            return TritonVerdict(False, f"the Triton kernel is slower here: {times}")
        return TritonVerdict(True, f"Triton against PyTorch: {times}")

    def _times(
        self, device: torch.device, dtype: torch.dtype, plane_bits: tuple[int, ...], size: int, bits: int, n_rows: int
    ) -> tuple[float, float]:
        """Shortest times of the kernel and of the PyTorch path, taken in turns."""
        weight = _timed_weight(plane_bits, size, device)
        x = torch.randn(n_rows, weight.cols, device=device).to(dtype)

        def fast() -> Tensor:
            return _one_level(x, weight.stored, bits, weight.refit)

        def plain() -> Tensor:
            return grouped.nested_linear(x, *weight.stored, bits, refit=weight.refit)

        pairs = [(self._seconds(fast, device), self._seconds(plain, device)) for _ in range(_REPEATS)]
        return min(pair[0] for pair in pairs), min(pair[1] for pair in pairs)


def nested_linear(
    choice: TritonChoice,
    x: Tensor,
    planes: Sequence[Tensor],
    plane_bits: Sequence[int],
    group_min: Tensor,
    group_step: Tensor,
    bits: Tensor | int,
    *,
    refit: Refit | None = None,
    is_forced: bool = False,
) -> Tensor | None:
    """As :func:`tapwb_kernels.nested_linear.grouped.nested_linear`, or ``None`` where that is the better one.

    Args:
        choice: The verdicts.
        x: Activations, shape (row, in).
        planes: Packed planes of the weight, most significant first.
        plane_bits: Width of each plane.
        group_min: Smallest weight of each group, shape (out, group).
        group_step: Width of an 8-bit cell of each group, same shape.
        bits: Level of each row, 1 to 8, shape (row,), or one number.
        refit: Own scale and offset of the 1- and 2-bit levels.
        is_forced: Whether verdicts are left out.

    Raises:
        ValueError: If a level cannot be read.
    """
    if not x.shape[0] or not group_min.numel() or why_not(x):
        return None
    levels = [bits] if isinstance(bits, int) else sorted(torch.unique(bits).tolist())
    size, n_rows = group_size_of(planes, plane_bits), x.shape[0]
    stored = (planes, tuple(plane_bits), group_min, group_step)
    if not all(t.is_contiguous() for t in (*planes, group_min, group_step)):
        return None
    if not is_forced:
        told = (choice.verdict(x, plane_bits, size, b, n_rows, has_refit=bool(refit)) for b in levels)
        if not all(verdict.is_used for verdict in told):
            return None
    if isinstance(bits, int) or len(levels) == 1:
        return _one_level(x, stored, levels[0], refit)
    if levels[0] > 2 and len(levels) <= _kernel().MAX_SLICES and n_rows < DENSE_ROWS:
        return _kernel().nested_linear_mixed(x, *stored, bits, levels)
    y = x.new_empty(n_rows, group_min.shape[0])
    for level in levels:
        rows = torch.nonzero(bits == level).squeeze(1)
        y[rows] = _one_level(x[rows], stored, level, refit)
    return y


def why_not(x: Tensor) -> str:
    """Why the kernel does not take these activations; empty if it does."""
    if x.dtype not in BOUNDS:
        return f"the Triton kernel takes no activations of {x.dtype}"
    if x.requires_grad and torch.is_grad_enabled():
        return "the Triton kernel has no gradient"
    return why_not_triton(x.device)


def relative_error(
    device: torch.device, dtype: torch.dtype, plane_bits: Sequence[int], group_size: int, bits: int, n_rows: int
) -> float:
    """Error of the kernel against exact arithmetic, as a share of the result's norm; infinite if it is not finite.

    Args:
        device: Where.
        dtype: Of the activations.
        plane_bits: Width of each plane.
        group_size: Columns of a group.
        bits: Level, 1 to 8.
        n_rows: Number of rows.
    """
    weight = random_weight(67, 5 * group_size - 3, plane_bits, group_size)
    x = (torch.randn(n_rows, weight.cols, generator=torch.Generator().manual_seed(bits)) + 0.3).to(dtype)
    planes, widths, low, step = weight.stored
    dense = nested_dequantize(planes, widths, low, step, bits, weight.cols, refit=weight.refit).double()
    expected = x.double() @ dense.T
    there = _on(weight, device)
    actual = _one_level(x.to(device), there.stored, bits, there.refit).cpu().double()
    error = float((actual - expected).norm() / expected.norm())
    return error if error == error else float("inf")


def device_seconds(call: Callable[[], Tensor], device: torch.device) -> float:
    """Seconds of one call on a card, by its events, after one call to warm up.

    Args:
        call: What is timed.
        device: Where it runs.
    """
    call()
    with torch.cuda.device(device):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
    return start.elapsed_time(end) / 1e3


def _one_level(x: Tensor, stored: Any, bits: int, refit: Refit | None) -> Tensor:
    """What runs for rows of one level on a card."""
    if x.shape[0] < DENSE_ROWS:
        return _kernel().nested_linear(x, *stored, bits, refit=refit)
    from tapwb_kernels.nested_dequantize import triton as dequantize

    planes, widths, low, step = stored
    return F.linear(x, dequantize.nested_dequantize(planes, widths, low, step, bits, x.shape[1], x.dtype, refit=refit))


@functools.lru_cache(maxsize=1)
def _timed_weight(plane_bits: tuple[int, ...], size: int, device: torch.device) -> RandomWeight:
    """Kept for the next level: making it takes longer than timing it."""
    scale = 1 if device.type == "cuda" else 32  # the interpreter needs seconds for what a card does in microseconds
    return _on(random_weight(_TIMED_OUT // scale, _TIMED_COLUMNS // scale, plane_bits, size), device)


def _kernel() -> Any:
    # Imported where it is used: the package must load where Triton cannot be installed.
    from tapwb_kernels.nested_linear import triton

    return triton


def _on(weight: RandomWeight, device: torch.device) -> RandomWeight:
    planes, widths, low, step = weight.stored
    stored = (tuple(plane.to(device) for plane in planes), widths, low.to(device), step.to(device))
    refit = {bits: (scale.to(device), offset.to(device)) for bits, (scale, offset) in weight.refit.items()}
    return RandomWeight(stored, refit, weight.cols)

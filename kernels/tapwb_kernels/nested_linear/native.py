"""nested_linear in C++, rows at one level on a CPU: for one to eight the planes are read once and never unpacked.

For more rows, where the processor has the instructions, weights are unpacked 32 rows at a time and used by all.

Maths and error bound are in README.md beside this file, the loops in ``native.cpp``. This module builds the library,
loads it and calls it through ``ctypes``.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from tapwb_kernels.layout import CODE_BITS, Refit, group_size_of, planes_for
from tapwb_kernels.native_build import NativeUnavailable, build_library

SOURCE = Path(__file__).parents[1] / "native_step" / "step.cpp"
"""Holds ``native.cpp`` and the whole step: one library, built once."""

MAX_ROWS = 8
"""More rows than these are another loop, which not every processor has (:attr:`NativeKernel.panel_group`)."""

RELATIVE_ERROR = 1e-4
"""Largest error of a result, as a share of the result's norm; a test holds the kernel to it on every layout."""

ROUNDED_RELATIVE_ERROR = 4e-3
"""The same for more than ``MAX_ROWS`` rows that were rounded to bf16."""

_INTERFACE = 4
_MAX_PLANES = 8
_Pointers = ctypes.c_void_p * _MAX_PLANES
_Widths = ctypes.c_int32 * _MAX_PLANES
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class _Call(ctypes.Structure):
    """Mirrors ``Call`` in native.cpp, field by field."""

    _fields_ = [
        ("x", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("first", ctypes.c_void_p),
        ("second", ctypes.c_void_p),
        ("planes", _Pointers),
        ("n_rows", ctypes.c_int64),
        ("cols", ctypes.c_int64),
        ("out", ctypes.c_int64),
        ("groups", ctypes.c_int64),
        ("group_size", ctypes.c_int64),
        ("widths", _Widths),
        ("n_planes", ctypes.c_int32),
        ("bits", ctypes.c_int32),
        ("x_dtype", ctypes.c_int32),
        ("y_dtype", ctypes.c_int32),
        ("meta_dtype", ctypes.c_int32),
        ("n_threads", ctypes.c_int32),
        ("times", ctypes.c_float),
        ("plus", ctypes.c_float),
        ("by_sixteen", ctypes.c_void_p),
        ("may_round", ctypes.c_int32),
    ]


class NativeKernel:
    """A loaded library.

    Args:
        path: Of the library.

    Attributes:
        instructions: Which of its loops were compiled: ``"AVX-512 VNNI"``, ``"AVX2"``, ``"portable C++"`` ...
        path: Of the library.
        panel_group: Largest group with which more than ``MAX_ROWS`` rows are taken; 0 where they never are.

    Raises:
        NativeUnavailable: If it cannot be loaded, or is of another version.
    """

    def __init__(self, path: Path) -> None:
        try:
            library = ctypes.CDLL(str(path))
            library.tap_instructions.restype = ctypes.c_char_p
            interface = int(library.tap_interface())
            self.instructions = str(library.tap_instructions().decode())
            self.panel_group = int(library.tap_panel_group())
            self._can_round = library.tap_can_round
            self._can_round.argtypes = [ctypes.c_int64]
        except (OSError, AttributeError) as error:
            raise NativeUnavailable(f"{path} cannot be loaded: {error}") from None
        if interface != _INTERFACE:
            raise NativeUnavailable(f"{path} has interface {interface}, this program needs {_INTERFACE}. Delete it")
        self.path = path
        self._run = library.tap_nested_linear
        self._run.argtypes = [ctypes.POINTER(_Call)]
        self._run.restype = ctypes.c_int32

    def nested_linear(
        self,
        x: Float[Tensor, "row in"],
        planes: Sequence[UInt8[Tensor, "out group _"]],
        plane_bits: Sequence[int],
        group_min: Float[Tensor, "out group"],
        group_step: Float[Tensor, "out group"],
        bits: int,
        *,
        refit: Refit | None = None,
        n_threads: int = 1,
        may_round: bool = False,
    ) -> Float[Tensor, "row out"]:
        """As :func:`tapwb_kernels.nested_linear.reference.nested_linear`, all rows at one level.

        A row's result does not depend on the other rows or on the number of threads, to the last bit.

        Args:
            x: Activations, at least one row; more than ``MAX_ROWS`` only where :meth:`takes` says so.
            planes: Packed planes of the weight, most significant first.
            plane_bits: Width of each plane.
            group_min: Smallest weight of each group.
            group_step: Width of an 8-bit cell of each group.
            bits: Level, 1 to 8.
            refit: Own scale and offset of the 1- and 2-bit levels.
            n_threads: Threads to share the rows of the weight, the caller included.
            may_round: Whether more than ``MAX_ROWS`` rows may be rounded to bf16, and the weight with them, as those of
                a 16-bit model are; done where :meth:`rounds` says so.

        Raises:
            ValueError: If the kernel does not take these (see :func:`why_not`).
        """
        reason = why_not(x, planes, group_min, group_step)
        if not reason and not self.takes(x.shape[0], group_size_of(planes, plane_bits)):
            reason = f"the native kernel takes no {x.shape[0]} rows here"
        if reason:
            raise ValueError(reason)
        return self.multiply(x, planes, plane_bits, group_min, group_step, bits, refit, n_threads, may_round)

    def takes(self, n_rows: int, group_size: int) -> bool:
        """Whether the kernel multiplies so many rows with groups of that size on this machine."""
        return n_rows <= MAX_ROWS or group_size <= self.panel_group

    def rounds(self, n_rows: int, group_size: int) -> bool:
        """Whether so many rows are rounded to bf16 here if they may be: the processor has tiles for that."""
        return n_rows > MAX_ROWS and bool(self._can_round(group_size))

    def multiply(
        self,
        x: Tensor,
        planes: Sequence[Tensor],
        plane_bits: Sequence[int],
        group_min: Tensor,
        group_step: Tensor,
        bits: int,
        refit: Refit | None,
        n_threads: int,
        may_round: bool = False,
    ) -> Tensor:
        """:meth:`nested_linear` for callers that have asked :func:`why_not` themselves: microseconds count here.

        Raises:
            ValueError: If a level cannot be read, or the tensors do not fit each other.
        """
        if bits > 2:
            first, second = group_step, group_min
            times = float(1 << (CODE_BITS - bits))
            plus = 0.5 * times
        else:
            first, second = _refitted(bits, refit)
            times, plus = 1.0, 0.0
        kept = x.contiguous() if x.dtype != torch.float16 else x.float().contiguous()
        n_rows, cols = kept.shape
        out, groups = group_min.shape
        y = torch.empty(n_rows, out, dtype=kept.dtype)
        n_planes = planes_for(plane_bits, bits)
        size = planes[0].shape[-1] * 8 // plane_bits[0]
        n_weights = out * groups * size
        pointers = []
        for plane, width in zip(planes[:n_planes], plane_bits, strict=False):
            if plane.numel() * 8 != n_weights * width:
                raise ValueError(f"a plane of {width} bits has {plane.numel()} bytes, not {n_weights * width // 8}")
            pointers.append(plane.data_ptr())
        if first.numel() != second.numel() or groups * size < cols:
            raise ValueError(f"{cols} columns do not fit {groups} groups of {size}")
        dtype = _DTYPES[kept.dtype]
        call = _Call(
            kept.data_ptr(),
            y.data_ptr(),
            first.data_ptr(),
            second.data_ptr(),
            _Pointers(*pointers),
            n_rows,
            cols,
            out,
            groups,
            size,
            _Widths(*plane_bits[:n_planes]),
            n_planes,
            bits,
            dtype,
            dtype,
            _DTYPES[first.dtype],
            n_threads,
            times,
            plus,
            None,
            may_round,
        )
        if self._run(call):
            raise ValueError(f"{tuple(x.shape)} times {tuple(group_min.shape)} groups does not fit the native kernel")
        return y if x.dtype == y.dtype else y.to(x.dtype)


def load(folder: Path, *, defines: tuple[str, ...] = ()) -> NativeKernel:
    """The kernel for this machine, built on first use.

    Args:
        folder: Where libraries are kept.
        defines: Further arguments for the compiler; ``-DTAP_PORTABLE`` leaves the instruction sets out.

    Raises:
        NativeUnavailable: If it cannot be built or loaded.
    """
    return NativeKernel(build_library(SOURCE, folder, defines=defines))


def why_not(x: Tensor, planes: Sequence[Tensor], group_min: Tensor, group_step: Tensor) -> str:
    """Why the kernel does not take these tensors; empty if it does."""
    if not (x.is_cpu and planes[0].is_cpu):
        return "the native kernel runs on CPUs"
    if not x.shape[0] or not group_min.numel():
        return "the native kernel takes at least one row and a weight that is not empty"
    if x.dtype not in _DTYPES:
        return f"the native kernel takes no activations of {x.dtype}"
    if x.requires_grad and torch.is_grad_enabled():
        return "the native kernel has no gradient"
    for tensor in (*planes, group_min, group_step):
        if not tensor.is_contiguous():
            return "the native kernel takes contiguous weights only"
    return ""


def _refitted(bits: int, refit: Refit | None) -> tuple[Tensor, Tensor]:
    if not refit or bits not in refit:
        raise ValueError(f"{bits} bits have no refitted scale and offset: quantize with a layout of that level")
    scale, offset = refit[bits]
    return scale.contiguous(), offset.contiguous()

"""The operations of a program as the structures that native code reads (ops.h)."""

import ctypes
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tapwb_kernels.native_step.program import (
    ACTIVATIONS,
    TOP_LEVEL,
    Activate,
    Add,
    Attend,
    Embed,
    Gate,
    Linear,
    Norm,
    Op,
    Position,
    Rope,
    Scale,
    StepProgram,
    StoredWeight,
    View,
)

_MAX_PLANES = 8
_META_DTYPES = {torch.float32: 0, torch.float16: 2}
_KINDS: tuple[type[Op], ...] = (Embed, Position, Norm, Linear, Rope, Attend, Activate, Add, Scale, Gate)
_FloatPointer = _Pointer = ctypes.c_void_p
_ByLevel = ctypes.c_void_p * (TOP_LEVEL + 1)
_Refit = ctypes.c_void_p * 3


class WeightStruct(ctypes.Structure):
    """Mirrors ``Weight`` in ops.h, field by field."""

    _fields_ = [
        ("step", _Pointer),
        ("low", _Pointer),
        ("scale", _Refit),
        ("offset", _Refit),
        ("planes", ctypes.c_void_p * _MAX_PLANES),
        ("gain", _ByLevel),
        ("addend", _ByLevel),
        ("bias", _FloatPointer),
        ("cols", ctypes.c_int64),
        ("out", ctypes.c_int64),
        ("groups", ctypes.c_int64),
        ("group_size", ctypes.c_int64),
        ("widths", ctypes.c_int32 * _MAX_PLANES),
        ("n_planes", ctypes.c_int32),
        ("meta_dtype", ctypes.c_int32),
        ("refit_dtype", ctypes.c_int32),
        ("by_sixteen", ctypes.c_void_p),
    ]


class OpStruct(ctypes.Structure):
    """Mirrors ``Op`` in ops.h, field by field."""

    _fields_ = [
        *((name, _FloatPointer) for name in ("x", "x2", "y")),
        *((name, ctypes.c_int64) for name in ("x_stride", "x2_stride", "y_stride")),
        *((name, _FloatPointer) for name in ("weight", "bias")),
        ("linear", WeightStruct),
        *((name, ctypes.c_int64) for name in ("width", "n_heads", "n_kv_heads", "head_dim", "rotary_dim", "window")),
        *((name, ctypes.c_int32) for name in ("kind", "activation", "layer", "table", "group", "fixed_level")),
        *((name, ctypes.c_int32) for name in ("is_encoded", "is_output", "is_centred", "n_levels")),
        ("levels", ctypes.c_int32 * TOP_LEVEL),
        *((name, ctypes.c_float) for name in ("eps", "factor", "softcap", "slope")),
    ]


class StepStruct(ctypes.Structure):
    """Mirrors ``Step`` in ops.h, field by field."""

    _fields_ = [
        ("tokens", ctypes.POINTER(ctypes.c_int32)),
        ("levels", _Pointer),
        ("corrections", _Pointer),
        ("n_rows", ctypes.c_int64),
        ("position", ctypes.c_int64),
        ("n_outputs", ctypes.c_int64),
        ("n_threads", ctypes.c_int32),
        ("first_op", ctypes.c_int32),
        ("end_op", ctypes.c_int32),
    ]


def packed_ops(program: StepProgram, slots: Mapping[str, Tensor]) -> tuple[Any, list[Tensor]]:
    """The operations as an array of structures, and the tensors that must outlive it.

    Args:
        program: What to run.
        slots: Where each slot is, fp32, shape (max row, width).

    Raises:
        ValueError: If a tensor is not as native code reads it.
    """
    packer = _Packer(slots, program.logits)
    ops = (OpStruct * len(program.ops))(*[packer.pack(op) for op in program.ops])
    return ops, packer.alive


class _Packer:
    """Packs one operation after the other; knows which input was brought to integers last."""

    def __init__(self, slots: Mapping[str, Tensor], logits: View) -> None:
        self._slots, self._logits = slots, logits
        self.alive: list[Tensor] = []
        self._encoded: tuple[View, int] | None = None

    def pack(self, op: Op) -> OpStruct:
        packed = OpStruct()
        packed.kind = _KINDS.index(type(op))
        for name, stride in (("x", "x_stride"), ("x2", "x2_stride"), ("y", "y_stride")):
            view = getattr(op, name, None)
            if isinstance(view, View):
                setattr(packed, name, self._address(view))
                setattr(packed, stride, self._slots[view.slot].shape[1])
        _FIELDS[type(op)](self, op, packed)
        written = getattr(op, "y", None)
        if self._encoded and isinstance(written, View) and written.slot == self._encoded[0].slot:
            self._encoded = None
        return packed

    def embed(self, op: Embed, packed: OpStruct) -> None:
        packed.linear, packed.factor = self._weight(op.table), op.factor

    def position(self, op: Position, packed: OpStruct) -> None:
        packed.weight, packed.width = self._floats(op.table), op.x.width

    def norm(self, op: Norm, packed: OpStruct) -> None:
        packed.n_heads, packed.width = op.n_heads, op.x.width // op.n_heads
        packed.weight, packed.bias = self._floats(op.weight), self._floats(op.bias)
        packed.eps, packed.is_centred = op.eps, op.is_centred

    def linear(self, op: Linear, packed: OpStruct) -> None:
        packed.linear, packed.group, packed.fixed_level = self._weight(op.weight), op.group, op.fixed_level
        key = (op.x, op.weight.group_size)
        packed.is_encoded = self._encoded == key
        self._encoded = key
        packed.is_output = op.y == self._logits

    def rope(self, op: Rope, packed: OpStruct) -> None:
        packed.n_heads, packed.head_dim = op.n_heads, op.y.width // op.n_heads
        packed.rotary_dim, packed.table = op.rotary_dim, op.table

    def attend(self, op: Attend, packed: OpStruct) -> None:
        packed.x, packed.x2, packed.weight = (self._address(view) for view in (op.q, op.k, op.v))
        packed.x_stride, packed.x2_stride = (self._slots[view.slot].shape[1] for view in (op.q, op.k))
        packed.n_heads, packed.n_kv_heads, packed.head_dim = op.n_heads, op.n_kv_heads, op.head_dim
        packed.layer, packed.window, packed.softcap, packed.factor = op.layer, op.window, op.softcap, op.factor

    def activate(self, op: Activate, packed: OpStruct) -> None:
        packed.width, packed.activation = op.x.width, ACTIVATIONS.index(op.activation)

    def add(self, op: Add, packed: OpStruct) -> None:
        packed.width, packed.factor = op.x.width, op.factor

    def scale(self, op: Scale, packed: OpStruct) -> None:
        packed.width, packed.factor, packed.softcap = op.x.width, op.factor, op.softcap

    def gate(self, op: Gate, packed: OpStruct) -> None:
        packed.width, packed.group, packed.n_levels = op.x.width, op.group, len(op.levels)
        packed.weight, packed.bias = self._floats(op.direction), self._keep(op.cuts.double())
        packed.slope, packed.factor, packed.eps = op.slope, op.offset, op.eps
        packed.levels[: len(op.levels)] = list(op.levels)

    def _address(self, view: View) -> int:
        return self._slots[view.slot].data_ptr() + 4 * view.start

    def _keep(self, tensor: Tensor) -> int:
        """Address of a tensor that is kept as long as the program."""
        if tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise ValueError(f"a tensor of shape {tuple(tensor.shape)} is not contiguous memory of the CPU")
        self.alive.append(tensor)
        return tensor.data_ptr()

    def _floats(self, tensor: Tensor | None) -> int | None:
        return None if tensor is None else self._keep(tensor.detach().float().contiguous())

    def _weight(self, weight: StoredWeight) -> WeightStruct:
        groups, size = int(weight.group_min.shape[1]), weight.group_size
        packed = WeightStruct()
        for index, (plane, width) in enumerate(zip(weight.planes, weight.plane_bits, strict=True)):
            if plane.numel() * 8 != weight.out * groups * size * width:
                raise ValueError(
                    f"a plane of {width} bits has {plane.numel()} bytes, which {weight.out} rows do not fill"
                )
            packed.planes[index], packed.widths[index] = self._keep(plane), width
        packed.n_planes = len(weight.planes)
        packed.step, packed.low = self._keep(weight.group_step), self._keep(weight.group_min)
        packed.meta_dtype = _META_DTYPES[weight.group_min.dtype]
        for level, (scale, offset) in weight.refit.items():
            packed.scale[level], packed.offset[level] = self._keep(scale), self._keep(offset)
            packed.refit_dtype = _META_DTYPES[scale.dtype]
        for level, (gain, addend) in weight.correction.items():
            packed.gain[level], packed.addend[level] = self._keep(gain.half()), self._keep(addend.half())
        packed.bias = self._floats(weight.bias)
        packed.cols, packed.out, packed.groups, packed.group_size = weight.cols, weight.out, groups, size
        return packed


_FIELDS: Mapping[type[Op], Callable[..., None]] = {
    Embed: _Packer.embed,
    Position: _Packer.position,
    Norm: _Packer.norm,
    Linear: _Packer.linear,
    Rope: _Packer.rope,
    Attend: _Packer.attend,
    Activate: _Packer.activate,
    Add: _Packer.add,
    Scale: _Packer.scale,
    Gate: _Packer.gate,
}

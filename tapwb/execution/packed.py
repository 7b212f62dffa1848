"""Where a nested weight lives inside an ``nn.Module``: as buffers that survive saving, loading and ``.to()``.

Two traps shape this file. ``module.to(torch.bfloat16)`` and Hugging Face's loader cast every floating-point buffer, so
the fp16 metadata is kept as its int16 bit pattern: no cast can reach it, and the round trip through safetensors stays
bit-exact. (Weights beyond the range of fp16 have fp32 metadata, kept as int32.) And an empty module must be buildable
on the ``meta`` device before its tensors arrive.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from tapwb.core.errors import CorruptWeights
from tapwb.execution.dispatch import ColumnTensor
from tapwb.quant.nested import NestedLayout, NestedTensor


class PackedWeight(nn.Module):
    """The planes and the metadata of one nested matrix.

    Args:
        rows: Output features.
        cols: Input features.
        group_size: Columns that share a minimum and a step.
        layout: How the eight bits are divided into planes.
        device: Where to create the (empty) buffers.
    """

    def __init__(
        self, rows: int, cols: int, group_size: int, layout: NestedLayout, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        self.rows, self.cols, self.group_size, self.layout = rows, cols, group_size, layout
        n_groups = -(-cols // group_size)
        for index, bits in enumerate(layout.plane_bits):
            shape = (rows, n_groups, group_size * bits // 8)
            self.register_buffer(f"plane_{index}", torch.empty(shape, dtype=torch.uint8, device=device))
        # [0] is the minimum, [1] the step of each group, as bit patterns (module docstring).
        self.register_buffer("group_range", torch.empty((2, rows, n_groups), dtype=torch.int16, device=device))
        for bits in refit_levels(layout):
            shape = (2, rows, n_groups)
            self.register_buffer(f"refit_{bits}", torch.empty(shape, dtype=torch.int16, device=device))
        # Looked up once: forward runs for every layer of every decode step.
        self._plane_names = tuple(f"plane_{index}" for index in range(len(layout.plane_bits)))
        self._refit_names = {bits: f"refit_{bits}" for bits in refit_levels(layout)}
        # Kept while it lies by columns: its parts are looked up for every product.
        self._record: ColumnTensor | None = None

    @classmethod
    def from_nested(cls, nested: NestedTensor) -> "PackedWeight":
        """Take over the tensors of a nested weight, without copying the planes."""
        rows, cols = nested.shape
        module = cls(rows, cols, nested.group_size, nested.layout, device="meta")
        for index, plane in enumerate(nested.planes):
            setattr(module, f"plane_{index}", plane)
        module.group_range = _to_pattern(nested.group_min, nested.group_step)
        for bits, (scale, offset) in nested.refit.items():
            setattr(module, f"refit_{bits}", _to_pattern(scale, offset))
        return module

    def forward(self) -> NestedTensor:
        """The stored weight as a record that shares this module's memory.

        A call, not a property, so that accelerate's hooks can bring offloaded planes in before and out after.
        """
        buffers = cast(dict[str, Tensor], self._buffers)
        if self._record is not None:
            return self._record
        low, step = _from_pattern(buffers["group_range"])
        refit = {}
        for bits, name in self._refit_names.items():
            scale, offset = _from_pattern(buffers[name])
            refit[bits] = (scale, offset)
        return NestedTensor(
            planes=tuple(buffers[name] for name in self._plane_names),
            group_min=low,
            group_step=step,
            refit=refit,
            shape=(self.rows, self.cols),
            group_size=self.group_size,
            layout=self.layout,
        )

    @property
    def is_by_columns(self) -> bool:
        """Whether the weight lies in a table instead of in planes (:meth:`lay_by_columns`)."""
        return "table" in self._buffers

    def lay_by_columns(self) -> None:
        """Put a table of columns in the place of planes, minima and steps.

        State dictionaries hold the planes as ever; a move to another device or dtype, and loading, undo it.
        """
        with torch.inference_mode(False):
            record = ColumnTensor.of(self())
        for name in (*self._plane_names, "group_range"):
            delattr(self, name)
        self.register_buffer("table", record.columns.table, persistent=False)
        self.register_buffer("numbers", record.columns.numbers, persistent=False)
        self._record = record

    def lay_by_rows(self) -> None:
        """Undo :meth:`lay_by_columns`."""
        if not self.is_by_columns:
            return
        with torch.inference_mode(False):
            stored = self._stored_by_rows()
        for name in ("table", "numbers"):
            delattr(self, name)
        for name, tensor in stored.items():
            self.register_buffer(name, tensor)
        self._record = None

    def _stored_by_rows(self) -> dict[str, Tensor]:
        """Buffers as they are without a table."""
        nested = self()
        planes = {name: plane.contiguous() for name, plane in zip(self._plane_names, nested.planes, strict=True)}
        return planes | {"group_range": _to_pattern(nested.group_min, nested.group_step)}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedWeight":
        self.lay_by_rows()
        super()._apply(fn, recurse)
        return self

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.is_by_columns:
            destination |= {prefix + name: tensor for name, tensor in self._stored_by_rows().items()}

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.lay_by_rows()
        super()._load_from_state_dict(*args, **kwargs)

    def check_finite(self, name: str) -> None:
        """Refuse metadata that holds NaN or infinities.

        Raises:
            CorruptWeights: Naming the weight.
        """
        nested = self()
        numbers = (nested.group_min, nested.group_step)
        if not numbers[0].is_meta and not all(bool(torch.isfinite(tensor).all()) for tensor in numbers):
            raise CorruptWeights(f"the packed weight {name} holds NaN or infinite scales. Quantize the model again.")

    def extra_repr(self) -> str:
        """Shape and layout, for ``print(model)``."""
        return f"rows={self.rows}, cols={self.cols}, group_size={self.group_size}, layout={self.layout.name}"


def refit_levels(layout: NestedLayout) -> tuple[int, ...]:
    """Levels of a layout that carry their own scale and offset: 1 and 2 bits."""
    return tuple(level for level in layout.levels if level <= 2)


def _to_pattern(first: Tensor, second: Tensor) -> Tensor:
    """Two tensors of one floating-point dtype as integers of the same width, stacked."""
    stacked = torch.stack([first, second])
    return stacked.view(torch.int16 if stacked.dtype == torch.float16 else torch.int32)


def _from_pattern(pattern: Tensor) -> Tensor:
    """The reverse of :func:`_to_pattern`."""
    return pattern.view(torch.float16 if pattern.dtype == torch.int16 else torch.float32)

"""Nested weights: one 8-bit copy that can be read at fewer bits (science: nested weights, mid-rise cells).

Per group of columns, ``code = clamp(floor((w - min) / step), 0, 255)`` with ``step = (max - min) / 256``; the top ``b``
bits are again a code, of cells 2**(8-b) times as wide, and each cell is read at its middle::

    w_b = min + ((code >> (8 - b)) + 0.5) * 2**(8 - b) * step

Cells (mid-rise) nest where rounding to grid points (mid-tread) does not, which is why the lower levels cost nothing in
quality down to 3 bits. At 1 and 2 bits the cell middle is a poor estimate and those levels keep their own fitted scale
and offset. A greedy chain of residuals would fit every level separately and is several times worse at 8 bits.

``min`` is rounded down and ``step`` up when stored as fp16, so that the cells always cover the group and no weight is
clipped.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from tapwb.core.errors import InvalidTensor, SettingsError, UnsupportedBits
from tapwb.quant.check import check_finite, check_floating
from tapwb.quant.metadata import metadata_dtype, round_down, round_up
from tapwb.quant.nested_layout import PRESETS, NestedLayout, layout_for_levels
from tapwb.quant.packing import (
    CODE_BITS,
    check_group_size,
    n_groups,
    nested_dequantize,
    planes_for,
    split_code,
)

__all__ = [
    "NestedLayout",
    "PRESETS",
    "layout_for_levels",
    "NestedTensor",
    "quantize_nested",
    "pack_cells",
    "padded_groups",
    "cell_codes",
    "fit_low_level",
    "LOW_LEVELS",
]

LOW_LEVELS = (1, 2)
"""Levels that need a fitted scale and offset of their own."""

_BLOCK_WEIGHTS = 1 << 22


@dataclass(frozen=True, slots=True, eq=False)
class NestedTensor:
    """A weight in nested form.

    Attributes:
        planes: Packed planes, most significant first, each (row, group, group_size * width / 8) bytes.
        group_min: Smallest weight of each group, fp16 (fp32 if the weights lie outside fp16's range).
        group_step: Width of an 8-bit cell of each group, same dtype.
        refit: For levels 1 and 2, if the layout has them: (scale, offset) of each group.
        shape: (rows, columns) of the weight.
        group_size: Columns per group.
        layout: How the code is cut into planes.
    """

    planes: tuple[UInt8[Tensor, "row group _"], ...]
    group_min: Float[Tensor, "row group"]
    group_step: Float[Tensor, "row group"]
    shape: tuple[int, int]
    group_size: int
    layout: NestedLayout
    refit: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def levels(self) -> tuple[int, ...]:
        """Bit-widths that read whole planes, ascending."""
        return self.layout.levels

    @property
    def nbytes(self) -> int:
        """Bytes of all planes and metadata, counted on the tensors."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())

    @property
    def effective_bits(self) -> float:
        """Stored bits per weight, metadata and padding included."""
        count = self.shape[0] * self.shape[1]
        return 8 * self.nbytes / count if count else 0.0

    def bytes_read(self, bits: int) -> int:
        """Bytes a reader of ``bits`` bits touches: the planes down to that level, and two numbers per group.

        Raises:
            UnsupportedBits: If the level cannot be read.
        """
        self._check(bits)
        planes = self.planes[: planes_for(self.layout.plane_bits, bits)]
        pair = self.refit[bits] if bits in LOW_LEVELS else (self.group_min, self.group_step)
        return sum(t.numel() * t.element_size() for t in (*planes, *pair))

    def dequantize(
        self, bits: int, dtype: torch.dtype = torch.float32, *, out: Tensor | None = None
    ) -> Float[Tensor, "row column"]:
        """The weight read at ``bits`` bits.

        Args:
            bits: 3 to 8; 1 and 2 if the layout has them. A level between planes reads the planes above and below it.
            dtype: Of the result.
            out: Where to write, if given.

        Raises:
            UnsupportedBits: If the level cannot be read.
        """
        self._check(bits)
        return nested_dequantize(
            self.planes,
            self.layout.plane_bits,
            self.group_min,
            self.group_step,
            bits,
            self.shape[1],
            dtype,
            refit=self.refit,
            out=out,
        )

    def rows(self, index: Int[Tensor, " row"]) -> "NestedTensor":
        """The rows ``index`` (an embedding look-up: only these rows are ever made into floats)."""
        return self._map(lambda t: t[index], (int(index.shape[0]), self.shape[1]))

    def to(self, device: torch.device | str) -> "NestedTensor":
        """The same weight on another device."""
        return self._map(lambda t: t.to(device), self.shape)

    def tensors(self) -> dict[str, Tensor]:
        """Every stored tensor by name, for state dictionaries and safetensors files."""
        named = {f"plane_{i}": plane for i, plane in enumerate(self.planes)}
        named |= {"group_min": self.group_min, "group_step": self.group_step}
        for level, (scale, offset) in sorted(self.refit.items()):
            named |= {f"refit_{level}_scale": scale, f"refit_{level}_offset": offset}
        return named

    @classmethod
    def from_tensors(
        cls, tensors: dict[str, Tensor], shape: tuple[int, int], group_size: int, layout: NestedLayout | str
    ) -> "NestedTensor":
        """Put a weight together again from :meth:`tensors`.

        Raises:
            InvalidTensor: If a tensor is missing or has the wrong shape.
        """
        layout = NestedLayout.named(layout)
        groups = n_groups(shape[1], group_size)
        plane_shapes = {f"plane_{i}": group_size * p // 8 for i, p in enumerate(layout.plane_bits)}
        needed: dict[str, tuple[int, ...]] = {name: (shape[0], groups, w) for name, w in plane_shapes.items()}
        low_levels = [level for level in LOW_LEVELS if level in layout.levels]
        pairs = {level: (f"refit_{level}_scale", f"refit_{level}_offset") for level in low_levels}
        for name in ("group_min", "group_step", *(n for pair in pairs.values() for n in pair)):
            needed[name] = (shape[0], groups)
        for name, expected in needed.items():
            found = tuple(tensors[name].shape) if name in tensors else None
            if found != expected:
                raise InvalidTensor(
                    f"nested weight {tuple(shape)}: {name} has shape {found}, layout {layout.name} needs {expected}. "
                    f"The file is damaged or was saved with other settings; quantize the model again."
                )
        return cls(
            planes=tuple(tensors[name] for name in plane_shapes),
            group_min=tensors["group_min"],
            group_step=tensors["group_step"],
            shape=(int(shape[0]), int(shape[1])),
            group_size=group_size,
            layout=layout,
            refit={level: (tensors[scale], tensors[offset]) for level, (scale, offset) in pairs.items()},
        )

    def _map(self, change: Callable[[Tensor], Tensor], shape: tuple[int, int]) -> "NestedTensor":
        named = {name: change(tensor) for name, tensor in self.tensors().items()}
        return NestedTensor.from_tensors(named, shape, self.group_size, self.layout)

    def _check(self, bits: int) -> None:
        if bits in LOW_LEVELS and bits not in self.refit:
            levels = list(self.levels)
            raise UnsupportedBits(
                f"{bits} bits cannot be read from layout {self.layout.name} (levels {levels}). Read 3 to 8 bits, "
                f"or quantize with layout_for_levels([{bits}, 8])."
            )
        if not 1 <= bits <= CODE_BITS:
            raise UnsupportedBits(f"{bits} bits cannot be read from a nested weight: give 1 to 8.")


def quantize_nested(
    weight: Float[Tensor, "row column"], *, group_size: int = 64, layout: NestedLayout | str = "4+4"
) -> NestedTensor:
    """Quantize a weight into nested form (formulas in the module docstring).

    Args:
        weight: Any floating-point matrix; computed in fp32. An empty one gives an empty result.
        group_size: Columns that share (min, step); a multiple of 8. Use 128 from 2048 columns on. The last group is
            padded
            with its last value.
        layout: Preset name or :class:`NestedLayout`.

    Raises:
        InvalidTensor: If the weight is not a floating-point matrix or holds NaN or infinity.
        SettingsError: If ``group_size`` is not a positive multiple of 8.
    """
    layout = NestedLayout.named(layout)
    _check_weight(weight, group_size)
    rows, columns = int(weight.shape[0]), int(weight.shape[1])
    # Blocks bound the fp32 temporaries of a large embedding to a few tens of megabytes.
    step_rows = max(1, _BLOCK_WEIGHTS // max(1, columns))
    blocks = [slice(start, min(rows, start + step_rows)) for start in range(0, rows, step_rows)] or [slice(0, 0)]
    limits = [_limits(padded_groups(weight[block], group_size)) for block in blocks] if columns else []
    low = torch.cat([low for low, _ in limits]) if limits else weight.new_zeros(rows, 0, dtype=torch.float32)
    high = torch.cat([high for _, high in limits]) if limits else low
    group_min, group_step = _cells(low, high)
    parts = []
    for block in blocks:
        groups = padded_groups(weight[block], group_size)
        codes = cell_codes(groups, group_min[block], group_step[block])
        parts.append(_store(codes, groups, layout, group_min.dtype))
    tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    tensors |= {"group_min": group_min, "group_step": group_step}
    return NestedTensor.from_tensors(tensors, (rows, columns), group_size, layout)


def pack_cells(
    weight: Float[Tensor, "row column"],
    codes: UInt8[Tensor, "row group column"],
    group_min: Float[Tensor, "row group"],
    group_step: Float[Tensor, "row group"],
    layout: NestedLayout | str,
) -> NestedTensor:
    """Put codes that were chosen elsewhere into nested form.

    Args:
        weight: The unquantized weight; levels of 1 and 2 bits are fitted to it.
        codes: 8-bit codes, the last group padded.
        group_min: Lower edge of the first cell of each group, fp16 or fp32.
        group_step: Width of an 8-bit cell of each group, same dtype.
        layout: Preset name or :class:`NestedLayout`.
    """
    layout = NestedLayout.named(layout)
    rows, columns, group_size = int(weight.shape[0]), int(weight.shape[1]), int(codes.shape[-1])
    low_levels = set(LOW_LEVELS) & set(layout.levels)
    groups = padded_groups(weight, group_size) if low_levels else codes
    tensors = _store(codes, groups, layout, group_min.dtype)
    tensors |= {"group_min": group_min, "group_step": group_step}
    return NestedTensor.from_tensors(tensors, (rows, columns), group_size, layout)


def cell_codes(
    groups: Float[Tensor, "*lead column"], group_min: Float[Tensor, "*lead"], group_step: Float[Tensor, "*lead"]
) -> UInt8[Tensor, "*lead column"]:
    """The 8-bit cell of every weight; 0 throughout a group of equal weights (step 0)."""
    step = group_step.float()
    safe = torch.where(step > 0, step, torch.ones_like(step))
    cells = (groups - group_min.float().unsqueeze(-1)).div_(safe.unsqueeze(-1))
    return cells.floor_().clamp_(0, 255).to(torch.uint8)


def fit_low_level(
    codes: UInt8[Tensor, "*lead column"], groups: Float[Tensor, "*lead column"], bits: int, dtype: torch.dtype
) -> tuple[Float[Tensor, "*lead"], Float[Tensor, "*lead"]]:
    """Scale and offset that bring ``offset + (code >> (8 - bits)) * scale`` closest to the weights (least squares)."""
    q = (codes >> (CODE_BITS - bits)).float()
    first = groups[..., 0]
    # Averaging the differences to one value returns the value of a constant group exactly.
    mean_q, mean_w = q.mean(-1), first + (groups - first.unsqueeze(-1)).mean(-1)
    centred = q - mean_q.unsqueeze(-1)
    variance = centred.square().mean(-1)
    covariance = (centred * (groups - mean_w.unsqueeze(-1))).mean(-1)
    scale = torch.where(variance > 0, covariance / variance.clamp_min(1e-30), torch.zeros_like(variance)).to(dtype)
    # The offset is fitted to the scale as it is stored, so that rounding the scale shifts nothing.
    return scale, (mean_w - scale.float() * mean_q).to(dtype)


def _check_weight(weight: Tensor, group_size: int) -> None:
    check_floating(weight, "weight")
    if weight.ndim != 2:
        raise InvalidTensor(
            f"weight has shape {tuple(weight.shape)}; nested quantization needs a matrix (out, in). Reshape it first: "
            f"fused experts (expert, out, in) as weight.flatten(0, 1)."
        )
    try:
        check_group_size(group_size)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    check_finite(weight, "weight")


def padded_groups(weight: Float[Tensor, "row column"], group_size: int) -> Float[Tensor, "row group column"]:
    """(row, column) of any dtype to fp32 (row, group, group_size), the last group filled up with its last value."""
    rows, columns = weight.shape
    values = weight.float()
    missing = n_groups(columns, group_size) * group_size - columns
    if missing:
        values = torch.cat([values, values[:, -1:].expand(rows, missing)], dim=1)
    return values.reshape(rows, n_groups(columns, group_size), group_size)


def _limits(groups: Float[Tensor, "row group column"]) -> tuple[Tensor, Tensor]:
    """Smallest and largest weight of each group; two passes: ``aminmax`` along 64 columns takes five times both."""
    return groups.amin(dim=-1), groups.amax(dim=-1)


def _cells(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Rounded (min, step) of each group such that 256 cells cover it, the outermost ones centred on [low, high]."""
    if not low.numel():
        return low.half(), low.half()
    largest = max(float(low.abs().max()), float(high.abs().max()))
    if 2 * largest >= torch.finfo(torch.float32).max:
        raise InvalidTensor(
            f"weight holds values of magnitude {largest:.3g}, whose differences overflow fp32. "
            f"Scale the weight down first."
        )
    return cell_range(low, high, metadata_dtype(largest, float((high - low).max()) / 255))


def cell_range(low: Tensor, high: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(min, step) of the 256 cells of groups that reach from ``low`` to ``high``, rounded outwards to ``dtype``."""
    half_cell = (high - low) / 510
    group_min = round_down(low - half_cell, dtype)
    return group_min, round_up((high + half_cell - group_min.float()) / 256, dtype)


def _store(codes: Tensor, groups: Tensor, layout: NestedLayout, dtype: torch.dtype) -> dict[str, Tensor]:
    """Planes and low-level fits of one block of rows, by name."""
    planes = split_code(codes, layout.plane_bits)
    stored = {f"plane_{i}": plane for i, plane in enumerate(planes)}
    for level in LOW_LEVELS:
        if level in layout.levels:
            stored[f"refit_{level}_scale"], stored[f"refit_{level}_offset"] = fit_low_level(codes, groups, level, dtype)
    return stored

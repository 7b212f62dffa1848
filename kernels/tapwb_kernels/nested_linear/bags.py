"""nested_linear without a compiler: codes laid out column by column, summed by PyTorch's embedding bags.

An embedding bag adds up table rows of 4-bit or 8-bit codes with fp32 weights, in registers, without a float copy of the
table. Where a table row holds one column of the weight (its codes for all outputs), a bag over the rows of a group *is*
the sum of that group, for all outputs at once::

    bag(rows of g, x)[o] = sum_k x[g, k] * q[o, g, k]

The upper and the lower four bits of a column are two rows: the lower levels read the upper rows only, and a level
between masks a copy of the rows it ends in. A weight of one 8-bit plane (embedding, head) has rows of whole codes.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from tapwb_kernels.layout import CODE_BITS, Refit, check_plane_bits, group_size_of, join_code, split_code
from tapwb_kernels.nested_dequantize.blocked import BLOCK_WEIGHTS

BAG_ROWS = 4
"""Up to here each row of activations has bags of its own; more are multiplied by an unpacked block."""

LEAST_OUT = 192
"""Fewer outputs are not worth a table: rows of 4-bit codes end in four bytes of their own, 4 % of 192 codes."""

_COPY_BYTES = 1 << 20
_WORD = torch.int32
_WORD_BYTES = 4
_HALF = CODE_BITS // 2
_ENDS = {
    _HALF: torch.tensor([1.0, 0.0], dtype=torch.float16).view(torch.uint8),
    CODE_BITS: torch.tensor([1.0, 0.0], dtype=torch.float32).view(torch.uint8),
}
"""What a bag wants at the end of a row, by bits of its codes: the scale 1 and the bias 0."""
_BAGS: dict[int, Any] = {
    _HALF: getattr(torch.ops.quantized, "embedding_bag_4bit_rowwise_offsets", None),
    CODE_BITS: getattr(torch.ops.quantized, "embedding_bag_byte_rowwise_offsets", None),
}


@dataclass(slots=True, eq=False)
class Columns:
    """A weight column by column.

    Attributes:
        table: Codes. Of each group the rows of the upper four bits, then those of the lower (or one row of whole codes
            a column); the last row is ones. A row holds the codes of all outputs, padded to whole words, two a byte if
            they have 4 bits, and then the scale 1 and the bias 0.
        numbers: Minimum and step of each group for every output.
        plane_bits: Width of each plane the weight was and can again be cut into.
    """

    table: UInt8[Tensor, "row byte"]
    numbers: Float[Tensor, "group 2 out"]
    plane_bits: tuple[int, ...]
    _plans: dict[tuple[int, int], "_Plan"] = field(default_factory=dict, repr=False)

    @property
    def entry_bits(self) -> int:
        """Bits of a code in the table, 4 or 8."""
        return _entry_bits(self.plane_bits)

    @property
    def group_size(self) -> int:
        """Columns of a group."""
        rows = (self.table.shape[0] - 1) // max(1, self.numbers.shape[0])
        return rows * self.entry_bits // CODE_BITS

    def rows(self) -> UInt8[Tensor, "group row byte"]:
        """The table by groups, without the row of ones and the ends of rows."""
        groups, end = self.numbers.shape[0], _ENDS[self.entry_bits].numel()
        return self.table[:-1].view(groups, -1, self.table.shape[1])[..., :-end]

    def planes(self) -> tuple[Tensor, ...]:
        """The planes, most significant first, each (out, group, byte); made anew unless it is one of 8 bits."""
        out, rows = self.numbers.shape[2], self.rows()
        if self.entry_bits == CODE_BITS:
            return (rows[..., :out].permute(2, 0, 1),)
        halves = torch.stack([rows & 0xF, rows >> _HALF], dim=-1).flatten(2)[..., :out].permute(2, 0, 1)
        return split_code(halves[..., : self.group_size] << _HALF | halves[..., self.group_size :], self.plane_bits)


def lay_out(
    planes: Sequence[UInt8[Tensor, "out group _"]],
    plane_bits: Sequence[int],
    group_min: Float[Tensor, "out group"],
    group_step: Float[Tensor, "out group"],
) -> Columns:
    """Copy a weight into a table.

    Args:
        planes: Packed planes of the weight, most significant first.
        plane_bits: Width of each plane.
        group_min: Smallest weight of each group.
        group_step: Width of an 8-bit cell of each group.
    """
    out, groups = group_min.shape
    size, bits = group_size_of(planes, plane_bits), _entry_bits(check_plane_bits(plane_bits))
    end, per_byte = _ENDS[bits], CODE_BITS // bits
    width = -(-out // (per_byte * _WORD_BYTES)) * _WORD_BYTES
    table = torch.zeros(groups * size * per_byte + 1, width + end.numel(), dtype=torch.uint8)
    table[:, width:] = end
    table[-1, :width] = 1 if bits == CODE_BITS else 0x11
    columns = Columns(table, torch.stack([group_min.T, group_step.T], dim=1).contiguous(), tuple(plane_bits))
    rows = columns.rows()
    step = max(1, BLOCK_WEIGHTS // max(1, groups * size) // (2 * _WORD_BYTES)) * 2 * _WORD_BYTES
    for start in range(0, out, step):
        codes = join_code([plane[start : start + step] for plane in planes], plane_bits, CODE_BITS).permute(1, 2, 0)
        if bits == CODE_BITS:
            rows[..., start : start + codes.shape[2]] = codes
            continue
        pairs = F.pad(codes, (0, codes.shape[2] % 2)).unflatten(2, (-1, 2))
        place = rows[..., start // 2 : start // 2 + pairs.shape[2]]
        place[:, :size] = pairs[..., 0] >> _HALF | pairs[..., 1] & 0xF0
        place[:, size:] = pairs[..., 0] & 0xF | pairs[..., 1] << _HALF
    return columns


def _entry_bits(plane_bits: Sequence[int]) -> int:
    return CODE_BITS if plane_bits[0] == CODE_BITS else _HALF


def why_not() -> str:
    """Why this PyTorch has no such bags; empty if it has."""
    lacking = [str(bits) for bits, bag in _BAGS.items() if bag is None]
    return f"this PyTorch has no embedding bags of {' and '.join(lacking)} bits" if lacking else ""


def nested_linear(
    x: Float[Tensor, "row in"], columns: Columns, bits: Int[Tensor, "row"] | int, *, refit: Refit | None = None
) -> Float[Tensor, "row out"]:
    """As :func:`tapwb_kernels.nested_linear.reference.nested_linear`, from a table of columns.

    Args:
        x: Activations.
        columns: The weight.
        bits: Level of each row, 1 to 8, or one number.
        refit: Own scale and offset of the 1- and 2-bit levels.

    Raises:
        ValueError: If a level cannot be read.
    """
    if isinstance(bits, int):
        return _one_level(x, columns, bits, refit)
    y = torch.empty(x.shape[0], columns.numbers.shape[2], dtype=x.dtype)
    for level in torch.unique(bits).tolist():
        rows = torch.nonzero(bits == level).squeeze(1)
        y[rows] = _one_level(x[rows], columns, level, refit)
    return y


def _one_level(x: Tensor, columns: Columns, bits: int, refit: Refit | None) -> Tensor:
    groups, _, out = columns.numbers.shape
    n_rows, size = x.shape[0], columns.group_size
    if not n_rows or not groups:
        return x.new_zeros(n_rows, out)
    values = x.float()
    if x.shape[1] != groups * size:
        values = F.pad(values, (0, groups * size - x.shape[1]))
    numbers = None if bits > 2 else _refitted(bits, refit)
    if n_rows > BAG_ROWS or (x.requires_grad and torch.is_grad_enabled()):  # bags have no gradient
        y = _unpacked(values, columns, bits, columns.numbers if numbers is None else numbers)
    else:
        plan = columns._plans.get((bits, n_rows))
        if plan is None:
            plan = columns._plans[bits, n_rows] = _plan(columns, bits, n_rows)
        sums = _sums(values.view(-1, size), columns.table, plan)
        # Views cost as much as small products: none is taken that does nothing.
        sums = sums[:, :out] if sums.shape[1] != out else sums
        if n_rows == 1:
            y = sums.mul_(plan.numbers if numbers is None else numbers.view(-1, out)).sum(0, keepdim=True)
        else:
            by_row = sums.reshape(n_rows, 2 * groups, out)
            y = by_row.mul_(plan.numbers if numbers is None else numbers.view(-1, out)).sum(1)
    return y if y.dtype == x.dtype else y.to(x.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class _Recipe:
    """What a level adds up; the same for every group.

    Attributes:
        direct: How many of a group's rows are taken as they are.
        direct_weights: From the activations of a group to the weights of: the row of ones for the minimum, the direct
            rows, the row of ones for the step.
        mask: Of the bytes of the rows that follow, which are copied; 0 if there are none.
        masked_weights: From the activations of a group to the weights of the masked rows.
    """

    direct: int
    direct_weights: Float[Tensor, "column weight"]
    mask: int
    masked_weights: Float[Tensor, "column weight"]


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _recipe(entry_bits: int, size: int, bits: int) -> _Recipe:
    """Bags of one level. Codes keep their place in the 8-bit code: a level's lower bits are masked, not shifted out."""
    whole, left = divmod(bits, entry_bits)
    worth = [float(1 << (CODE_BITS - entry_bits * (part + 1))) for part in range(CODE_BITS // entry_bits)]
    kept = ((1 << left) - 1) << (entry_bits - left)
    ones, eye = torch.ones(size, 1), torch.eye(size)
    direct = [eye * worth[part] for part in range(whole)]
    return _Recipe(
        direct=whole * size,
        direct_weights=torch.cat([ones, *direct, ones * _middle(bits)], dim=1).contiguous(),
        mask=kept if entry_bits == CODE_BITS else kept | kept << _HALF,
        masked_weights=eye * worth[whole] if left else eye,
    )


def _middle(bits: int) -> float:
    """A cell is read at its middle, half of what is masked above its lower end; refitted levels know it already."""
    return 0.0 if bits <= 2 else 2.0 ** (CODE_BITS - 1 - bits)


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """A masked copy of the rows of neighbouring groups.

    Attributes:
        source: Words of the table, (group, word), the ends of rows among them.
        index: Of the bags over the copy, for all rows of activations.
        offsets: Their starts.
        weights: Which of the masked rows' weights are theirs; ``None`` for all.
        sums: Which of the results of the direct bags they are added to.
    """

    source: Tensor
    index: Tensor
    offsets: Tensor
    weights: slice | None
    sums: slice


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """A recipe made ready for one weight and number of rows: whatever does not depend on the activations."""

    recipe: _Recipe
    entry_bits: int
    numbers: Float[Tensor, "group_and_number out"]
    index: Tensor
    offsets: Tensor
    mask: int
    blocks: tuple[_Block, ...]


@torch.inference_mode(False)
def _plan(columns: Columns, bits: int, n_rows: int) -> _Plan:
    groups, _, out = columns.numbers.shape
    size, entry_bits = columns.group_size, columns.entry_bits
    recipe = _recipe(entry_bits, size, bits)
    per_group = size * CODE_BITS // entry_bits
    index, offsets = _direct_bags(recipe.direct, groups, per_group, n_rows)
    mask = _wordwide(recipe.mask, 8)
    rows = columns.table[:-1].view(groups, per_group, -1)
    step = groups if n_rows > 1 else max(1, _COPY_BYTES // (size * columns.table.shape[1]))
    blocks = []
    for start in range(0, groups if mask else 0, step):
        n = min(step, groups - start)
        source = rows[start : start + n, recipe.direct : recipe.direct + size].flatten(1).view(torch.int64)
        own = None if n == groups else slice(start * size, (start + n) * size)
        place = slice(2 * start + 1, None if n_rows > 1 else 2 * (start + n), 2)
        blocks.append(_Block(source, *_copied_bags(n, size, n_rows), own, place))
    return _Plan(recipe, entry_bits, columns.numbers.view(-1, out), index, offsets, mask, tuple(blocks))


def _sums(values: Tensor, table: Tensor, plan: _Plan) -> Tensor:
    """For every row and group, sums of activations, then of codes times them: shape (row group 2, padded out)."""
    recipe, bag = plan.recipe, _BAGS[plan.entry_bits]
    weights = (values @ recipe.direct_weights).view(-1)
    sums: Tensor = bag(table, plan.index, plan.offsets, False, 0, False, weights)
    if not plan.blocks:
        return sums
    weights = (values @ recipe.masked_weights).view(-1)
    for block in plan.blocks:
        words, ends, copy = _copy(threading.get_ident(), block.source.shape, table.shape[1])
        # One run over all bytes, and the ends of rows mended after: sparing them would take twice as long.
        torch.bitwise_and(block.source, plan.mask, out=words)
        ends[plan.entry_bits].copy_(_ENDS[plan.entry_bits].view(_WORD))
        own = weights if block.weights is None else weights[block.weights]
        sums[block.sums] += bag(copy, block.index, block.offsets, False, 0, False, own)
    return sums


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _copy(thread: int, shape: tuple[int, int], row_bytes: int) -> tuple[Tensor, dict[int, Tensor], Tensor]:
    """Where a thread puts masked rows: as words, as ends of rows by bits of the codes, and as a table."""
    del thread  # two threads must not share one
    words = torch.zeros(shape, dtype=torch.int64)
    table = words.view(-1).view(torch.uint8).view(-1, row_bytes)
    return words, {bits: table[:, -end.numel() :].view(_WORD) for bits, end in _ENDS.items()}, table


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _direct_bags(direct: int, groups: int, per_group: int, n_rows: int) -> tuple[Tensor, Tensor]:
    """Indices and offsets of two bags a group: the row of ones alone, and the group's rows with the row of ones."""
    index = torch.full((groups, direct + 2), groups * per_group)
    index[:, 1 : direct + 1] = torch.arange(direct) + torch.arange(groups).unsqueeze(1) * per_group
    starts = (torch.arange(groups * n_rows) * (direct + 2)).unsqueeze(1) + torch.tensor([0, 1])
    return index.flatten().repeat(n_rows), starts.flatten()


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _copied_bags(groups: int, size: int, n_rows: int) -> tuple[Tensor, Tensor]:
    """Indices and offsets of one bag a group of a copy."""
    return torch.arange(groups * size).repeat(n_rows), torch.arange(groups * n_rows) * size


def _unpacked(values: Tensor, columns: Columns, bits: int, numbers: Tensor) -> Tensor:
    """Many rows: the weight becomes floats, a block of outputs at a time; minima meet the sums of the activations."""
    groups, _, out = columns.numbers.shape
    size, per_byte = columns.group_size, CODE_BITS // columns.entry_bits
    rows = columns.rows().view(_WORD)
    sums = values.view(values.shape[0], groups, size).sum(-1)
    y = torch.empty(values.shape[0], out)
    unit = per_byte * _WORD_BYTES
    step = max(unit, BLOCK_WEIGHTS // (groups * size) // unit * unit)
    for start in range(0, out, step):
        end = min(start + step, out)
        words = rows[:, :, start // unit : -(-end // unit)]
        low, scale = numbers[:, 0, start:end].float(), numbers[:, 1, start:end].float()
        y[:, start:end] = sums @ low.add_(scale, alpha=_middle(bits))
        for lane in range(per_byte):
            codes = _lane_codes(words, lane, per_byte, size, bits).view(torch.uint8)
            lane_scale = scale[:, lane::per_byte].contiguous()  # a strided factor takes seven times as long
            weight = torch.empty(groups, size, lane_scale.shape[1])
            weight.copy_(codes[:, :, : weight.shape[2]]).mul_(lane_scale.unsqueeze(1))
            y[:, start + lane : end : per_byte] += values @ weight.view(groups * size, -1)
    return y


def _lane_codes(words: Tensor, lane: int, per_byte: int, size: int, bits: int) -> Tensor:
    """Codes of every ``per_byte``-th output with the bits below the level masked, in words of a byte a code."""
    keep = 0xFF >> (CODE_BITS - bits) << (CODE_BITS - bits)
    if per_byte == 1:
        return words if bits == CODE_BITS else words & _wordwide(keep)
    high, low = words[:, :size], words[:, size:]
    # What a shift of the whole word drags in from the byte beside always falls outside the mask.
    codes = (high if lane else high << _HALF) & _wordwide(keep & 0xF0)
    return codes if bits <= _HALF else codes.bitwise_or_((low >> _HALF if lane else low) & _wordwide(keep & 0xF))


def _wordwide(byte: int, n_bytes: int = _WORD_BYTES) -> int:
    """A word of one byte repeated, as a signed number."""
    return int.from_bytes(bytes([byte] * n_bytes), "little", signed=True)


def _refitted(bits: int, refit: Refit | None) -> Tensor:
    """Offset and scale of 1 or 2 bits, as minimum and step of codes that keep their place."""
    if not refit or bits not in refit:
        raise ValueError(f"{bits} bits have no refitted scale and offset: quantize with a layout of that level")
    scale, offset = refit[bits]
    return torch.stack([offset.float().T, scale.float().T / (1 << (CODE_BITS - bits))], dim=1)

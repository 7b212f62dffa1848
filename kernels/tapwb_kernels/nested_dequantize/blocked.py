"""nested_dequantize for speed on a CPU: block by block, no short runs.

The obvious unpacking writes runs of 32 bytes (half a group) and spends its time starting loops. Here a block of rows is
unpacked *lane-major*, into (row, lane, group, byte), where runs are as long as a row; planes are read as 64-bit words,
so one shift and one mask handle eight weights; and the block is small enough that no intermediate goes to memory.
Multiplying by (lane-major) activations needs no natural order at all, see :mod:`tapwb_kernels.nested_linear.grouped`.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from tapwb_kernels.layout import Refit, group_size_of, level_affine, planes_for

BLOCK_WEIGHTS = 1 << 20
"""Weights per block: 4 MiB of floats. Smaller blocks pay for starting operations, larger ones for memory traffic."""

_WORDS = ((8, torch.int64), (4, torch.int32), (2, torch.int16), (1, torch.uint8))


def nested_dequantize(
    planes: Sequence[UInt8[Tensor, "row group _"]],
    plane_bits: Sequence[int],
    group_min: Float[Tensor, "row group"],
    group_step: Float[Tensor, "row group"],
    bits: int,
    n_cols: int,
    dtype: torch.dtype = torch.float32,
    *,
    refit: Refit | None = None,
    out: Float[Tensor, "row n_cols"] | None = None,
) -> Float[Tensor, "row n_cols"]:
    """As :func:`tapwb_kernels.nested_dequantize.reference.nested_dequantize`, faster.

    Args:
        planes: Packed planes, most significant first.
        plane_bits: Width of each plane.
        group_min: Smallest weight of each group.
        group_step: Width of an 8-bit cell of each group.
        bits: Level, 1 to 8.
        n_cols: Columns of the weight.
        dtype: Of the result (of ``out``, if that is given).
        refit: Own scale and offset of the 1- and 2-bit levels.
        out: Where to write; a new tensor otherwise.

    Raises:
        ValueError: If the level cannot be read.
    """
    rows, groups = group_min.shape
    size = group_size_of(planes, plane_bits)
    scale, offset = level_affine(group_min, group_step, bits, refit)
    result = torch.empty(rows, n_cols, dtype=dtype, device=group_min.device) if out is None else out
    whole = n_cols == groups * size and result.dtype == torch.float32 and result.is_contiguous()
    for block in row_blocks(rows, groups * size, group_min.device):
        codes = unpack_lanes([plane[block] for plane in planes], plane_bits, bits)
        n = codes.shape[0]
        # Joining the lanes as bytes moves a quarter of what joining them as floats would.
        natural = torch.cat(codes.unbind(1), dim=-1) if codes.shape[1] > 1 else codes[:, 0]
        weight = result[block].view(n, groups, size) if whole else codes.new_empty(n, groups, size, dtype=torch.float32)
        weight.copy_(natural).mul_(scale[block].unsqueeze(-1)).add_(offset[block].unsqueeze(-1))
        if not whole:
            result[block].copy_(weight.view(n, groups * size)[:, :n_cols])
    return result


def row_blocks(rows: int, columns: int, device: torch.device) -> Iterator[slice]:
    """Slices of rows that each hold about ``BLOCK_WEIGHTS`` weights; one slice on a device other than a CPU."""
    step = max(16, BLOCK_WEIGHTS // max(1, columns)) if device.type == "cpu" else max(1, rows)
    n_blocks = max(1, -(-rows // step))
    even = max(1, -(-rows // n_blocks))
    for start in range(0, rows, even):
        yield slice(start, min(rows, start + even))


def unpack_lanes(
    planes: Sequence[UInt8[Tensor, "row group _"]], plane_bits: Sequence[int], bits: int
) -> UInt8[Tensor, "row lane group byte"]:
    """The top ``bits`` bits of every code, lane-major.

    Lanes are those of the widest plane that is read (width ``p``): element ``[row, lane, group, j]`` belongs to column
    ``lane * H + j`` of the group, with ``H = group_size * p / 8``.
    """
    used = planes_for(plane_bits, bits)
    widest = max(plane_bits[:used])
    if bits == widest == 8:
        return planes[0].unsqueeze(1)  # one byte is one code: nothing to unpack
    rows, groups = planes[0].shape[:2]
    lanes, width = 8 // widest, group_size_of(planes, plane_bits) * widest // 8
    codes = torch.empty(rows, lanes, groups, width, dtype=torch.uint8, device=planes[0].device)
    above = 0
    for index in range(used):
        above += plane_bits[index]
        _place_plane(codes, planes[index], plane_bits[index], up=bits - above, accumulate=index > 0)
    return codes


def _place_plane(codes: Tensor, plane: Tensor, plane_bits: int, *, up: int, accumulate: bool) -> None:
    """Put each lane of ``plane`` into ``codes`` at bit position ``up`` (negative: its lowest bits fall off)."""
    wide_lanes, wide_bytes = codes.shape[1], codes.shape[3]
    n_bytes = plane.shape[-1]
    per_wide = wide_bytes // n_bytes  # narrow lanes inside one wide lane
    word_bytes, word = next((size, kind) for size, kind in _WORDS if n_bytes % size == 0)
    kept = ((1 << plane_bits) - 1) << up if up >= 0 else (1 << (plane_bits + up)) - 1
    mask = int.from_bytes(bytes([kept] * word_bytes), "little", signed=word_bytes > 1)
    source, target = plane.contiguous().view(word), codes.view(word)
    for wide in range(wide_lanes):
        place = target[:, wide]
        direct = per_wide == 1 and not accumulate
        lanes = []
        for lane in range(wide * per_wide, (wide + 1) * per_wide):
            shift = up - plane_bits * lane
            shifted = place if direct else torch.empty_like(source)
            # Bits of a neighbouring byte that the word-wide shift drags in always fall outside the mask.
            if shift >= 0:
                torch.bitwise_left_shift(source, shift, out=shifted)
            else:
                torch.bitwise_right_shift(source, -shift, out=shifted)
            shifted &= mask
            lanes.append(shifted)
        if not direct:
            merged = torch.cat(lanes, dim=-1) if per_wide > 1 else lanes[0]
            place.bitwise_or_(merged) if accumulate else place.copy_(merged)

"""The packed format of nested weights: the contract between every kernel and whoever packs for it.

A weight of shape (row, column) is cut along its columns into groups of ``G`` (a multiple of 8; the last group is
padded). Each weight is an 8-bit code, and the code is cut into *planes* of 1, 2, 4 or 8 bits, most significant first.
Reading only the first planes gives the same weight at fewer bits, so one copy serves every level::

    plane_bits (4, 4)          level 4 reads plane 0, level 8 reads planes 0 and 1
    plane_bits (4, 1, 1, 2)    levels 4, 5, 6, 8
    plane_bits (2, 1, 1, 4)    levels 2, 3, 4, 8

Inside a group a p-bit plane takes ``H = G * p / 8`` bytes. Byte ``j`` holds the codes of columns ``j, j + H, j + 2H,
...``, lowest-order bits first. Neighbouring columns thus sit in neighbouring bytes, so that unpacking is one shift and
one mask per *lane* (the columns ``lane * H .. lane * H + H - 1``) over contiguous bytes, and never an interleave.

A level of ``b`` bits reads ``q = code >> (8 - b)`` and reconstructs ``offset + q * scale`` (see :func:`level_affine`).
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

CODE_BITS = 8
PLANE_WIDTHS = (1, 2, 4, 8)

Refit = Mapping[int, tuple[Tensor, Tensor]]
"""For a level of 1 or 2 bits: its own (scale, offset), each of shape (row, group)."""


def check_plane_bits(plane_bits: Sequence[int]) -> tuple[int, ...]:
    """The plane widths, if they make up one 8-bit code.

    Raises:
        ValueError: If a width is not 1, 2, 4 or 8, or the widths do not sum to 8.
    """
    widths = tuple(int(width) for width in plane_bits)
    if any(width not in PLANE_WIDTHS for width in widths) or sum(widths) != CODE_BITS:
        raise ValueError(f"plane widths {list(plane_bits)} do not fit: give widths out of {PLANE_WIDTHS} that sum to 8")
    return widths


def check_group_size(group_size: int) -> int:
    """The group size, if planes of every width fill whole bytes with it.

    Raises:
        ValueError: If it is not a positive multiple of 8.
    """
    if group_size <= 0 or group_size % 8:
        raise ValueError(f"group size {group_size} does not fit: give a positive multiple of 8, for example 64")
    return int(group_size)


def n_groups(n_columns: int, group_size: int) -> int:
    """Groups per row, the padded last one included."""
    return -(-n_columns // group_size)


def group_size_of(planes: Sequence[Tensor], plane_bits: Sequence[int]) -> int:
    """The group size that the shape of the first plane implies."""
    return int(planes[0].shape[-1]) * 8 // int(plane_bits[0])


def planes_for(plane_bits: Sequence[int], bits: int) -> int:
    """How many planes a reader of ``bits`` bits has to touch.

    Raises:
        ValueError: If ``bits`` is outside 1..8.
    """
    if not 1 <= bits <= CODE_BITS:
        raise ValueError(f"{bits} bits cannot be read: a nested weight has levels of 1 to 8 bits")
    seen = 0
    for index, width in enumerate(plane_bits):
        seen += width
        if seen >= bits:
            return index + 1
    raise ValueError(f"planes {list(plane_bits)} hold fewer than {bits} bits")


def pack_plane(codes: UInt8[Tensor, "row group column"], plane_bits: int) -> UInt8[Tensor, "row group byte"]:
    """Pack codes below ``2**plane_bits`` into bytes (module docstring).

    Args:
        codes: One code per weight, last axis one group.
        plane_bits: 1, 2, 4 or 8.
    """
    rows, groups, size = codes.shape
    lanes = codes.reshape(rows, groups, 8 // plane_bits, size * plane_bits // 8)
    packed = lanes[:, :, 0].clone()
    for lane in range(1, 8 // plane_bits):
        packed |= lanes[:, :, lane] << (plane_bits * lane)
    return packed


def unpack_plane(packed: UInt8[Tensor, "row group byte"], plane_bits: int) -> UInt8[Tensor, "row group column"]:
    """Inverse of :func:`pack_plane`."""
    mask = (1 << plane_bits) - 1
    return torch.cat([(packed >> (plane_bits * lane)) & mask for lane in range(8 // plane_bits)], dim=-1)


def split_code(codes: UInt8[Tensor, "row group column"], plane_bits: Sequence[int]) -> tuple[Tensor, ...]:
    """Cut 8-bit codes into packed planes, most significant first."""
    planes, below = [], CODE_BITS
    for width in check_plane_bits(plane_bits):
        below -= width
        planes.append(pack_plane((codes >> below) & ((1 << width) - 1), width))
    return tuple(planes)


def join_code(planes: Sequence[Tensor], plane_bits: Sequence[int], bits: int) -> UInt8[Tensor, "row group column"]:
    """The top ``bits`` bits of every code, reading only the planes that hold them."""
    used = planes_for(plane_bits, bits)
    code = unpack_plane(planes[0], plane_bits[0])
    for plane, width in zip(planes[1:used], plane_bits[1:used], strict=True):
        code = (code << width) | unpack_plane(plane, width)
    return code >> (sum(plane_bits[:used]) - bits)


def level_affine(
    group_min: Float[Tensor, "*group"], group_step: Float[Tensor, "*group"], bits: int, refit: Refit | None = None
) -> tuple[Float[Tensor, "*group"], Float[Tensor, "*group"]]:
    """Scale and offset (fp32) of a level: a weight is ``offset + q * scale`` with ``q = code >> (8 - bits)``.

    From 3 bits on all levels share (min, step): ``min + (q + 1/2) * 2**(8 - bits) * step``, the middle of the cell. At
    1 and 2 bits the middle of so wide a cell is a poor estimate of the weights in it, so those levels carry their own
    pair.

    Raises:
        ValueError: If ``bits`` is 1 or 2 and ``refit`` does not hold that level.
    """
    if bits <= 2:
        if not refit or bits not in refit:
            raise ValueError(f"{bits} bits have no refitted scale and offset: quantize with a layout of that level")
        scale, offset = refit[bits]
        return scale.float(), offset.float()
    scale = group_step.float() * float(1 << (CODE_BITS - bits))
    return scale, group_min.float() + 0.5 * scale

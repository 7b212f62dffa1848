"""nested_pack in Triton: one program cuts or joins the codes of a block of groups; every byte is written once."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from tapwb_kernels.layout import check_group_size, check_plane_bits, group_size_of, planes_for

BLOCK_R = 64
"""Groups per program."""


@triton.jit
def pack_plane_kernel(
    out_ptr, code_ptr, n_groups, GROUP: tl.constexpr, WIDTH: tl.constexpr, BELOW: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_J: tl.constexpr,
):  # fmt: skip
    """Bits ``BELOW .. BELOW + WIDTH`` of every code of a block of groups, packed lane by lane."""
    H: tl.constexpr = GROUP * WIDTH // 8
    row = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    j = tl.arange(0, BLOCK_J)
    mask = (row < n_groups)[:, None] & (j < H)[None, :]
    byte = tl.zeros([BLOCK_R, BLOCK_J], tl.int32)
    for lane in tl.static_range(8 // WIDTH):
        code = tl.load(code_ptr + row[:, None] * GROUP + (lane * H + j)[None, :], mask=mask, other=0).to(tl.int32)
        byte |= ((code >> BELOW) & ((1 << WIDTH) - 1)) << (WIDTH * lane)
    tl.store(out_ptr + row[:, None] * H + j[None, :], byte.to(tl.uint8), mask=mask)


@triton.jit
def unpack_plane_kernel(
    code_ptr, plane_ptr, n_groups, GROUP: tl.constexpr, WIDTH: tl.constexpr, DROP: tl.constexpr, IS_FIRST: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """Appends the bits of a plane, less its ``DROP`` lowest, to the codes of a block of groups."""
    H: tl.constexpr = GROUP * WIDTH // 8
    row = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    j = tl.arange(0, BLOCK_J)
    mask = (row < n_groups)[:, None] & (j < H)[None, :]
    byte = tl.load(plane_ptr + row[:, None] * H + j[None, :], mask=mask, other=0).to(tl.int32)
    for lane in tl.static_range(8 // WIDTH):
        place = code_ptr + row[:, None] * GROUP + (lane * H + j)[None, :]
        code = ((byte >> (WIDTH * lane)) & ((1 << WIDTH) - 1)) >> DROP
        if not IS_FIRST:
            code |= tl.load(place, mask=mask, other=0).to(tl.int32) << (WIDTH - DROP)
        tl.store(place, code.to(tl.uint8), mask=mask)


def pack(codes: Tensor, plane_bits: Sequence[int]) -> tuple[Tensor, ...]:
    """As the reference beside this file.

    Args:
        codes: One code per weight, uint8, shape (row, group, column).
        plane_bits: Width of each plane.

    Raises:
        ValueError: If the widths do not make up a code, or a group does not fill whole bytes with them.
    """
    widths = check_plane_bits(plane_bits)
    rows, groups, size = codes.shape
    check_group_size(size)
    codes = codes.contiguous()
    planes, below = [], 8
    for width in widths:
        below -= width
        plane = torch.empty(rows, groups, size * width // 8, dtype=torch.uint8, device=codes.device)
        if plane.numel():
            pack_plane_kernel[(triton.cdiv(rows * groups, BLOCK_R),)](
                plane,
                codes,
                rows * groups,
                GROUP=size,
                WIDTH=width,
                BELOW=below,
                BLOCK_R=BLOCK_R,
                BLOCK_J=triton.next_power_of_2(size * width // 8),
            )
        planes.append(plane)
    return tuple(planes)


def unpack(planes: Sequence[Tensor], plane_bits: Sequence[int], bits: int) -> Tensor:
    """As the reference beside this file; planes must be contiguous.

    Args:
        planes: Packed planes, most significant first.
        plane_bits: Width of each plane.
        bits: Level, 1 to 8.

    Raises:
        ValueError: If the level is outside 1..8.
    """
    used = planes_for(plane_bits, bits)
    rows, groups = planes[0].shape[:2]
    size = group_size_of(planes, plane_bits)
    codes = torch.empty(rows, groups, size, dtype=torch.uint8, device=planes[0].device)
    above = 0
    for index, width in enumerate(plane_bits[:used]):
        above += width
        if codes.numel():
            unpack_plane_kernel[(triton.cdiv(rows * groups, BLOCK_R),)](
                codes,
                planes[index].contiguous(),
                rows * groups,
                GROUP=size,
                WIDTH=width,
                DROP=max(0, above - bits),
                IS_FIRST=index == 0,
                BLOCK_R=BLOCK_R,
                BLOCK_J=triton.next_power_of_2(size * width // 8),
            )
    return codes

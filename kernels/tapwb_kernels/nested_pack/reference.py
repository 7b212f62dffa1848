"""nested_pack, the specification: 8-bit codes cut into packed planes, and the top bits of them read back."""

from collections.abc import Sequence

from jaxtyping import UInt8
from torch import Tensor

from tapwb_kernels.layout import join_code, split_code


def pack(codes: UInt8[Tensor, "row group column"], plane_bits: Sequence[int]) -> tuple[Tensor, ...]:
    """Packed planes of 8-bit codes, most significant first; plane ``p`` has shape (row, group, column * p / 8).

    Args:
        codes: One code per weight; a group has a multiple of 8 columns.
        plane_bits: Width of each plane.

    Raises:
        ValueError: If the widths do not make up a code.
    """
    return split_code(codes, plane_bits)


def unpack(
    planes: Sequence[UInt8[Tensor, "row group _"]], plane_bits: Sequence[int], bits: int
) -> UInt8[Tensor, "row group column"]:
    """The top ``bits`` bits of every code; planes below the level may be missing.

    Args:
        planes: Packed planes, most significant first.
        plane_bits: Width of each plane.
        bits: Level, 1 to 8.

    Raises:
        ValueError: If the level is outside 1..8.
    """
    return join_code(planes, plane_bits, bits)

"""Codes to bytes, bit-exact, and the only door of this package to the kernels' packed format.

Two packings live side by side because they serve different readers. ``pack_codes`` is a plain bit stream for any width
from 1 to 8: nothing is wasted, and nobody computes on it. The nested planes (:mod:`tapwb_kernels.layout`) are cut so
that a kernel unpacks them with one shift and one mask.
"""

import torch
from jaxtyping import UInt8
from torch import Tensor

from tapwb.core.errors import InvalidTensor, UnsupportedBits
from tapwb_kernels.layout import (
    CODE_BITS,
    check_group_size,
    check_plane_bits,
    group_size_of,
    join_code,
    level_affine,
    n_groups,
    planes_for,
    split_code,
)
from tapwb_kernels.nested_dequantize.blocked import nested_dequantize

__all__ = [
    "CODE_BITS",
    "check_group_size",
    "check_plane_bits",
    "group_size_of",
    "join_code",
    "level_affine",
    "n_groups",
    "planes_for",
    "split_code",
    "nested_dequantize",
    "pack_codes",
    "unpack_codes",
    "packed_bytes",
]


def packed_bytes(n_codes: int, bits: int) -> int:
    """Bytes that ``n_codes`` codes of ``bits`` bits take."""
    return -(-n_codes * _check_bits(bits) // 8)


def pack_codes(codes: UInt8[Tensor, "..."], bits: int) -> UInt8[Tensor, " byte"]:
    """Write codes as one bit stream: the first code in the lowest bits of the first byte, no gaps.

    Args:
        codes: Values below ``2**bits``, any shape, read in row-major order.
        bits: Width of a code, 1 to 8.

    Raises:
        UnsupportedBits: If ``bits`` is outside 1..8.
        InvalidTensor: If a code does not fit into ``bits`` bits.
    """
    _check_bits(bits)
    flat = codes.reshape(-1)
    if flat.numel() and int(flat.max()) >> bits:
        raise InvalidTensor(
            f"code {int(flat.max())} does not fit into {bits} bits (at most {(1 << bits) - 1}). Pack it with more bits."
        )
    eights = torch.nn.functional.pad(flat, (0, -flat.numel() % 8)).view(-1, 8)
    packed = torch.zeros(eights.shape[0], bits, dtype=torch.uint8, device=codes.device)
    for index in range(8):
        byte, shift = divmod(index * bits, 8)
        packed[:, byte] |= eights[:, index] << shift
        if shift + bits > 8:  # the code straddles two bytes
            packed[:, byte + 1] |= eights[:, index] >> (8 - shift)
    return packed.view(-1)[: packed_bytes(flat.numel(), bits)].clone()


def unpack_codes(packed: UInt8[Tensor, " byte"], bits: int, n_codes: int) -> UInt8[Tensor, " code"]:
    """Read ``n_codes`` codes back from :func:`pack_codes`.

    Raises:
        UnsupportedBits: If ``bits`` is outside 1..8.
        InvalidTensor: If the stream is too short for ``n_codes`` codes.
    """
    need = packed_bytes(n_codes, bits)
    if packed.numel() < need:
        raise InvalidTensor(
            f"{packed.numel()} bytes hold fewer than {n_codes} codes of {bits} bits ({need} bytes). "
            f"The file was cut short; make it again."
        )
    stream = torch.nn.functional.pad(packed[:need], (0, -need % bits)).view(-1, bits)
    codes = torch.empty(stream.shape[0], 8, dtype=torch.uint8, device=packed.device)
    for index in range(8):
        byte, shift = divmod(index * bits, 8)
        code = stream[:, byte] >> shift
        if shift + bits > 8:
            code = code | (stream[:, byte + 1] << (8 - shift))
        codes[:, index] = code & ((1 << bits) - 1)
    return codes.view(-1)[:n_codes].clone()


def _check_bits(bits: int) -> int:
    if not 1 <= bits <= 8:
        raise UnsupportedBits(f"{bits} bits cannot be packed: give 1 to 8. Keep wider values as they are.")
    return bits

"""Four 4-bit codes to four 16-bit floats in a few instructions, as text for the assembler of NVIDIA cards.

A compiler unpacks one code at a time: take the byte, shift, mask, convert. Here ``prmt`` spreads the four bytes of a
register over the 16-bit halves of two, ``lop3`` keeps four bits of each and writes them beside a constant (128 in bf16,
1024 in fp16), and one ``fma`` a pair takes the constant away again. All steps are exact.
"""

from typing import Literal

Kind = Literal["bf16", "f16"]

CONSTANTS: dict[Kind, tuple[int, int, int]] = {"bf16": (0x4300, 0x3F80, 0xC300), "f16": (0x6400, 0x3C00, 0xE400)}
"""Bits of the constant (128 or 1024), of 1, and of the constant's negative."""


def nibble_asm(lane: int, kind: Kind) -> str:
    """Instructions from four packed bytes (``$2``) to two registers of two floats each (``$0``, ``$1``).

    Args:
        lane: 0 for the low four bits of each byte, 1 for the high four.
        kind: Which floats.
    """
    constant, one, negative = (f"{value << 16 | value:#010x}" for value in CONSTANTS[kind])
    lines = [
        f"shr.b32 t, $2, {4 * lane};",
        "prmt.b32 a, t, 0, 0x4140;",
        "prmt.b32 b, t, 0, 0x4342;",
        f"lop3.b32 a, a, 0x000f000f, {constant}, 0xea;",  # the truth table of (a & b) | c
        f"lop3.b32 b, b, 0x000f000f, {constant}, 0xea;",
        f"mov.b32 one, {one};",
        f"mov.b32 less, {negative};",
        f"fma.rn.{kind}x2 $0, a, one, less;",
        f"fma.rn.{kind}x2 $1, b, one, less;",
    ]
    return "\n".join(["{", ".reg .b32 t, a, b, one, less;", *lines, "}"])

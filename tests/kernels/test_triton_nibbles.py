"""The hand-written unpacking of four codes at once, instruction by instruction, without a card."""

import re

import pytest
import torch

from tapwb_kernels.nested_linear.nibbles import nibble_asm

FLOATS = {"bf16": torch.bfloat16, "f16": torch.float16}


def as_pair(register, dtype):
    """The two floats of a register."""
    halves = torch.tensor([register & 0xFFFF, register >> 16], dtype=torch.int32).to(torch.uint16)
    return halves.view(dtype).float()


def as_register(pair, dtype):
    """Two floats as a register; they must be exact in their dtype."""
    narrow = pair.to(dtype)
    assert torch.equal(narrow.float(), pair)
    low, high = narrow.view(torch.uint16).to(torch.int64).tolist()
    return low | high << 16


def permuted(a, b, selector):
    """Four bytes out of the eight of two registers, as PTX defines prmt without a mode."""
    source = [(a >> 8 * i) & 255 for i in range(4)] + [(b >> 8 * i) & 255 for i in range(4)]
    return sum(source[(selector >> 4 * i) & 7] << 8 * i for i in range(4))


def looked_up(a, b, c, table):
    """Three registers bit by bit through a truth table, as PTX defines lop3."""
    return sum(((table >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1))) & 1) << i for i in range(32))


def run(text, word, dtype):
    """Both results of the instructions for four packed bytes."""
    held = {"$2": word}

    def value(name):
        return held[name] if name in held else int(name, 0)

    for line in text.splitlines():
        if line in ("{", "}") or line.startswith(".reg"):
            continue
        name, rest = line.rstrip(";").split(" ", 1)
        target, *words = [part.strip() for part in rest.split(",")]
        inputs = [value(part) for part in words]
        if name == "shr.b32":
            held[target] = inputs[0] >> inputs[1]
        elif name == "mov.b32":
            held[target] = inputs[0]
        elif name == "prmt.b32":
            held[target] = permuted(*inputs)
        elif name == "lop3.b32":
            held[target] = looked_up(*inputs)
        elif re.fullmatch(r"fma\.rn\.b?f16x2", name):
            a, b, c = (as_pair(register, dtype) for register in inputs)
            held[target] = as_register(a * b + c, dtype)
        else:
            raise AssertionError(f"an instruction this test does not know: {line}")
    return torch.cat([as_pair(held["$0"], dtype), as_pair(held["$1"], dtype)])


@pytest.mark.parametrize("kind", FLOATS)
@pytest.mark.parametrize("lane", [0, 1])
def test_every_byte_in_every_place_gives_its_code(kind, lane):
    """All 256 bytes, each beside others, exactly and in order."""
    text = nibble_asm(lane, kind)
    for first in range(256):
        some = [first, (first * 7 + 3) % 256, 255 - first, (first * 31 + 17) % 256]
        word = sum(byte << 8 * i for i, byte in enumerate(some))
        expected = torch.tensor([float((byte >> 4 * lane) & 15) for byte in some])
        assert torch.equal(run(text, word, FLOATS[kind]), expected)


def test_a_wrong_constant_would_be_seen():
    """The emulation is not blind: with another mask or table the codes come out wrong."""
    text = nibble_asm(0, "bf16")
    right = run(text, 0x5A3C7E9F, torch.bfloat16)
    for part, other in (("0x4140", "0x4041"), ("0x000f000f", "0x0007000f"), ("0xea", "0xaa")):
        assert not torch.equal(run(text.replace(part, other), 0x5A3C7E9F, torch.bfloat16), right)

"""Codes of cached keys and values: rotated, 8 bits with one scale per token and head, shortened by a right shift.

A Hadamard rotation of a head spreads its outlier channels over all channels (QuaRot, Ashkboos et al. 2024,
arXiv:2404.00456), so that one scale per token is enough. Codes are mid-rise cells of [-scale, scale]: the top ``b``
bits of an 8-bit code are the ``b``-bit code of the same number, so fewer bits never need a second quantization
(PM-KVQ's equivalent right shift). Levels may differ from token to token.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from tapwb.core.errors import UnsupportedBits
from tapwb.quant.packing import pack_codes, unpack_codes

#: Bits a cached token may have.
KV_LEVELS = (2, 3, 4, 8)
#: Scales are powers of two in sixteenths below the largest one of a page: 4.4 % apart, down to 2 ** -16 of it.
_STEPS_PER_OCTAVE = 16


@lru_cache(maxsize=32)
def rotation(channels: int, device: torch.device | str = "cpu") -> Tensor:
    """A symmetric orthogonal matrix: its own inverse.

    Args:
        channels: Size of a head. One that is no power of two gets blocks of the largest power of two that divides it.
        device: Where it is needed.

    Returns:
        Shape (channel, channel), fp32.
    """
    block = torch.ones(1, 1, device=device)
    while channels % (2 * len(block)) == 0:
        block = torch.cat([torch.cat([block, block], 1), torch.cat([block, -block], 1)]) / math.sqrt(2)
    return torch.block_diag(*[block] * (channels // len(block)))


def encode(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """8-bit codes with one scale per token and head.

    Args:
        x: Rotated numbers of one page, shape (batch, head, token, channel), fp32.

    Returns:
        Codes (as ``x``), scale codes of shape (batch, head, token), and the largest scale of each head as bf16, shape
        (batch, head, 1).
    """
    largest = x.abs().amax(-1)
    # Rounded up: no number lies outside its cells. bf16 keeps 8 bits, and the smallest keeps zeros finite.
    top = (largest.amax(-1, keepdim=True) * (1 + 2**-7)).clamp(min=2.0**-100).to(torch.bfloat16)
    octaves = torch.log2(top.float() / largest.clamp(min=2.0**-120))
    scale_codes = (octaves * _STEPS_PER_OCTAVE).floor().clamp(0, 255).to(torch.uint8)
    scale = decode_scale(scale_codes, top)
    codes = ((x / scale + 1) * 128).floor().clamp(0, 255).to(torch.uint8)
    return codes, scale_codes, top


def decode_scale(scale_codes: Tensor, top: Tensor) -> Tensor:
    """Half the range of each token, shape (batch, head, token, 1).

    Args:
        scale_codes: From :func:`encode`.
        top: Likewise.
    """
    return (top.float() * torch.exp2(scale_codes.float() / -_STEPS_PER_OCTAVE)).unsqueeze(-1)


class TokenCodes:
    """Packed codes whose tokens have their own number of bits.

    A token is a row of whole bytes, so that the codes of several pages are read at once by joining their bytes.

    Args:
        codes: 8-bit codes, shape (batch, head, token, channel).
        bits: Bits of each token, shape (token,), each one of ``KV_LEVELS``.

    Raises:
        UnsupportedBits: If a level is not stored.
    """

    def __init__(self, codes: Tensor, bits: Tensor) -> None:
        self.shape = codes.shape
        self._pack(codes, bits)

    @property
    def bits(self) -> Tensor:
        """Bits of each token, shape (token,), on the CPU."""
        return torch.tensor(KV_LEVELS)[unpack_codes(self._index, 2, self.shape[2]).long().cpu()]

    def codes(self) -> tuple[Tensor, Tensor]:
        """Codes with their dropped bits as zeros, and the middle of the cell that is left; see :func:`join_codes`."""
        return join_codes([self])

    def downgrade(self, bits: Tensor) -> None:
        """Drop low bits; tokens never gain bits back.

        Args:
            bits: Wanted bits of each token, shape (token,).

        Raises:
            UnsupportedBits: If a level is not stored.
        """
        wanted = torch.minimum(self.bits, bits.to(torch.long).cpu())
        if not torch.equal(wanted, self.bits):
            self._pack(self.codes()[0], wanted)

    def select_batch(self, indices: Tensor) -> None:
        """Keep these batch rows, in this order."""
        codes, bits = self.codes()[0][indices], self.bits
        self.shape = codes.shape
        self._pack(codes, bits)

    def nbytes(self) -> int:
        """Bytes of the codes and of the list of levels."""
        return self._index.nbytes + sum(packed.nbytes for packed in self._packed.values())

    def _pack(self, codes: Tensor, bits: Tensor) -> None:
        wrong = sorted(set(bits.tolist()) - set(KV_LEVELS))
        if wrong:
            known = ", ".join(map(str, KV_LEVELS))
            raise UnsupportedBits(f"a cached token cannot have {wrong[0]} bits. Use one of {known}.")
        bits = bits.to(codes.device)
        rows = codes.permute(2, 0, 1, 3).flatten(1)
        rows = torch.nn.functional.pad(rows, (0, -rows.shape[1] % 8))
        self._packed = {
            level: pack_codes(rows[bits == level] >> (8 - level), level) for level in sorted(set(bits.tolist()))
        }
        index = torch.bucketize(bits, torch.tensor(KV_LEVELS, device=bits.device))
        self._index = pack_codes(index.to(torch.uint8), 2)


def join_codes(parts: Sequence[TokenCodes]) -> tuple[Tensor, Tensor]:
    """Codes of several pages of one layer, one page after the other.

    Args:
        parts: Of the same batch, heads, channels and number of tokens.

    Returns:
        Codes of shape (batch, head, token, channel) with their dropped bits as zeros, and half of the cell that is
        left, shape (token, 1); both in 256ths of a range.
    """
    batch, head, n_tokens, channel = parts[0].shape
    n_codes = batch * head * channel
    width = n_codes + -n_codes % 8
    index = unpack_codes(torch.cat([p._index for p in parts]), 2, len(parts) * (n_tokens + -n_tokens % 4))
    index = index.view(len(parts), -1)[:, :n_tokens].flatten().long()
    rows = torch.empty(len(index), width, dtype=torch.uint8, device=index.device)
    for place, level in enumerate(KV_LEVELS):
        packed = [p._packed[level] for p in parts if level in p._packed]
        if packed:
            tokens = torch.where(index == place)[0]
            stream = torch.cat(packed)  # 8 bits are bytes as they are
            codes = stream if level == 8 else unpack_codes(stream, level, len(tokens) * width) << (8 - level)
            rows[tokens] = codes.view(len(tokens), width)
    half = torch.tensor([2.0 ** (7 - level) for level in KV_LEVELS], device=index.device)[index]
    return rows[:, :n_codes].view(-1, batch, head, channel).permute(1, 2, 0, 3), half.unsqueeze(-1)

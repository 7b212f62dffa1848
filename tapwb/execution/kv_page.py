"""One sealed page of the key/value cache: 64 tokens, each at its own bits.

Keys are scaled per channel over the page, because their outliers sit in channels; values per token (KIVI, Liu et al.
2024, section 3). Both are first written as 8-bit mid-rise codes, and a token is brought to ``b`` bits by keeping the
top ``b`` bits of its codes, so that a later downgrade is a right shift and never a second quantization (PM-KVQ).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tapwb.core.errors import UnsupportedBits
from tapwb.quant.packing import pack_codes, unpack_codes

#: Bits a cached token may have.
KV_LEVELS = (2, 3, 4, 8)


@dataclass(slots=True)
class _Packed:
    """Codes of the tokens of one level: packed bits, and which tokens of the page they are."""

    bits: int
    tokens: Tensor
    keys: Tensor
    values: Tensor


class KvPage:
    """A page of sealed tokens.

    Args:
        keys: Shape (batch, head, token, channel).
        values: Shape (batch, head, token, channel).
        bits: Bits of each token, shape (token,), each one of ``KV_LEVELS``.
    """

    def __init__(self, keys: Tensor, values: Tensor, bits: Tensor) -> None:
        self.shape = keys.shape
        self.value_channels = values.shape[-1]
        self.dtype = keys.dtype
        self._key_min, self._key_step, key_codes = _encode(keys, dim=2)
        self._value_min, self._value_step, value_codes = _encode(values, dim=3)
        self._packed = _pack(key_codes, value_codes, bits)

    @property
    def bits(self) -> Tensor:
        """Bits of each token, shape (token,)."""
        out = torch.zeros(self.shape[2], dtype=torch.long)
        for part in self._packed:
            out[part.tokens.long().cpu()] = part.bits  # as uint8 they would be taken for a mask
        return out

    def downgrade(self, bits: Tensor) -> None:
        """Bring tokens to fewer bits by dropping the low bits of their codes; tokens never gain bits back.

        Args:
            bits: Wanted bits of each token, shape (token,).
        """
        wanted = torch.minimum(self.bits, bits.to(torch.long).cpu())
        if not torch.equal(wanted, self.bits):
            self._packed = _pack(*self._codes(), wanted)

    def dequantize(self) -> tuple[Tensor, Tensor]:
        """Keys and values, shapes (batch, head, token, channel), in the dtype they came in."""
        key_codes, value_codes = self._codes()
        # Middle of the cell that the kept bits leave: a token at b bits has codes whose low 8 - b bits are gone.
        half = (2.0 ** (8 - self.bits.float()) / 2).to(key_codes.device)[None, None, :, None]
        keys = self._key_min.float() + (key_codes + half) * self._key_step.float()
        values = self._value_min.float() + (value_codes + half) * self._value_step.float()
        return keys.to(self.dtype), values.to(self.dtype)

    def nbytes(self) -> int:
        """Bytes of codes, scales and token lists."""
        parts = [self._key_min, self._key_step, self._value_min, self._value_step]
        for packed in self._packed:
            parts += [packed.tokens, packed.keys, packed.values]
        return sum(t.nbytes for t in parts)

    def select_batch(self, indices: Tensor) -> None:
        """Keep these batch rows, in this order (beam search)."""
        key_codes, value_codes = self._codes()
        bits = self.bits
        self._key_min, self._key_step = self._key_min[indices], self._key_step[indices]
        self._value_min, self._value_step = self._value_min[indices], self._value_step[indices]
        self._packed = _pack(key_codes[indices], value_codes[indices], bits)
        self.shape = torch.Size((len(indices), *self.shape[1:]))

    def _codes(self) -> tuple[Tensor, Tensor]:
        batch, head, _, channel = self.shape
        keys = torch.zeros(self.shape, dtype=torch.uint8, device=self._key_min.device)
        values = torch.zeros((*self.shape[:3], self.value_channels), dtype=torch.uint8, device=keys.device)
        for part in self._packed:
            n = len(part.tokens)
            shift = 8 - part.bits
            k = unpack_codes(part.keys, part.bits, batch * head * n * channel).view(batch, head, n, channel)
            v = unpack_codes(part.values, part.bits, batch * head * n * self.value_channels)
            keys[:, :, part.tokens.long()] = k << shift
            values[:, :, part.tokens.long()] = v.view(batch, head, n, self.value_channels) << shift
        return keys, values


def _encode(x: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mid-rise 8-bit codes with fp16 minimum and step shared along ``dim``."""
    x = x.float()
    low = x.amin(dim, keepdim=True).to(torch.float16)
    span = x.amax(dim, keepdim=True) - low.float()
    # The smallest fp16 keeps constant channels finite; their codes are all 0 and decode to within half a step.
    step = (span / 256).clamp(min=6.0e-8).to(torch.float16)
    codes = ((x - low.float()) / step.float()).floor().clamp(0, 255).to(torch.uint8)
    return low, step, codes


def _pack(key_codes: Tensor, value_codes: Tensor, bits: Tensor) -> list[_Packed]:
    wrong = sorted(set(bits.tolist()) - set(KV_LEVELS))
    if wrong:
        raise UnsupportedBits(
            f"a cached token cannot have {wrong[0]} bits. Use one of {', '.join(map(str, KV_LEVELS))}."
        )
    parts = []
    for level in sorted(set(bits.tolist())):
        tokens = torch.where(bits == level)[0].to(key_codes.device)
        keys = pack_codes((key_codes[:, :, tokens] >> (8 - level)).flatten(), level)
        values = pack_codes((value_codes[:, :, tokens] >> (8 - level)).flatten(), level)
        parts.append(_Packed(level, tokens.to(torch.uint8), keys, values))
    return parts

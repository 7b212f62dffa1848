"""One sealed page of the key/value cache: up to 64 tokens, each at its own bits.

Keys are centred per channel over the page, because their outliers sit in channels whose mean hardly moves; what is
left, and the values as they are, are rotated and coded with one scale per token and head
(:mod:`tapwb.execution.kv_codes`). The rotation is its own inverse and keeps scalar products, so attention may stay in
rotated coordinates: rotate the queries once, and the result back once. Differs from KIVI (Liu et al. 2024, section 3),
whose keys have a minimum and a step per channel: at equal bits the rotated form loses several times less of SmolLM2's
attention output.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tapwb.execution.kv_codes import KV_LEVELS, TokenCodes, decode_scale, encode, join_codes, rotation

__all__ = ["KV_LEVELS", "KvPage", "dequantize", "read_rotated"]


class KvPage:
    """A page of sealed tokens.

    Args:
        keys: Shape (batch, head, token, channel).
        values: Shape (batch, head, token, channel).
        bits: Bits of each token's key, shape (token,), each one of ``KV_LEVELS``.
        value_bits: Bits of each token's value; those of the key by default.

    Raises:
        UnsupportedBits: If a level is not stored.
    """

    def __init__(self, keys: Tensor, values: Tensor, bits: Tensor, value_bits: Tensor | None = None) -> None:
        self.shape = keys.shape
        self.dtype = keys.dtype
        rotated = keys.float() @ rotation(keys.shape[-1], keys.device)
        centre = rotated.mean(2)
        self._centre_step = (centre.abs().amax(-1, keepdim=True) / 127).clamp(min=2.0**-100).to(torch.bfloat16)
        self._centre = (centre / self._centre_step.float()).round().clamp(-127, 127).to(torch.int8)
        codes, self._key_scale, self._key_top = encode(rotated - self._centres())
        self._keys = TokenCodes(codes, bits)
        codes, self._value_scale, self._value_top = encode(values.float() @ rotation(values.shape[-1], keys.device))
        self._values = TokenCodes(codes, bits if value_bits is None else value_bits)

    @property
    def bits(self) -> Tensor:
        """Bits of each token's key, shape (token,)."""
        return self._keys.bits

    @property
    def value_bits(self) -> Tensor:
        """Bits of each token's value, shape (token,)."""
        return self._values.bits

    def downgrade(self, bits: Tensor, value_bits: Tensor | None = None) -> None:
        """Bring tokens to fewer bits by dropping the low bits of their codes; tokens never gain bits back.

        Args:
            bits: Wanted bits of each token's key, shape (token,).
            value_bits: Likewise of its value; those of the key by default.

        Raises:
            UnsupportedBits: If a level is not stored.
        """
        self._keys.downgrade(bits)
        self._values.downgrade(bits if value_bits is None else value_bits)

    def dequantize(self) -> tuple[Tensor, Tensor]:
        """Keys and values, shapes (batch, head, token, channel), in the dtype they came in."""
        return dequantize([self])

    def nbytes(self) -> int:
        """Bytes of codes, scales, centres and lists of levels."""
        scales = (self._centre, self._centre_step, self._key_scale, self._key_top, self._value_scale, self._value_top)
        return self._keys.nbytes() + self._values.nbytes() + sum(t.nbytes for t in scales)

    def select_batch(self, indices: Tensor) -> None:
        """Keep these batch rows, in this order (beam search)."""
        self._keys.select_batch(indices)
        self._values.select_batch(indices)
        self._centre, self._centre_step = self._centre[indices], self._centre_step[indices]
        self._key_scale, self._key_top = self._key_scale[indices], self._key_top[indices]
        self._value_scale, self._value_top = self._value_scale[indices], self._value_top[indices]
        self.shape = self._keys.shape

    def _centres(self) -> Tensor:
        return (self._centre.float() * self._centre_step.float()).unsqueeze(2)


def read_rotated(pages: Sequence[KvPage]) -> tuple[Tensor, Tensor]:
    """Keys and values of some pages of one layer, in rotated coordinates.

    Args:
        pages: Full pages, or a single one.

    Returns:
        Shapes (batch, head, token, channel), fp32, one page after the other.
    """
    n = pages[0].shape[2]
    codes, half = join_codes([page._keys for page in pages])
    scale = _join_scales([page._key_scale for page in pages], [page._key_top for page in pages])
    keys = (codes + (half - 128)) * (scale / 128)
    centre = torch.stack([page._centre for page in pages], 2).float()
    centre *= torch.stack([page._centre_step for page in pages], 2).float()
    keys = (keys.unflatten(2, (-1, n)) + centre.unsqueeze(3)).flatten(2, 3)
    codes, half = join_codes([page._values for page in pages])
    scale = _join_scales([page._value_scale for page in pages], [page._value_top for page in pages])
    return keys, (codes + (half - 128)) * (scale / 128)


def dequantize(pages: Sequence[KvPage]) -> tuple[Tensor, Tensor]:
    """Keys and values of some pages of one layer, as :func:`read_rotated` but turned back and in their own dtype."""
    keys, values = read_rotated(pages)
    keys, values = keys @ rotation(keys.shape[-1], keys.device), values @ rotation(values.shape[-1], keys.device)
    return keys.to(pages[0].dtype), values.to(pages[0].dtype)


def _join_scales(codes: list[Tensor], tops: list[Tensor]) -> Tensor:
    return decode_scale(torch.stack(codes, 2), torch.stack(tops, 2)).flatten(2, 3)

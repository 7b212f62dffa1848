"""Nested pages of keys and values: the contract between the writer of a cache and the kernel that reads it.

A page holds up to 64 tokens of one layer. Keys and values are 8-bit mid-rise codes of rotated numbers: token ``t`` of a
head stands for ``scale[t] * (code + 1/2 - 128) / 128`` per channel, and of its code a token may keep only the top 2, 3
or 4 bits. The code is therefore cut into planes of 2 + 1 + 1 + 4 bits along the channels (as
:mod:`tapwb_kernels.layout` cuts a group), and each plane has a *pool* of rows, one row a token. A token names its row
in every plane it keeps; freeing a plane of a token frees that row, without moving anything.

Keys have their page's mean per channel taken off before coding (``centre``, 8-bit codes with a step per head). Scales
are 8-bit codes too: ``top * 2**(-code / 16)``, with one ``top`` for each page and head.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import BFloat16, Int, Int8, Int32, UInt8
from torch import Tensor

from tapwb_kernels.layout import join_code, split_code

KV_PLANES = (2, 1, 1, 4)
KV_LEVELS = (2, 3, 4, 8)
PAGE_TOKENS = 64
SCALE_STEPS = 16
"""Steps of a scale code per halving."""


@dataclass(frozen=True, slots=True, eq=False)
class PageCodes:
    """Codes of all pages of a layer, keys or values.

    Attributes:
        planes: One pool for each of ``KV_PLANES``, shape (slot, head, channel * width / 8).
        slots: Row of each token in each pool, shape (page, plane, token); -1 where it keeps no such plane, and in all
            planes where the page has no such token.
        scale: Scale codes, shape (page, head, token).
        top: Largest scale, shape (page, head).
    """

    planes: tuple[UInt8[Tensor, "slot head _"], ...]
    slots: Int32[Tensor, "page plane token"]
    scale: UInt8[Tensor, "page head token"]
    top: BFloat16[Tensor, "page head"]


@dataclass(frozen=True, slots=True, eq=False)
class KvPages:
    """Sealed pages of one layer, for all sequences.

    Attributes:
        keys: Codes of centred keys.
        values: Codes of values.
        centre: Codes of the mean key of each page, shape (page, head, channel).
        centre_step: What a step of them is worth, shape (page, head).
        table: Pages of each sequence, oldest first, shape (sequence, most pages); entries past its number are not read.
        n_pages: Pages of each sequence, shape (sequence,).
    """

    keys: PageCodes
    values: PageCodes
    centre: Int8[Tensor, "page head channel"]
    centre_step: BFloat16[Tensor, "page head"]
    table: Int32[Tensor, "sequence entry"]
    n_pages: Int32[Tensor, " sequence"]

    @property
    def channels(self) -> int:
        """Channels of a head."""
        return int(self.centre.shape[-1])

    def nbytes(self) -> int:
        """Bytes of all tensors."""
        codes = [t for part in (self.keys, self.values) for t in (*part.planes, part.slots, part.scale, part.top)]
        return sum(t.numel() * t.element_size() for t in (*codes, self.centre, self.centre_step))


def pool_codes(
    codes: Sequence[UInt8[Tensor, "head token channel"]],
    bits: Sequence[Int[Tensor, " token"]],
    scale: Sequence[UInt8[Tensor, "head token"]],
    top: Sequence[BFloat16[Tensor, " head"]],
) -> PageCodes:
    """Put the codes of some pages into pools, each token with the planes of its level only.

    Args:
        codes: 8-bit codes of each page.
        bits: Level of each token, one of ``KV_LEVELS``.
        scale: Scale codes.
        top: Largest scales.

    Raises:
        ValueError: If a level is not one of ``KV_LEVELS``, a page has more than 64 tokens, or the channels do not fill
            whole bytes.
    """
    heads, _, channels = codes[0].shape
    if channels % 8:
        raise ValueError(f"heads of {channels} channels do not fit: give a multiple of 8")
    rows: list[list[Tensor]] = [[] for _ in KV_PLANES]
    slots = torch.full((len(codes), len(KV_PLANES), PAGE_TOKENS), -1, dtype=torch.int32, device=codes[0].device)
    scales = torch.zeros(len(codes), heads, PAGE_TOKENS, dtype=torch.uint8, device=codes[0].device)
    used = [0] * len(KV_PLANES)
    for page, (some, levels) in enumerate(zip(codes, bits, strict=True)):
        n = int(some.shape[1])
        if n > PAGE_TOKENS or not set(levels.tolist()) <= set(KV_LEVELS):
            raise ValueError(
                f"a page of {n} tokens at {sorted(set(levels.tolist()))} bits: give up to 64 at {KV_LEVELS}"
            )
        scales[page, :, :n] = scale[page]
        for plane, packed in enumerate(split_code(some.transpose(0, 1).contiguous(), KV_PLANES)):
            kept = torch.nonzero(levels.to(some.device) >= KV_LEVELS[plane]).squeeze(1)
            rows[plane].append(packed[kept])
            places = torch.arange(len(kept), dtype=torch.int32, device=some.device)
            slots[page, plane, kept] = places + used[plane]
            used[plane] += len(kept)
    # A pool is never empty: a kernel wants an address even where it reads nothing.
    spare = [
        torch.zeros(1, heads, channels * width // 8, dtype=torch.uint8, device=codes[0].device) for width in KV_PLANES
    ]
    pools = tuple(torch.cat([*some, extra]) for some, extra in zip(rows, spare, strict=True))
    return PageCodes(pools, slots, scales, torch.stack(list(top)))


def read_codes(part: PageCodes, page: int) -> tuple[Tensor, Tensor]:
    """Numbers that the codes of one page stand for, and the level of each token.

    Args:
        part: Keys (then without their centre) or values.
        page: Which page.

    Returns:
        Shapes (head, token, channel), fp32, and (token,), for the tokens the page has.
    """
    n = int((part.slots[page, 0] >= 0).sum())
    slots = part.slots[page, :, :n].long()
    packed = [pool[row.clamp(min=0)] * (row >= 0)[:, None, None] for pool, row in zip(part.planes, slots, strict=True)]
    codes = join_code(packed, KV_PLANES, 8).transpose(0, 1).float()
    levels = torch.tensor(KV_LEVELS, device=slots.device)[(slots >= 0).sum(0) - 1]
    scale = part.top[page].float()[:, None] * torch.exp2(part.scale[page, :, :n].float() / -SCALE_STEPS)
    half = torch.exp2(7.0 - levels)[None, :, None]
    return (codes + half - 128) * (scale / 128)[..., None], levels

"""Codes of cached tokens: rotated, packed to the bit, shortened by a shift, read page by page or many pages at once.

Seed features: S1.17
"""

import pytest
import torch

from tapwb.core.errors import UnsupportedBits
from tapwb.execution.kv_codes import KV_LEVELS, TokenCodes, decode_scale, encode, join_codes, rotation
from tapwb.execution.kv_page import KvPage, read_rotated

MIXED = torch.tensor([2, 3, 4, 8])[torch.arange(64) * 7 % 4]


def _codes(seed: int = 0, tokens: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (2, 3, tokens, 10), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("channels", [1, 10, 64, 96])
def test_the_rotation_is_its_own_inverse(channels):
    """Whatever the size of a head; a power of two mixes all channels evenly."""
    turn = rotation(channels)
    assert torch.allclose(turn @ turn, torch.eye(channels), atol=1e-6)
    if channels == 64:
        assert torch.allclose(turn.abs(), torch.full((64, 64), 1 / 8))


def test_an_outlier_channel_costs_the_other_channels_less_after_the_rotation():
    """One channel of twenty times the others: at 4 bits the error of the rest falls several times."""
    x = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    x[..., 5] *= 20
    errors = []
    for turn in (torch.eye(64), rotation(64)):
        codes, scale, top = encode(x @ turn)
        read = ((codes >> 4 << 4) + 8.0) / 128 - 1
        errors.append(float(((read * decode_scale(scale, top)) @ turn - x).square().mean()))
    assert errors[1] < errors[0] / 3


def test_no_number_lies_outside_its_cells_and_none_wastes_more_than_a_step_of_scale():
    """Scales are rounded up by less than a sixteenth of an octave and a bf16 rounding."""
    x = torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 0, 64)[:, None]
    _, scale_codes, top = encode(x)
    scale, largest = decode_scale(scale_codes, top)[..., 0], x.abs().amax(-1)
    assert bool((scale >= largest).all())
    assert bool((scale <= largest * 2 ** (1 / 16) * (1 + 2**-6)).all())


def test_zeros_stay_finite_and_small():
    """A page of nothing: no division by zero, and no more than the smallest scale comes back."""
    page = KvPage(torch.zeros(1, 1, 64, 8), torch.zeros(1, 1, 64, 8), torch.full((64,), 2))
    for read in page.dequantize():
        assert bool(read.isfinite().all())
        assert float(read.abs().max()) < 1e-12


def test_codes_come_back_with_their_top_bits():
    """Token by token at its own level; the rest of a code is zero."""
    codes = _codes()
    got, half = TokenCodes(codes, MIXED).codes()
    shift = (8 - MIXED)[None, None, :, None]
    assert torch.equal(got.long(), codes.long() >> shift << shift)
    assert torch.equal(half[:, 0], 2.0 ** (7 - MIXED))


def test_fewer_bits_later_are_the_same_bytes_as_fewer_bits_at_once():
    """A downgrade in two steps is the direct one; no token gains bits back."""
    codes = _codes()
    late = TokenCodes(codes, torch.full((64,), 8))
    late.downgrade(torch.maximum(MIXED, torch.tensor(4)))
    late.downgrade(MIXED)
    late.downgrade(torch.full((64,), 8))
    direct = TokenCodes(codes, MIXED)
    assert torch.equal(late.bits, MIXED)
    assert late.nbytes() == direct.nbytes()
    assert torch.equal(late.codes()[0], direct.codes()[0])


@pytest.mark.parametrize("tokens", [64, 5])
def test_many_pages_read_at_once_are_the_pages_one_by_one(tokens):
    """Different levels in each page, and token numbers that fill no whole byte of the list of levels."""
    bits = [torch.tensor(KV_LEVELS)[(torch.arange(tokens) * step + step) % 4] for step in (1, 2, 3)]
    parts = [TokenCodes(_codes(seed, tokens), level) for seed, level in enumerate(bits)]
    codes, half = join_codes(parts)
    assert torch.equal(codes, torch.cat([part.codes()[0] for part in parts], dim=2))
    assert torch.equal(half, torch.cat([part.codes()[1] for part in parts]))


def test_pages_read_at_once_are_the_pages_one_by_one():
    """Scales and centres stay with their pages."""
    generator = torch.Generator().manual_seed(2)
    pages = [KvPage(*torch.randn(2, 1, 3, 64, 16, generator=generator) * scale, MIXED) for scale in (1, 10, 0.1)]
    singles = [read_rotated([page]) for page in pages]
    for joined, parts in zip(read_rotated(pages), zip(*singles, strict=True), strict=True):
        assert torch.equal(joined, torch.cat(parts, dim=2))


def test_keys_and_values_have_bits_of_their_own():
    """Downgrading values leaves keys as they are."""
    keys, values = torch.randn(2, 1, 3, 64, 16, generator=torch.Generator().manual_seed(3))
    page = KvPage(keys, values, torch.full((64,), 8))
    before = page.dequantize()
    page.downgrade(torch.full((64,), 8), torch.full((64,), 3))
    assert (set(page.bits.tolist()), set(page.value_bits.tolist())) == ({8}, {3})
    after = page.dequantize()
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


def test_a_level_that_is_not_stored_is_refused():
    """With the levels there are."""
    with pytest.raises(UnsupportedBits, match=r"5 bits.*2, 3, 4, 8"):
        TokenCodes(_codes(), torch.full((64,), 5))

"""The packed format means what its module says, read by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tapwb_kernels.layout import join_code, level_affine, pack_plane, planes_for, split_code, unpack_plane

LAYOUTS = [(4, 4), (4, 1, 1, 2), (2, 1, 1, 4), (8,), (1,) * 8, (2, 1, 2, 2, 1)]


@given(width=st.sampled_from([1, 2, 4, 8]), size=st.sampled_from([8, 24, 64, 136]), seed=st.integers(0, 99))
def test_a_plane_returns_every_code(width, size, seed):
    """Unpacking a packed plane gives the codes back, in G * p / 8 bytes."""
    codes = torch.randint(0, 1 << width, (3, 5, size), dtype=torch.uint8, generator=torch.manual_seed(seed))
    packed = pack_plane(codes, width)
    assert packed.shape == (3, 5, size * width // 8)
    assert torch.equal(unpack_plane(packed, width), codes)


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_a_byte_holds_columns_one_plane_width_apart(width):
    """Byte j holds columns j, j + H, j + 2H ..., lowest-order bits first."""
    size = 24
    codes = torch.randint(0, 1 << width, (2, 3, size), dtype=torch.uint8)
    packed = pack_plane(codes, width)
    n_bytes = size * width // 8
    for j in range(n_bytes):
        expected = sum(int(codes[1, 2, j + lane * n_bytes]) << (width * lane) for lane in range(8 // width))
        assert int(packed[1, 2, j]) == expected


@pytest.mark.parametrize("plane_bits", LAYOUTS)
@pytest.mark.parametrize("bits", range(1, 9))
def test_the_top_bits_of_the_code_are_what_the_planes_hold(plane_bits, bits):
    """Reading b bits from any layout is the 8-bit code shifted right by 8 - b."""
    codes = torch.randint(0, 256, (3, 2, 40), dtype=torch.uint8)
    planes = split_code(codes, plane_bits)
    assert torch.equal(join_code(planes, plane_bits, bits), codes >> (8 - bits))


def test_a_level_touches_only_its_planes():
    """The planes below a level may be missing altogether."""
    codes = torch.randint(0, 256, (3, 2, 64), dtype=torch.uint8)
    planes = split_code(codes, (4, 1, 1, 2))
    assert [planes_for((4, 1, 1, 2), bits) for bits in (3, 4, 5, 6, 7, 8)] == [1, 1, 2, 3, 4, 4]
    assert torch.equal(join_code(planes[:2], (4, 1, 1, 2), 5), codes >> 3)


@pytest.mark.parametrize("bits", [0, 9, -1])
def test_levels_outside_one_to_eight_are_refused(bits):
    """The message says which levels exist."""
    with pytest.raises(ValueError, match="1 to 8"):
        planes_for((4, 4), bits)


def test_low_levels_without_their_own_fit_are_refused():
    """Cell middles are never silently used at 1 and 2 bits."""
    pair = torch.zeros(1, 1), torch.ones(1, 1)
    with pytest.raises(ValueError, match="quantize with a layout"):
        level_affine(*pair, 2)

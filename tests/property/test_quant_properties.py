"""What holds for every tensor: round trips, order of errors, idempotence, nesting, scale."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tapwb.quant import PrecisionManager, layout_for_levels, quantize_nested, quantizers
from tapwb.quant.packing import pack_codes, packed_bytes, unpack_codes

EVERY_LEVEL = layout_for_levels([1, 2, 3, 4, 5, 6, 7, 8])


def gaussian(shape, seed, scale=0.02):
    """Reproducible normal numbers."""
    return torch.randn(shape, generator=torch.manual_seed(seed)) * scale


def relative_error(approximation, original):
    """Root of the summed squared error over that of the values."""
    return float((approximation - original).norm() / original.norm())


@given(bits=st.integers(1, 8), count=st.integers(0, 300), seed=st.integers(0, 999))
def test_packing_returns_every_code_and_wastes_no_bit(bits, count, seed):
    """Any width and any count, divisible by nothing."""
    codes = torch.randint(0, 1 << bits, (count,), dtype=torch.uint8, generator=torch.manual_seed(seed))
    packed = pack_codes(codes, bits)
    assert packed.numel() == packed_bytes(count, bits) == -(-count * bits // 8)
    assert torch.equal(unpack_codes(packed, bits, count), codes)


@given(bits=st.integers(1, 8), values=st.lists(st.integers(0, 255), max_size=40))
def test_packing_is_one_long_binary_number(bits, values):
    """The byte stream, read as a little-endian number, holds code i at bit i * bits."""
    codes = [value & ((1 << bits) - 1) for value in values]
    packed = pack_codes(torch.tensor(codes, dtype=torch.uint8), bits)
    number = int.from_bytes(bytes(packed.tolist()), "little")
    assert number == sum(code << (index * bits) for index, code in enumerate(codes))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999))
@pytest.mark.parametrize("scheme", quantizers.names())
def test_more_bits_never_hurt_on_gaussian_groups(scheme, seed):
    """The error falls with every bit."""
    values = gaussian((8, 640), seed)
    lowest = quantizers.entry(scheme).metadata.get("min_bits", 2)
    errors = [PrecisionManager(scheme).error(values, bits).mse for bits in range(lowest, 9)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 20 * errors[-1]


@settings(max_examples=20, deadline=None)
@given(
    bits=st.integers(2, 8),
    columns=st.integers(1, 150),
    seed=st.integers(0, 999),
    scale=st.sampled_from([1e-9, 0.02, 1e6]),
)
@pytest.mark.parametrize("scheme", [n for n in quantizers if quantizers.entry(n).metadata.get("idempotent", True)])
def test_quantizing_twice_changes_nothing(scheme, bits, columns, seed, scale):
    """Beyond rounding scale and offset to fp16: 2**-11 of a range of up to two largest values, and of the offset."""
    manager = PrecisionManager(scheme, group_size=32)
    once = manager.fake_quantize(gaussian((3, columns), seed, scale), bits)
    twice = manager.fake_quantize(once, bits)
    assert float((twice - once).abs().max()) <= 3 * 2**-11 * float(once.abs().max())


@settings(max_examples=20, deadline=None)
@given(columns=st.integers(1, 200), group_size=st.sampled_from([8, 32, 64, 128]), seed=st.integers(0, 999))
def test_a_nested_level_is_the_formula_on_the_same_code(columns, group_size, seed):
    """Every level reads min + (top bits + 1/2) cells, whatever planes the code is stored in."""
    weight = gaussian((3, columns), seed)
    by_bit = quantize_nested(weight, group_size=group_size, layout=EVERY_LEVEL)
    low = by_bit.group_min.float().repeat_interleave(group_size, 1)[:, :columns]
    step = by_bit.group_step.float().repeat_interleave(group_size, 1)[:, :columns]
    code = ((weight - low) / torch.where(step > 0, step, 1)).floor().clamp(0, 255)
    for layout in ("4+4", "fine", "wide"):
        nested = quantize_nested(weight, group_size=group_size, layout=layout)
        for bits in range(3, 9):
            cell = 2 ** (8 - bits)
            expected = low + (torch.floor(code / cell) + 0.5) * cell * step
            torch.testing.assert_close(nested.dequantize(bits), expected, rtol=1e-5, atol=1e-7)
            assert torch.equal(nested.dequantize(bits), by_bit.dequantize(bits))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), columns=st.integers(1, 200))
def test_no_weight_leaves_its_eight_bit_cell(seed, columns):
    """Rounding (min, step) outwards keeps every weight, the largest included, within half a cell of its reading."""
    weight = gaussian((4, columns), seed) + 0.01 * (seed % 7)
    nested = quantize_nested(weight)
    step = nested.group_step.float().repeat_interleave(64, 1)[:, :columns]
    assert bool(((nested.dequantize(8) - weight).abs() <= 0.5001 * step + 1e-7).all())


@settings(max_examples=15, deadline=None)
@given(exponent=st.integers(-4, 8), seed=st.integers(0, 999))
@pytest.mark.parametrize("scheme", quantizers.names())
def test_scaling_by_a_power_of_two_scales_the_result(scheme, exponent, seed):
    """Nothing depends on the unit of the weights (within fp16's normal range, where metadata scales exactly)."""
    values = gaussian((2, 128), seed, scale=1.0)
    factor = 2.0**exponent
    plain = PrecisionManager(scheme).fake_quantize(values, 4)
    scaled = PrecisionManager(scheme).fake_quantize(values * factor, 4)
    torch.testing.assert_close(scaled, plain * factor, rtol=1e-5, atol=1e-6 * factor)

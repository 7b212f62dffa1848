"""Nested weights: quality, bytes, layouts, and clear behaviour on bad input.

Seed features: S1.14
"""

import pytest
import torch

from tapwb.core.errors import InvalidTensor, SettingsError, UnknownName, UnsupportedBits
from tapwb.quant import PRESETS, NestedLayout, NestedTensor, PrecisionManager, layout_for_levels, quantize_nested


@pytest.fixture(scope="module")
def weight():
    """Gaussian weights, the case the published figures are for."""
    return torch.randn(512, 1152, generator=torch.manual_seed(0)) * 0.03


def relative_error(approximation, original):
    """Root of the summed squared error over that of the values."""
    return float((approximation - original).norm() / original.norm())


@pytest.mark.parametrize(
    ("bits", "published", "tolerance"),
    [(1, 0.608, 0.01), (2, 0.3646, 0.006), (3, 0.1916, 0.003), (4, 0.0958, 0.0015), (8, 0.0059, 0.0001)],
)
def test_the_error_on_gaussian_weights_is_the_published_one(weight, bits, published, tolerance):
    """Groups of 128, relative to the norm, as in the study the format comes from."""
    nested = quantize_nested(weight, group_size=128, layout=layout_for_levels([1, 2, 3, 4, 8]))
    assert relative_error(nested.dequantize(bits), weight) == pytest.approx(published, abs=tolerance)


def test_nesting_costs_nothing_against_rounding_each_width_alone(weight):
    """At 3 and 4 bits the nested reading beats independent min-max rounding; at 8 it is within 3 %."""
    nested, alone = quantize_nested(weight, group_size=128), PrecisionManager("asymmetric", group_size=128)
    for bits in (3, 4):
        assert relative_error(nested.dequantize(bits), weight) < alone.error(weight, bits).relative
    assert relative_error(nested.dequantize(8), weight) < 1.03 * alone.error(weight, 8).relative


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_registered_scheme_reads_the_same_numbers(weight, bits):
    """``PrecisionManager("nested")`` is the same format, one level at a time."""
    nested = quantize_nested(weight[:9, :200], group_size=64, layout=layout_for_levels([1, 2, 8]))
    assert torch.equal(PrecisionManager("nested").fake_quantize(weight[:9, :200], bits), nested.dequantize(bits))


@pytest.mark.parametrize("columns", [17, 576, 1536, 4097])
@pytest.mark.parametrize("group_size", [8, 32, 64, 128])
def test_bytes_are_planes_plus_two_numbers_per_group(columns, group_size):
    """Counted on the tensors; a lower level reads fewer of them."""
    nested = quantize_nested(torch.randn(3, columns), group_size=group_size, layout="fine")
    groups = -(-columns // group_size)
    assert nested.nbytes == 3 * groups * (group_size + 4)
    for bits, part in ((4, 4), (5, 5), (6, 6), (7, 8), (8, 8)):
        assert nested.bytes_read(bits) == 3 * groups * (group_size * part // 8 + 4)
    assert nested.dequantize(4).shape == (3, columns)


def test_resident_bytes_are_just_over_half_of_bf16(weight):
    """8 bits plus 4 bytes per 64 weights: 8.5 of 16."""
    nested = quantize_nested(weight.bfloat16())
    assert nested.effective_bits == 8.5
    assert nested.nbytes / (2 * weight.numel()) == 0.53125


def test_presets_have_the_levels_they_are_named_for():
    """4+4, fine and wide."""
    assert {name: layout.levels for name, layout in PRESETS.items()} == {
        "4+4": (4, 8),
        "fine": (4, 5, 6, 8),
        "wide": (2, 3, 4, 8),
    }


@pytest.mark.parametrize(
    ("levels", "name"),
    [([8], "4+4"), ([4, 8], "4+4"), ([4, 5, 6, 8], "fine"), ([5], "fine"), ([2, 3], "wide"), ([1, 8], "1+4+2+1")],
)
def test_the_smallest_layout_with_the_levels_is_chosen(levels, name):
    """A preset if one fits, else a cut to measure; it always has the levels and ends at 8."""
    layout = layout_for_levels(levels)
    assert layout.name == name
    assert set(levels) | {8} <= set(layout.levels)


def test_layouts_that_cannot_be_are_refused():
    """Widths that do not sum to 8, unknown names, levels above 8."""
    with pytest.raises(SettingsError, match="sum to 8"):
        NestedLayout("broken", (4, 2))
    with pytest.raises(UnknownName, match=r"fine.*2\+2\+4"):
        quantize_nested(torch.zeros(1, 8), layout="finest")
    with pytest.raises(UnsupportedBits, match="1 to 8"):
        layout_for_levels([4, 16])


def test_levels_without_their_own_fit_are_refused_with_the_way_out(weight):
    """4+4 has no 2-bit level; the message says how to get one. Levels between planes read the planes around them."""
    nested = quantize_nested(weight[:2])
    with pytest.raises(UnsupportedBits, match=r"layout_for_levels\(\[2, 8\]\)"):
        nested.dequantize(2)
    with pytest.raises(UnsupportedBits, match="1 to 8"):
        nested.bytes_read(9)
    assert nested.bytes_read(6) == nested.bytes_read(8)
    assert relative_error(nested.dequantize(6), weight[:2]) < 0.03


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_weights_are_refused_with_their_place(bad):
    """Position, count and what to do."""
    weight = torch.zeros(4, 70)
    weight[3, 69] = bad
    with pytest.raises(InvalidTensor, match=r"weight holds .* at \[3, 69\] \(1 of 280"):
        quantize_nested(weight)


def test_only_matrices_in_whole_groups_of_eight():
    """Three axes, integers and odd group sizes are refused."""
    with pytest.raises(InvalidTensor, match=r"flatten\(0, 1\)"):
        quantize_nested(torch.zeros(2, 3, 8))
    with pytest.raises(InvalidTensor, match="floating-point"):
        quantize_nested(torch.zeros(3, 8, dtype=torch.int8))
    with pytest.raises(SettingsError, match="multiple of 8"):
        quantize_nested(torch.zeros(3, 8), group_size=12)


@pytest.mark.parametrize("shape", [(0, 8), (8, 0), (0, 0)])
def test_an_empty_weight_is_an_empty_nested_weight(shape):
    """Of the right shape and no bytes."""
    nested = quantize_nested(torch.zeros(shape), layout="wide")
    assert nested.nbytes == 0
    assert nested.dequantize(8).shape == shape


@pytest.mark.parametrize("value", [0.0, 0.1, -3.5, 1e5])
def test_constant_weights_come_back_exactly(value):
    """Step 0: every level is the value."""
    nested = quantize_nested(torch.full((2, 70), value), layout="wide")
    for bits in (2, 3, 4, 8):
        assert torch.equal(nested.dequantize(bits), torch.full((2, 70), value))


def test_a_constant_group_among_others_is_exact_when_half_precision_holds_it(weight):
    """bf16 weights, a whole group of which is one value (a pruned or padded input)."""
    mixed = weight[:4, :192].bfloat16()
    mixed[:, 64:128] = 0.25
    nested = quantize_nested(mixed)
    assert nested.group_min.dtype == torch.float16
    assert torch.equal(nested.dequantize(4)[:, 64:128], torch.full((4, 64), 0.25))


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1.0, 1e6, 1e30])
def test_magnitudes_that_half_precision_cannot_hold_get_wider_numbers(weight, scale):
    """The relative error does not depend on the size of the weights."""
    scaled = (weight[:8].double() * scale).float()
    back = quantize_nested(scaled).dequantize(8).double()
    assert float((back - scaled.double()).norm() / scaled.double().norm()) < 0.007


def test_saving_and_loading_changes_no_bit(weight):
    """tensors() and from_tensors() are inverse, and damage is noticed."""
    nested = quantize_nested(weight[:5, :70], layout="wide")
    saved = {name: tensor.clone() for name, tensor in nested.tensors().items()}
    again = NestedTensor.from_tensors(saved, (5, 70), 64, "wide")
    for bits in (2, 3, 8):
        assert torch.equal(again.dequantize(bits), nested.dequantize(bits))
    saved["plane_0"] = saved["plane_0"][:-1]
    with pytest.raises(InvalidTensor, match=r"plane_0 .* quantize the model again"):
        NestedTensor.from_tensors(saved, (5, 70), 64, "wide")


def test_looking_up_rows_makes_only_those_into_floats(weight):
    """An embedding reads a few rows of the nested table."""
    nested = quantize_nested(weight[:20], layout="wide")
    index = torch.tensor([3, 3, 19, 0])
    assert torch.equal(nested.rows(index).dequantize(8), nested.dequantize(8)[index])
    assert nested.rows(index).shape == (4, weight.shape[1])


def test_large_weights_are_quantized_in_blocks_without_a_seam(weight, monkeypatch):
    """Blocks of rows bound the temporaries; the result is that of one piece."""
    whole = quantize_nested(weight[:50])
    monkeypatch.setattr("tapwb.quant.nested._BLOCK_WEIGHTS", 7 * weight.shape[1])
    parts = quantize_nested(weight[:50])
    assert all(torch.equal(a, b) for a, b in zip(whole.tensors().values(), parts.tensors().values(), strict=True))

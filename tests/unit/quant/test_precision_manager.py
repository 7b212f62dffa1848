"""PrecisionManager: the seed's four kinds and their characters, granularities, errors.

Seed features: S1.9, S1.10, S1.11, S1.12, S1.13
"""

import math
from itertools import pairwise

import pytest
import torch

from tapwb.core.errors import InvalidTensor, SettingsError, UnknownName
from tapwb.quant import PrecisionManager, quantization_error, quantizers
from tapwb.quant.granularity import from_groups, to_groups
from tapwb.quant.metadata import round_down, round_up
from tapwb.quant.packing import pack_codes, unpack_codes


def test_the_seeds_kinds_are_registered():
    """Symmetric, asymmetric, logarithmic, dynamic, and ours."""
    assert {"symmetric", "asymmetric", "logarithmic", "dynamic", "nested"} <= set(quantizers.names())


def test_unknown_names_are_answered_with_the_known():
    """Scheme and granularity, with the nearest name."""
    with pytest.raises(UnknownName, match="Did you mean 'symmetric'"):
        PrecisionManager("symmetrik")
    with pytest.raises(UnknownName, match="per_group"):
        PrecisionManager("symmetric", "per_row")
    with pytest.raises(SettingsError, match="at least 1"):
        PrecisionManager(group_size=0)


def test_symmetric_keeps_zero_and_signs():
    """Zero is exact and negating the input negates the output."""
    values = torch.randn(4, 64, generator=torch.manual_seed(0))
    values[1] = 0.0
    manager = PrecisionManager("symmetric")
    result = manager.fake_quantize(values, 4)
    assert torch.equal(result[1], torch.zeros(64))
    assert torch.equal(manager.fake_quantize(-values, 4), -result)


def test_asymmetric_spends_all_codes_on_skewed_values():
    """On positive values it is twice as fine as symmetric: about 6 dB."""
    values = torch.rand(16, 640, generator=torch.manual_seed(0)) + 0.05
    gain = (
        PrecisionManager("asymmetric").error(values, 4).sqnr_db - PrecisionManager("symmetric").error(values, 4).sqnr_db
    )
    assert 5 < gain < 9


def test_asymmetric_reproduces_both_ends_of_the_group():
    """Smallest and largest value are grid points (to fp16's rounding of the scale)."""
    values = torch.randn(4, 64, generator=torch.manual_seed(1))
    result = PrecisionManager("asymmetric").fake_quantize(values, 3)
    torch.testing.assert_close(result.amin(1), values.amin(1), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(result.amax(1), values.amax(1), rtol=1e-3, atol=1e-3)


def test_logarithmic_keeps_small_values_that_uniform_grids_lose():
    """Over four orders of magnitude its *relative* error per value is far smaller."""
    exponents = torch.rand(32, 64, generator=torch.manual_seed(2)) * 12
    values = torch.exp2(-exponents) * torch.randn(32, 64, generator=torch.manual_seed(3)).sign()

    def mean_relative(scheme):
        result = PrecisionManager(scheme).fake_quantize(values, 6)
        return float(((result - values) / values).abs().mean())

    assert mean_relative("logarithmic") < 0.5 * mean_relative("symmetric")


def test_logarithmic_levels_are_signs_times_equal_ratios():
    """With 3 bits: zero and three magnitudes of either sign, in geometric progression from the largest."""
    values = torch.linspace(-1, 1, 64).view(1, -1)
    levels = PrecisionManager("logarithmic").fake_quantize(values, 3).abs().unique()
    assert levels.numel() == 4
    assert levels[0] == 0
    assert float(levels[3] / levels[2]) == pytest.approx(float(levels[2] / levels[1]), rel=1e-3)


def test_dynamic_is_never_worse_than_asymmetric():
    """Group by group, because the full span is among its candidates."""
    generator = torch.manual_seed(4)
    values = torch.randn(64, 64, generator=generator) * torch.rand(64, 1, generator=generator)
    values[::3] = values[::3].abs()
    values[::5, 7] *= 8  # outliers
    for bits in (2, 3, 4, 6, 8):
        errors = {
            scheme: (PrecisionManager(scheme).fake_quantize(values, bits) - values).square().sum(1)
            for scheme in ("dynamic", "asymmetric")
        }
        assert bool((errors["dynamic"] <= errors["asymmetric"] * (1 + 1e-6)).all())
    assert PrecisionManager("dynamic").error(values, 3).mse < 0.8 * PrecisionManager("asymmetric").error(values, 3).mse


def test_granularities_share_scales_as_they_say():
    """Number of scales for a (3, 4, 70) tensor."""
    values = torch.randn(3, 4, 70)
    counts = {
        name: PrecisionManager("symmetric", name, group_size=32).quantize(values, 4).n_groups
        for name in ("per_tensor", "per_channel", "per_token", "per_group")
    }
    assert counts == {"per_tensor": 1, "per_channel": 3, "per_token": 12, "per_group": 36}


def test_finer_granularity_helps_rows_of_different_size():
    """One loud row does not drown the others once it has its own scale."""
    values = torch.randn(8, 640, generator=torch.manual_seed(5))
    values[0] *= 100
    quiet = [
        float((PrecisionManager("symmetric", name).fake_quantize(values, 4)[1:] - values[1:]).norm())
        for name in ("per_tensor", "per_channel", "per_group")
    ]
    assert quiet[0] > 5 * quiet[1] > 5 * quiet[2] / 2


@pytest.mark.parametrize("columns", [1, 31, 32, 33, 100])
def test_filling_of_the_last_group_is_dropped_again(columns):
    """to_groups and from_groups are inverse for any number of columns."""
    values = torch.randn(2, 3, columns)
    groups = to_groups(values, "per_group", 32)
    assert groups.shape == (6 * -(-columns // 32), 32)
    assert torch.equal(from_groups(groups, (2, 3, columns), "per_group", 32), values)


def test_a_vector_has_nothing_to_share_per_channel():
    """Refused with the alternatives; per group it works."""
    with pytest.raises(InvalidTensor, match="per_tensor or per_group"):
        PrecisionManager("symmetric", "per_channel").quantize(torch.randn(10), 4)
    assert PrecisionManager("symmetric").fake_quantize(torch.randn(10), 4).shape == (10,)


def test_the_record_says_what_it_costs():
    """4 bits, fp16 scale and offset for every 64 values: 4.5; symmetric needs no offset: 4.25."""
    values = torch.randn(8, 640)
    assert PrecisionManager("asymmetric").quantize(values, 4).effective_bits == 4.5
    assert PrecisionManager("symmetric").quantize(values, 4).effective_bits == 4.25


def test_zero_point_is_the_code_of_zero():
    """For a uniform grid, offset + zero_point * scale = 0."""
    quantized = PrecisionManager("asymmetric").quantize(torch.randn(2, 128), 8)
    back = quantized.offset.float() + quantized.zero_point * quantized.scale.float()
    assert float(back.abs().max()) < 1e-6


def test_error_numbers_are_the_textbook_ones():
    """A difference of 0.1 everywhere on ones: mse 0.01, 20 dB, relative 0.1."""
    error = quantization_error(torch.ones(10), torch.full((10,), 0.9))
    assert (error.mse, error.max_abs) == (pytest.approx(0.01, rel=1e-5), pytest.approx(0.1, rel=1e-5))
    assert (error.sqnr_db, error.relative) == (pytest.approx(20, rel=1e-5), pytest.approx(0.1, rel=1e-5))
    assert quantization_error(torch.ones(3), torch.ones(3)).sqnr_db == math.inf
    with pytest.raises(InvalidTensor, match="differ"):
        quantization_error(torch.ones(3), torch.ones(4))


def test_six_decibel_per_bit_on_uniform_values():
    """The rule every quantization text begins with."""
    values = torch.rand(64, 640, generator=torch.manual_seed(6))
    sqnr = [PrecisionManager("asymmetric").error(values, bits).sqnr_db for bits in (4, 5, 6, 7, 8)]
    gains = [b - a for a, b in pairwise(sqnr)]
    assert all(5.5 < gain < 6.8 for gain in gains)


def test_rounding_of_group_numbers_is_outward():
    """Down is never above, up never below, and both are within one fp16 step, zero and subnormals included."""
    values = torch.cat(
        [torch.randn(4000) * s for s in (1e-8, 1e-5, 1.0, 1e4)] + [torch.tensor([0.0, -1e-9, 1e-9, 0.1])]
    )
    down, up = round_down(values, torch.float16).float(), round_up(values, torch.float16).float()
    assert bool((down <= values).all())
    assert bool((values <= up).all())
    assert bool(((up - down) <= values.abs() * 2**-10 + 2**-24).all())


def test_codes_that_do_not_fit_and_streams_cut_short_are_refused():
    """Instead of wrapping around or reading nothing."""
    with pytest.raises(InvalidTensor, match="4 bits"):
        pack_codes(torch.tensor([16], dtype=torch.uint8), 4)
    with pytest.raises(InvalidTensor, match="cut short"):
        unpack_codes(torch.zeros(3, dtype=torch.uint8), 5, 5)

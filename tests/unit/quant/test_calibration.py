"""Calibrated cells: less damage at every level of one stored code, and nothing lost where calibration cannot help."""

import pytest
import torch

from tapwb.core.errors import InvalidTensor
from tapwb.quant import NestedLayout, quantize_nested
from tapwb.quant.calibration import LEVELS, CalibratedCells, InputStatistics, calibrate_weight
from tapwb.quant.calibration.rounding import REACH, round_jointly
from tapwb.quant.nested import padded_groups

ROWS, COLUMNS, GROUP = 96, 200, 64  # the last group is padded


@pytest.fixture(scope="module")
def inputs():
    """Two samples of inputs of one kind: correlated, with a mean far from zero, as norms in language models give."""
    made = torch.Generator().manual_seed(0)
    mixing = torch.randn(COLUMNS, COLUMNS, generator=made) * torch.logspace(0, -1.5, COLUMNS)
    mean = torch.randn(COLUMNS, generator=made)
    return [torch.randn(4000, COLUMNS, generator=made) @ mixing.T * 0.1 + mean for _ in range(2)]


@pytest.fixture(scope="module")
def weight():
    """Gaussian weights: no grid that a search could find."""
    return torch.randn(ROWS, COLUMNS, generator=torch.manual_seed(1)) * 0.05


@pytest.fixture(scope="module")
def cells(weight, inputs):
    """Calibrated on the first sample."""
    return calibrate_weight(weight, statistics_of(inputs[0]), group_size=GROUP)


def statistics_of(x):
    """Gathered in uneven pieces, as windows come."""
    gathered = InputStatistics(x.shape[1])
    for piece in x.split(999):
        gathered.add(piece)
    return gathered


def output_error(weight, read, x, bias=None):
    """Mean squared error of the outputs for inputs ``x``."""
    error = x @ (weight - read).T
    return float((error if bias is None else error - bias).square().mean())


def test_statistics_are_mean_and_covariance(inputs):
    """Compared with numpy's definition."""
    gathered, x = statistics_of(inputs[0]), inputs[0]
    assert torch.allclose(gathered.mean, x.mean(0), atol=1e-4)
    assert torch.allclose(gathered.covariance, torch.cov(x.T, correction=0), atol=1e-3)


def test_every_level_disturbs_unseen_outputs_at_most_half_as_much_as_plain_rounding(weight, inputs, cells):
    """On inputs of the same kind that calibration has not seen; 8 bits at most as much."""
    plain, better = quantize_nested(weight, group_size=GROUP), cells.pack(weight, NestedLayout.named("8"))
    for index, bits in enumerate(LEVELS):
        before = output_error(weight, plain.dequantize(bits), inputs[1])
        bias = cells.level_bias[index].float()
        after = output_error(weight, better.dequantize(bits), inputs[1], bias)
        assert after < (0.5 if bits < 8 else 1.0) * before, bits


def test_the_level_bias_is_the_mean_error_that_is_left(weight, inputs, cells):
    """What the layer adds is what the level lacks on average."""
    read = cells.pack(weight, NestedLayout.named("8"))
    for index, bits in enumerate(LEVELS):
        lacking = ((weight - read.dequantize(bits)) @ inputs[0].T).mean(1)
        assert torch.allclose(cells.level_bias[index].float(), lacking, atol=2e-3)


def test_joint_rounding_lowers_all_levels_at_the_same_cells(weight, inputs):
    """Against plain codes in the same plain cells, so that nothing but the choice of sides differs."""
    plain = quantize_nested(weight, group_size=GROUP, layout="8")
    gathered = statistics_of(inputs[0])
    missing = 256 - COLUMNS
    covariance = torch.nn.functional.pad(gathered.covariance, (0, missing, 0, missing))
    codes = round_jointly(padded_groups(weight, GROUP).flatten(1), plain.group_min, plain.group_step, covariance, GROUP)
    moved = (codes.int() - plain.planes[0].flatten(1).int()).abs()
    assert 0 < int(moved.max()) <= REACH
    cells = CalibratedCells(
        codes.reshape(ROWS, -1, GROUP), plain.group_min, plain.group_step, torch.zeros(len(LEVELS), ROWS), COLUMNS
    )
    joint, centred = cells.pack(weight, plain.layout), inputs[1] - inputs[1].mean(0)
    for bits in LEVELS:
        assert output_error(weight, joint.dequantize(bits), centred) < output_error(
            weight, plain.dequantize(bits), centred
        )


def test_weights_on_an_old_grid_are_found_again():
    """Weights that were 4-bit once come back nearly whole at 4 bits; plain cells between the extremes miss the grid."""
    made = torch.Generator().manual_seed(2)
    steps = torch.randint(0, 16, (64, 256), generator=made)
    grid = (steps.float() - 7.3) * 0.02
    found = calibrate_weight(grid, statistics_of(torch.randn(2000, 256, generator=made)), group_size=64)
    plain = quantize_nested(grid, group_size=64)
    calibrated = found.pack(grid, NestedLayout.named("4+4"))
    assert (grid - calibrated.dequantize(4)).square().mean() < 0.6 * (grid - plain.dequantize(4)).square().mean()


@pytest.mark.parametrize("layout", ["4+4", "fine", "wide", "1+1+2+4"])
def test_one_result_serves_every_layout(weight, cells, layout):
    """Levels from 3 up read the same numbers however the code is cut; lower ones are fitted to the weight."""
    chosen, whole = cells.pack(weight, NestedLayout.named(layout)), cells.pack(weight, NestedLayout.named("8"))
    for bits in (3, 4, 5, 6, 7, 8):
        assert torch.equal(chosen.dequantize(bits), whole.dequantize(bits))
    if 2 in chosen.levels:
        assert (chosen.dequantize(2) - weight).square().mean() < weight.square().mean()


@pytest.mark.parametrize("shape", [(1, 8), (3, 17), (5, 64), (2, 129)])
def test_odd_shapes(shape):
    """Small and padded weights are calibrated like any other."""
    weight = torch.randn(shape, generator=torch.manual_seed(3))
    gathered = statistics_of(torch.randn(500, shape[1], generator=torch.manual_seed(4)))
    read = calibrate_weight(weight, gathered, group_size=64 if shape[1] >= 64 else 8)
    nested = read.pack(weight, NestedLayout.named("8"))
    assert nested.dequantize(8).shape == shape
    assert torch.allclose(nested.dequantize(8), weight, atol=0.05)


def test_constant_groups_come_back():
    """Cells of width zero, also where the inputs say nothing."""
    weight = torch.cat([torch.full((4, 64), 0.25), torch.zeros(4, 64)], dim=1)
    gathered = statistics_of(torch.zeros(10, 128))
    nested = calibrate_weight(weight, gathered, group_size=64).pack(weight, NestedLayout.named("8"))
    for bits in LEVELS:
        assert torch.equal(nested.dequantize(bits), weight)


def test_bad_statistics_are_refused(weight):
    """None at all, of another width, or not numbers."""
    with pytest.raises(InvalidTensor, match="no input was seen"):
        calibrate_weight(weight, InputStatistics(COLUMNS), group_size=GROUP)
    with pytest.raises(InvalidTensor, match="do not fit"):
        calibrate_weight(weight, statistics_of(torch.ones(5, 8)), group_size=GROUP)
    with pytest.raises(InvalidTensor, match="NaN or infinity"):
        calibrate_weight(weight, statistics_of(torch.full((5, COLUMNS), torch.nan)), group_size=GROUP)


def test_cells_of_another_weight_are_refused(cells):
    """Before anything is packed."""
    with pytest.raises(InvalidTensor, match="do not fit"):
        cells.pack(torch.zeros(3, 3), NestedLayout.named("8"))

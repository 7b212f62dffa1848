"""Calibrated cells: less damage at every level of one stored code, and nothing lost where calibration cannot help."""

import pytest
import torch

from tapwb.core.errors import InvalidTensor
from tapwb.quant import NestedLayout, quantize_nested
from tapwb.quant.calibration import (
    CLOSE,
    FAR,
    LEVELS,
    CalibratedCells,
    InputStatistics,
    calibrate_table,
    calibrate_weight,
)
from tapwb.quant.calibration.fit import level_correction
from tapwb.quant.calibration.rounding import round_jointly
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


def corrected(nested, cells, bits):
    """The weight as a layer multiplies by it: as read, each row raised by its gain."""
    return nested.dequantize(bits) * (1 + cells.level_gain[LEVELS.index(bits)].float().unsqueeze(-1))


def output_error(weight, read, x, bias=None):
    """Mean squared error of the outputs for inputs ``x``."""
    error = x @ (weight - read).T
    return float((error if bias is None else error - bias).square().mean())


def test_statistics_are_mean_and_covariance(inputs):
    """Compared with numpy's definition."""
    gathered, x = statistics_of(inputs[0]), inputs[0]
    assert torch.allclose(gathered.mean, x.mean(0), atol=1e-4)
    assert torch.allclose(gathered.covariance, torch.cov(x.T, correction=0), atol=1e-3)


def test_weighted_statistics_are_those_of_repeated_inputs(inputs):
    """A weight of two is the input twice; each block of rows has its own mean, and the covariance is that of all."""
    x = inputs[0][:50]
    weights = torch.stack([torch.arange(50) % 3, (torch.arange(50) + 1) % 3]).float()
    weights[1] *= weights[0].sum() / weights[1].sum()
    gathered = InputStatistics(COLUMNS, 2)
    gathered.add(x[:20], weights[:, :20])
    gathered.add(x[20:], weights[:, 20:])
    share = weights / weights.sum(1, keepdim=True)
    error = torch.randn(6, COLUMNS, generator=torch.manual_seed(5))
    means = share @ x
    by_hand = torch.cat([error[:3] @ means[0], error[3:] @ means[1]])
    assert torch.allclose(gathered.row_sums(error), by_hand, atol=1e-4)
    assert torch.allclose(gathered.mean, means.mean(0), atol=1e-5)
    assert torch.allclose(gathered.covariance, torch.cov(x.T, correction=0, aweights=share.mean(0)), atol=1e-3)
    with pytest.raises(InvalidTensor, match="do not divide"):
        gathered.row_sums(error[:5])


def test_half_precision_around_the_sums_does_not_reach_them(inputs):
    """Autocast would leave a covariance that is not one: large means hide small variances in eight bits."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gathered = statistics_of(inputs[0] + 30)
    assert torch.allclose(gathered.covariance, torch.cov((inputs[0] + 30).T, correction=0), atol=5e-3)


def test_every_level_disturbs_unseen_outputs_at_most_half_as_much_as_plain_rounding(weight, inputs, cells):
    """On inputs of the same kind that calibration has not seen; 8 bits at most as much."""
    plain, better = quantize_nested(weight, group_size=GROUP), cells.pack(weight, NestedLayout.named("8"))
    for index, bits in enumerate(LEVELS):
        before = output_error(weight, plain.dequantize(bits), inputs[1])
        after = output_error(weight, corrected(better, cells, bits), inputs[1], cells.level_bias[index].float())
        assert after < (0.5 if bits < 8 else 1.0) * before, bits


def test_the_gain_is_that_of_least_squares_around_the_mean(weight, inputs, cells):
    """No other factor of a row brings its outputs nearer."""
    read, centred = cells.pack(weight, NestedLayout.named("8")), inputs[0] - inputs[0].mean(0)
    target = weight @ centred.T
    for index, bits in enumerate(LEVELS):
        y = read.dequantize(bits) @ centred.T
        best = (target * y).sum(1) / y.square().sum(1) - 1
        assert torch.allclose(cells.level_gain[index].float(), best, atol=1e-3)


def test_a_row_that_says_nothing_keeps_its_size(inputs):
    """A row of zeros and one that is read as zeros: no division by nothing."""
    weight = torch.zeros(2, COLUMNS)
    gain, bias = level_correction(weight, weight, statistics_of(inputs[0]))
    assert not gain.any()
    assert not bias.any()


def test_the_level_bias_is_the_mean_error_that_is_left(weight, inputs, cells):
    """What the layer adds is what the level lacks on average."""
    read = cells.pack(weight, NestedLayout.named("8"))
    for index, bits in enumerate(LEVELS):
        lacking = ((weight - corrected(read, cells, bits)) @ inputs[0].T).mean(1)
        assert torch.allclose(cells.level_bias[index].float(), lacking, atol=2e-3)


@pytest.mark.parametrize(("freedom", "at_8_bits"), [(CLOSE, 1.0), (FAR, 6.0)])
def test_joint_rounding_lowers_all_levels_at_the_same_cells(weight, inputs, freedom, at_8_bits):
    """Against plain codes in the same plain cells, so that nothing but the choice of sides differs.

    Weights that may move far give up some of the 8-bit reading.
    """
    plain = quantize_nested(weight, group_size=GROUP, layout="8")
    gathered = statistics_of(inputs[0])
    missing = 256 - COLUMNS
    covariance = torch.nn.functional.pad(gathered.covariance, (0, missing, 0, missing))
    cells = plain.group_min, plain.group_step
    codes = round_jointly(padded_groups(weight, GROUP).flatten(1), *cells, covariance, GROUP, freedom)
    moved = (codes.int() - plain.planes[0].flatten(1).int()).abs()
    assert 0 < int(moved.max()) <= freedom.reach
    nothing = torch.zeros(len(LEVELS), ROWS)
    joint = CalibratedCells(codes.reshape(ROWS, -1, GROUP), *cells, nothing, nothing, COLUMNS).pack(
        weight, plain.layout
    )
    centred = inputs[1] - inputs[1].mean(0)
    for bits in LEVELS:
        before, after = (output_error(weight, read.dequantize(bits), centred) for read in (plain, joint))
        assert after < before * (at_8_bits if bits == 8 else 1.0), bits


def test_weights_that_may_move_far_leave_less_at_few_bits(weight, inputs):
    """The same cells: what is given up at 8 bits is gained at 6 and below."""
    made = [
        calibrate_weight(weight, statistics_of(inputs[0]), group_size=GROUP, freedom=freedom)
        for freedom in (CLOSE, FAR)
    ]
    for index, bits in enumerate(LEVELS[:-1]):
        close, far = (
            output_error(
                weight, corrected(cells.pack(weight, NestedLayout.named("8")), cells, bits), inputs[1],
                cells.level_bias[index].float(),
            )
            for cells in made
        )  # fmt: skip
        assert far < 0.9 * close, bits


def test_weights_on_an_old_grid_are_found_again():
    """Weights that were 4-bit once come back nearly whole at 4 bits; plain cells between the extremes miss the grid."""
    made = torch.Generator().manual_seed(2)
    steps = torch.randint(0, 16, (64, 256), generator=made)
    grid = (steps.float() - 7.3) * 0.02
    found = calibrate_weight(grid, statistics_of(torch.randn(2000, 256, generator=made)), group_size=64)
    plain = quantize_nested(grid, group_size=64)
    calibrated = found.pack(grid, NestedLayout.named("4+4"))
    assert (grid - calibrated.dequantize(4)).square().mean() < 0.6 * (grid - plain.dequantize(4)).square().mean()


def test_a_table_disturbs_logits_half_as_much_and_rows_hardly_more(weight, inputs):
    """As a head on inputs of the same kind, and as an embedding, whose rows are read one by one."""
    plain = quantize_nested(weight, group_size=GROUP, layout="8")
    table = calibrate_table(weight, statistics_of(inputs[0]), group_size=GROUP)
    read = corrected(table.pack(weight, plain.layout), table, 8)
    bias = table.level_bias[LEVELS.index(8)].float()
    assert output_error(weight, read, inputs[1], bias) < 0.5 * output_error(weight, plain.dequantize(8), inputs[1])
    assert (weight - read).square().mean() < 2 * (weight - plain.dequantize(8)).square().mean()
    assert not table.level_bias[: LEVELS.index(8)].any()
    assert not table.level_gain[: LEVELS.index(8)].any()
    with pytest.raises(InvalidTensor, match="do not fit"):
        calibrate_table(weight, statistics_of(torch.ones(5, 8)), group_size=GROUP)


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

"""Integer activations times integer weights: sums are exact integers, rows keep their level, padding adds nothing."""

import pytest
import torch

from tapwb_kernels.layout import join_code, n_groups, split_code
from tapwb_kernels.nested_linear import reference as float_reference
from tapwb_kernels.nested_linear_int8 import grouped, reference


def weight_of(out_features, in_features, group_size, plane_bits, seed=0):
    """Packed random weight: planes, group minimum, group step, low-level fits."""
    generator = torch.manual_seed(seed)
    groups = n_groups(in_features, group_size)
    codes = torch.randint(0, 256, (out_features, groups, group_size), dtype=torch.uint8, generator=generator)
    step = (torch.rand(out_features, groups, generator=generator) / 256).half()
    low = (-128 * step.float() + torch.randn(out_features, groups, generator=generator) * 0.05).half()
    refit = {bits: ((step.float() * 2 ** (8 - bits)).half(), low) for bits in (1, 2)}
    return split_code(codes, plane_bits), low, step, refit


def rows_of(n_rows, in_features, seed=1):
    """Random codes over the whole range, and a scale for each row."""
    generator = torch.manual_seed(seed)
    codes = torch.randint(-127, 128, (n_rows, in_features), dtype=torch.int8, generator=generator)
    return codes, torch.rand(n_rows, generator=generator) + 0.01


@pytest.mark.parametrize("plane_bits", [(4, 4), (4, 1, 1, 2), (2, 1, 1, 4), (1, 1, 2, 4)])
@pytest.mark.parametrize(("in_features", "out_features"), [(17, 33), (192, 64), (100, 1)])
@pytest.mark.parametrize("n_rows", [1, 5])
def test_grouped_equals_the_reference(plane_bits, in_features, out_features, n_rows):
    """Random levels on odd shapes; the integers are equal, so only the sum over groups may round differently."""
    planes, low, step, refit = weight_of(out_features, in_features, 64, plane_bits)
    codes, scale = rows_of(n_rows, in_features)
    bits = torch.randint(1, 9, (n_rows,), generator=torch.manual_seed(n_rows))
    expected = reference.nested_linear_int8(codes, scale, planes, plane_bits, low, step, bits, refit=refit)
    actual = grouped.nested_linear_int8(codes, scale, planes, plane_bits, low, step, bits, refit=refit)
    assert float((actual - expected).norm()) <= 2e-6 * float(expected.norm())


@pytest.mark.parametrize("group_size", [8, 64, 512])
def test_sums_of_products_are_exact_integers(group_size):
    """With scales of one and offsets of zero the result is the integer product, equal to that of 64-bit integers."""
    planes, _, _, _ = weight_of(9, group_size, group_size, (8,))
    codes = torch.full((3, group_size), 127, dtype=torch.int8)
    codes[1] *= -1
    codes[2, ::2] *= -1
    low = torch.full((9, 1), -0.5)  # the middle of the first cell is then 0
    step, ones = torch.ones(9, 1), torch.ones(3)
    expected = codes.long() @ join_code(planes, (8,), 8).reshape(9, group_size).long().T
    assert int(expected.abs().max()) > 1 << 10
    actual = grouped.nested_linear_int8(codes, ones, planes, (8,), low, step, 8)
    assert torch.equal(actual.long(), expected)
    assert torch.equal(
        reference.nested_linear_int8(codes, ones, planes, (8,), low, step, torch.tensor([8] * 3)), actual
    )


def test_groups_whose_sums_would_not_be_exact_are_refused():
    """520 columns of 127 times 255 pass 2**24."""
    planes, low, step, _ = weight_of(2, 520, 520, (4, 4))
    codes, scale = rows_of(1, 520)
    with pytest.raises(ValueError, match="at most 512"):
        grouped.nested_linear_int8(codes, scale, planes, (4, 4), low, step, 8)


@pytest.mark.parametrize("kernel", [grouped, reference])
def test_the_result_is_that_of_the_activations_the_codes_stand_for(kernel):
    """Multiplying the dequantized rows in floating point gives the same, offsets of the weight included."""
    planes, low, step, _ = weight_of(40, 200, 64, (4, 1, 1, 2))
    codes, scale = rows_of(6, 200)
    bits = torch.tensor([3, 4, 5, 6, 8, 4])
    expected = float_reference.nested_linear(codes * scale[:, None], planes, (4, 1, 1, 2), low, step, bits)
    actual = kernel.nested_linear_int8(codes, scale, planes, (4, 1, 1, 2), low, step, bits)
    assert float((actual - expected).norm()) <= 1e-5 * float(expected.norm())


def test_one_level_may_be_given_as_a_number_and_no_rows_give_no_rows():
    """An int stands for that level on every row; an empty batch passes through."""
    planes, low, step, _ = weight_of(40, 200, 64, (4, 4))
    codes, scale = rows_of(3, 200)
    by_tensor = grouped.nested_linear_int8(codes, scale, planes, (4, 4), low, step, torch.tensor([4, 4, 4]))
    assert torch.equal(grouped.nested_linear_int8(codes, scale, planes, (4, 4), low, step, 4), by_tensor)
    empty = grouped.nested_linear_int8(codes[:0], scale[:0], planes, (4, 4), low, step, torch.zeros(0).long())
    assert empty.shape == (0, 40)

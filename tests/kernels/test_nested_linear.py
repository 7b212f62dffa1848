"""Rows at different levels: the grouped product equals the row-by-row one, and computes no row twice.

Seed features: S1.15
"""

import pytest
import torch

from tapwb_kernels.layout import n_groups, split_code
from tapwb_kernels.nested_dequantize import blocked
from tapwb_kernels.nested_linear import grouped, reference


def weight_of(out_features, in_features, group_size, plane_bits, seed=0):
    """Packed random weight: planes, group minimum, group step, low-level fits."""
    generator = torch.manual_seed(seed)
    groups = n_groups(in_features, group_size)
    codes = torch.randint(0, 256, (out_features, groups, group_size), dtype=torch.uint8, generator=generator)
    step = (torch.rand(out_features, groups, generator=generator) / 256).half()
    low = (-128 * step.float() + torch.randn(out_features, groups, generator=generator) * 0.05).half()
    refit = {bits: ((step.float() * 2 ** (8 - bits)).half(), low) for bits in (1, 2)}
    return split_code(codes, plane_bits), low, step, refit


@pytest.mark.parametrize("plane_bits", [(4, 4), (4, 1, 1, 2), (2, 1, 1, 4), (1, 1, 2, 4)])
@pytest.mark.parametrize(("in_features", "out_features"), [(17, 33), (576, 192), (100, 1), (4097, 19)])
@pytest.mark.parametrize("n_rows", [1, 2, 3, 37])
def test_grouped_equals_the_reference(plane_bits, in_features, out_features, n_rows):
    """Random levels on odd shapes, to 1e-5 of the result's size."""
    planes, low, step, refit = weight_of(out_features, in_features, 64, plane_bits)
    generator = torch.manual_seed(n_rows)
    x = torch.randn(n_rows, in_features, generator=generator) + 0.3
    bits = torch.randint(1, 9, (n_rows,), generator=generator)
    bias = torch.randn(out_features, generator=generator)
    expected = reference.nested_linear(x, planes, plane_bits, low, step, bits, refit=refit, bias=bias)
    actual = grouped.nested_linear(x, planes, plane_bits, low, step, bits, refit=refit, bias=bias)
    assert float((actual - expected).norm()) <= 1e-5 * float(expected.norm())


@pytest.mark.parametrize("group_size", [8, 32, 128])
def test_every_group_size_gives_the_same_product(group_size):
    """Group sizes whose planes fill single bytes as well as whole words."""
    planes, low, step, _ = weight_of(65, 300, group_size, (4, 1, 1, 2))
    x, bits = torch.randn(11, 300), torch.tensor([3, 4, 5, 6, 7, 8, 8, 5, 4, 4, 3])
    expected = reference.nested_linear(x, planes, (4, 1, 1, 2), low, step, bits)
    actual = grouped.nested_linear(x, planes, (4, 1, 1, 2), low, step, bits)
    assert float((actual - expected).norm()) <= 1e-5 * float(expected.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n_rows", [1, 9])
def test_results_come_in_the_dtype_of_the_activations(dtype, n_rows):
    """Sums are kept in fp32 and rounded once, at the end."""
    planes, low, step, _ = weight_of(40, 200, 64, (4, 4))
    x = torch.randn(n_rows, 200).to(dtype)
    bits = torch.full((n_rows,), 8)
    actual = grouped.nested_linear(x, planes, (4, 4), low, step, bits)
    exact = reference.nested_linear(x.float(), planes, (4, 4), low, step, bits)
    assert actual.dtype == dtype
    tolerance = max(1e-5, float(torch.finfo(dtype).eps))
    torch.testing.assert_close(actual.float(), exact, rtol=tolerance, atol=tolerance * float(exact.abs().max()))


def test_one_level_may_be_given_as_a_number():
    """An int stands for that level on every row."""
    planes, low, step, _ = weight_of(40, 200, 64, (4, 4))
    x = torch.randn(3, 200)
    by_tensor = grouped.nested_linear(x, planes, (4, 4), low, step, torch.tensor([4, 4, 4]))
    assert torch.equal(grouped.nested_linear(x, planes, (4, 4), low, step, 4), by_tensor)


def test_each_level_is_unpacked_once_and_no_row_computed_twice(monkeypatch):
    """Three levels over 30 rows unpack every block three times, and the rows of all levels add up to 30."""
    planes, low, step, _ = weight_of(64, 128, 64, (4, 4))
    seen_levels, seen_rows = [], []
    real_unpack, real_level = grouped.unpack_lanes, grouped._one_level

    def unpack(planes, plane_bits, bits):
        seen_levels.append(bits)
        return real_unpack(planes, plane_bits, bits)

    def one_level(x, *rest):
        seen_rows.append(x.shape[0])
        return real_level(x, *rest)

    monkeypatch.setattr(grouped, "unpack_lanes", unpack)
    monkeypatch.setattr(grouped, "_one_level", one_level)
    grouped.nested_linear(torch.randn(30, 128), planes, (4, 4), low, step, torch.tensor([4, 5, 8] * 10))
    assert sorted(seen_levels) == [4, 5, 8]
    assert sum(seen_rows) == 30


def test_no_block_of_floats_is_larger_than_its_bound(monkeypatch):
    """The weight is never alive as floats as a whole: each unpacked block stays within BLOCK_WEIGHTS."""
    monkeypatch.setattr(blocked, "BLOCK_WEIGHTS", 1 << 12)
    planes, low, step, _ = weight_of(513, 128, 64, (4, 4))
    sizes, real = [], grouped.unpack_lanes

    def unpack(*args):
        codes = real(*args)
        sizes.append(codes.numel())
        return codes

    monkeypatch.setattr(grouped, "unpack_lanes", unpack)
    x = torch.randn(3, 128)
    actual = grouped.nested_linear(x, planes, (4, 4), low, step, 8)
    assert max(sizes) <= 1 << 12
    assert sum(sizes) == 513 * 128
    expected = reference.nested_linear(x, planes, (4, 4), low, step, torch.tensor([8] * 3))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_no_rows_give_no_rows():
    """An empty batch passes through."""
    planes, low, step, _ = weight_of(40, 200, 64, (4, 4))
    empty = torch.zeros(0, 200)
    assert grouped.nested_linear(empty, planes, (4, 4), low, step, torch.zeros(0, dtype=torch.long)).shape == (0, 40)
    assert grouped.nested_linear(empty, planes, (4, 4), low, step, 4).shape == (0, 40)

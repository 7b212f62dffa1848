"""Dequantizing: the reference equals the formula, the fast path equals the reference."""

import pytest
import torch

from tapwb_kernels.layout import n_groups, split_code
from tapwb_kernels.nested_dequantize import blocked, reference

LAYOUTS = [(4, 4), (4, 1, 1, 2), (2, 1, 1, 4), (8,), (1,) * 8, (1, 2, 1, 4)]


def packed_weight(rows, columns, group_size, plane_bits, seed=0):
    """A random weight in packed form, with its codes for checking by hand."""
    generator = torch.manual_seed(seed)
    groups = n_groups(columns, group_size)
    codes = torch.randint(0, 256, (rows, groups, group_size), dtype=torch.uint8, generator=generator)
    numbers = [torch.randn(rows, groups, generator=generator).half() for _ in range(6)]
    refit = {1: (numbers[2], numbers[3]), 2: (numbers[4], numbers[5])}
    return codes, split_code(codes, plane_bits), numbers[0], numbers[1].abs() / 64, refit


def test_the_reference_is_the_formula_spelled_out():
    """Min + ((code >> (8 - b)) + 1/2) * 2**(8 - b) * step, weight by weight."""
    codes, planes, low, step, refit = packed_weight(3, 21, 16, (4, 1, 1, 2))
    for bits in range(1, 9):
        weight = reference.nested_dequantize(planes, (4, 1, 1, 2), low, step, bits, 21, refit=refit)
        assert weight.shape == (3, 21)
        for row in range(3):
            for column in range(21):
                group, inside = divmod(column, 16)
                q = int(codes[row, group, inside]) >> (8 - bits)
                expected = float(low[row, group]) + (q + 0.5) * 2 ** (8 - bits) * float(step[row, group])
                if bits <= 2:
                    expected = float(refit[bits][1][row, group]) + q * float(refit[bits][0][row, group])
                assert float(weight[row, column]) == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("plane_bits", LAYOUTS)
@pytest.mark.parametrize("group_size", [8, 32, 64, 128])
@pytest.mark.parametrize("columns", [1, 17, 576])
def test_the_fast_path_equals_the_reference(plane_bits, group_size, columns):
    """At every level, on shapes no kernel likes."""
    _, planes, low, step, refit = packed_weight(7, columns, group_size, plane_bits)
    for bits in range(1, 9):
        expected = reference.nested_dequantize(planes, plane_bits, low, step, bits, columns, refit=refit)
        torch.testing.assert_close(
            blocked.nested_dequantize(planes, plane_bits, low, step, bits, columns, refit=refit),
            expected,
            rtol=1e-6,
            atol=1e-6,
        )


@pytest.mark.parametrize("columns", [1536, 4097])
def test_blocks_of_rows_join_without_a_seam(columns, monkeypatch):
    """A weight of many blocks, whose last is shorter, equals the reference."""
    monkeypatch.setattr(blocked, "BLOCK_WEIGHTS", 1 << 14)
    _, planes, low, step, _ = packed_weight(83, columns, 64, (4, 4))
    expected = reference.nested_dequantize(planes, (4, 4), low, step, 8, columns)
    torch.testing.assert_close(blocked.nested_dequantize(planes, (4, 4), low, step, 8, columns), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_result_goes_where_and_as_it_was_asked(dtype):
    """Dtype and out are honoured; out is filled completely."""
    _, planes, low, step, _ = packed_weight(5, 70, 64, (4, 4))
    expected = reference.nested_dequantize(planes, (4, 4), low, step, 4, 70, dtype)
    out = torch.full((5, 70), float("nan"), dtype=dtype)
    assert blocked.nested_dequantize(planes, (4, 4), low, step, 4, 70, out=out) is out
    torch.testing.assert_close(out, expected)
    assert blocked.nested_dequantize(planes, (4, 4), low, step, 4, 70, dtype).dtype == dtype


@pytest.mark.parametrize(("rows", "columns"), [(0, 64), (5, 0), (0, 0)])
def test_an_empty_weight_gives_an_empty_result(rows, columns):
    """No rows or no columns is a shape like any other."""
    _, planes, low, step, _ = packed_weight(rows, columns, 64, (4, 4))
    assert reference.nested_dequantize(planes, (4, 4), low, step, 8, columns).shape == (rows, columns)
    assert blocked.nested_dequantize(planes, (4, 4), low, step, 8, columns).shape == (rows, columns)

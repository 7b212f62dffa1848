"""Products by embedding bags, for machines without a compiler: right on every layout, and used only where they pay.

Seed features: S1.15
"""

import copy

import pytest
import torch

from tapwb_kernels.layout import n_groups, split_code
from tapwb_kernels.nested_dequantize.reference import nested_dequantize
from tapwb_kernels.nested_linear import bag_choice, bags
from tapwb_kernels.nested_linear.bag_choice import RELATIVE_ERROR, BagChoice
from tapwb_kernels.nested_linear.choice import random_weight

LAYOUTS = [(4, 4), (4, 1, 1, 2), (2, 1, 1, 4), (1, 1, 2, 4), (1, 4, 1, 2), (1,) * 8, (8,)]

pytestmark = pytest.mark.skipif(bool(bags.why_not()), reason=bags.why_not())


def exact(weight, x, bits):
    """The product in fp64."""
    planes, plane_bits, low, step = weight.stored
    dense = nested_dequantize(planes, plane_bits, low, step, bits, weight.cols, refit=weight.refit)
    return x.double() @ dense.double().T


def table_of(weight):
    """The weight column by column."""
    return bags.lay_out(*weight.stored)


def activations(n_rows, cols, seed=0):
    """Random, and not around zero, so that minima count."""
    return torch.randn(n_rows, cols, generator=torch.Generator().manual_seed(seed)) + 0.3


@pytest.mark.parametrize("plane_bits", LAYOUTS, ids=str)
@pytest.mark.parametrize(("out", "cols", "size"), [(1, 17, 8), (33, 100, 64), (200, 576, 64), (65, 300, 128)])
def test_bags_equal_exact_arithmetic_at_every_level(plane_bits, out, cols, size):
    """To 1e-5 of the norm, few rows and many, on shapes that fill neither a word nor a group."""
    weight = random_weight(out, cols, plane_bits, size)
    columns = table_of(weight)
    for bits in range(1, 9):
        for n_rows in (1, 2, bags.BAG_ROWS, bags.BAG_ROWS + 1, 37):
            x = activations(n_rows, cols, seed=bits)
            expected = exact(weight, x, bits)
            actual = bags.nested_linear(x, columns, bits, refit=weight.refit)
            assert float((actual - expected).norm()) <= RELATIVE_ERROR * float(expected.norm()), (bits, n_rows)


def test_copies_of_masked_rows_are_made_in_parts(monkeypatch):
    """A level between two planes copies rows; the copies stay within their bound and give the same sums."""
    weight = random_weight(200, 640, (4, 4), 64)
    whole = bags.nested_linear(activations(1, 640), table_of(weight), 6)
    sizes, real = [], bags._copy

    def made(*args):
        made_of = real(*args)
        sizes.append(made_of[-1].numel())
        return made_of

    monkeypatch.setattr(bags, "_copy", made)
    monkeypatch.setattr(bags, "_COPY_BYTES", 3 * 64 * 104)
    parts = bags.nested_linear(activations(1, 640), table_of(weight), 6)
    assert len(sizes) == 4
    assert max(sizes) <= 3 * 64 * 104
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("plane_bits", LAYOUTS, ids=str)
@pytest.mark.parametrize("out", [1, 9, 200])
def test_the_planes_come_back_bit_for_bit(plane_bits, out):
    """Whoever asks for planes gets those the table was made of."""
    weight = random_weight(out, 100, plane_bits, 64)
    for plane, again in zip(weight.stored[0], table_of(weight).planes(), strict=True):
        assert torch.equal(plane, again)


def test_a_large_weight_is_laid_out_in_blocks_without_a_seam(monkeypatch):
    """Blocks of outputs, the last of them odd."""
    monkeypatch.setattr(bags, "BLOCK_WEIGHTS", 64 * 16)
    weight = random_weight(37, 64, (4, 4), 64)
    columns = table_of(weight)
    for plane, again in zip(weight.stored[0], columns.planes(), strict=True):
        assert torch.equal(plane, again)
    x = activations(9, 64)
    expected = exact(weight, x, 8)
    assert float((bags.nested_linear(x, columns, 8) - expected).norm()) <= RELATIVE_ERROR * float(expected.norm())


def test_a_table_takes_the_bytes_of_the_planes_and_the_ends_of_its_rows():
    """Memory is a promise: 4 bytes for a row of 4-bit codes, 8 for one of bytes, and one row of ones."""
    for plane_bits, end, per_byte in (((4, 4), 4, 2), ((8,), 8, 1)):
        weight = random_weight(576, 640, plane_bits, 64)
        columns = table_of(weight)
        rows = 640 * per_byte + 1
        assert columns.table.numel() == rows * (576 // per_byte + end)
        assert columns.table.numel() <= 1.02 * sum(plane.numel() for plane in weight.stored[0])
        assert columns.numbers.numel() == 2 * weight.stored[2].numel()
        assert columns.numbers.dtype == weight.stored[2].dtype


@pytest.mark.parametrize("n_rows", [2, 3, 4])
def test_a_row_of_bags_does_not_depend_on_the_rows_beside_it(n_rows):
    """Bit for bit, at every level; a NaN stays in its row."""
    weight = random_weight(200, 320, (4, 1, 1, 2), 64)
    columns, x = table_of(weight), activations(n_rows, 320)
    for bits in (2, 4, 5, 6, 8):
        together = bags.nested_linear(x, columns, bits, refit=weight.refit)
        for row in range(n_rows):
            assert torch.equal(
                bags.nested_linear(x[row : row + 1], columns, bits, refit=weight.refit)[0], together[row]
            )
        broken = x.clone()
        broken[1, 7] = float("nan")
        found = bags.nested_linear(broken, columns, bits, refit=weight.refit)
        assert bool(found[1].isnan().all())
        assert torch.equal(found[0], together[0])


def test_rows_of_several_levels_are_computed_at_their_own():
    """Planned levels of a prompt."""
    weight = random_weight(40, 200, (4, 4), 64)
    columns, x = table_of(weight), activations(5, 200)
    bits = torch.tensor([8, 4, 8, 3, 4])
    actual = bags.nested_linear(x, columns, bits)
    for row, level in enumerate(bits.tolist()):
        expected = exact(weight, x[row : row + 1], level)[0]
        assert float((actual[row] - expected).norm()) <= RELATIVE_ERROR * float(expected.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n_rows", [1, 9])
def test_results_come_in_the_dtype_of_the_activations(dtype, n_rows):
    """Sums are fp32 and rounded once, at the end."""
    weight = random_weight(40, 200, (4, 4), 64)
    x = activations(n_rows, 200).to(dtype)
    actual = bags.nested_linear(x, table_of(weight), 8)
    assert actual.dtype == dtype
    bound = max(RELATIVE_ERROR, float(torch.finfo(dtype).eps))
    expected = exact(weight, x.float(), 8)
    assert float((actual.double() - expected).norm()) <= bound * float(expected.norm())


def test_metadata_of_32_bits_is_kept():
    """Weights beyond the range of fp16."""
    weight = random_weight(40, 200, (4, 4), 64)
    planes, plane_bits, low, step = weight.stored
    columns = bags.lay_out(planes, plane_bits, low.float() * 1e6, step.float() * 1e6)
    expected = exact(weight, activations(1, 200), 8) * 1e6
    actual = bags.nested_linear(activations(1, 200), columns, 8)
    assert float((actual - expected).norm()) <= RELATIVE_ERROR * float(expected.norm())


def test_what_cannot_be_read_is_refused_and_nothing_gives_nothing():
    """1 and 2 bits without a scale of their own; no rows; no columns."""
    weight = random_weight(40, 200, (4, 4), 64)
    columns = table_of(weight)
    with pytest.raises(ValueError, match="2 bits have no refitted scale"):
        bags.nested_linear(activations(1, 200), columns, 2)
    assert bags.nested_linear(torch.zeros(0, 200), columns, 8).shape == (0, 40)
    assert bags.nested_linear(torch.zeros(0, 200), columns, torch.zeros(0, dtype=torch.long)).shape == (0, 40)


def test_tables_made_in_inference_mode_serve_outside_it():
    """Decoding warms what a score outside of inference mode then uses, and the other way about."""
    weight = random_weight(200, 320, (4, 4), 64)
    with torch.inference_mode():
        columns = table_of(weight)
        first = bags.nested_linear(activations(1, 320), columns, 6)
    assert torch.equal(bags.nested_linear(activations(1, 320), columns, 6), first)
    assert torch.equal(bags.nested_linear(activations(1, 320), copy.deepcopy(columns), 6), first)


def test_a_planted_fault_is_found_by_the_self_test(monkeypatch):
    """Off by a ten-thousandth, or NaN: such bags are not used, and the reason is told."""
    real = bags.nested_linear
    for fault in (1.0001, float("nan")):
        monkeypatch.setattr(bags, "nested_linear", lambda *args, f=fault, **kwargs: real(*args, **kwargs) * f)
        verdict = BagChoice().verdict((4, 4), 64)
        assert not verdict.is_used
        assert "wrong on this machine" in verdict.reason


def test_slow_or_absent_bags_are_not_used(monkeypatch):
    """A PyTorch without these operators, or one whose grouped path is faster."""
    monkeypatch.setattr(bag_choice, "_times_us", lambda weight, bits: (30.0, 20.0))
    choice = BagChoice()
    assert choice.verdict((4, 4), 64).reason == "embedding bags are slower here: 4 bits 30 against 20 microseconds"
    assert not choice.is_used()
    monkeypatch.setattr(bags, "_BAGS", {4: None, 8: None})
    assert BagChoice().verdict((4, 4), 64).reason == "this PyTorch has no embedding bags of 4 and 8 bits"


def test_a_verdict_is_made_once(monkeypatch):
    """Fast and right: used, for as long as the process lives."""
    asked = []
    monkeypatch.setattr(bag_choice, "_times_us", lambda weight, bits: asked.append(bits) or (20.0, 30.0))
    choice = BagChoice()
    assert choice.verdict((4, 1, 1, 2), 64).is_used
    assert choice.verdict([4, 1, 1, 2], 64).is_used
    assert choice.is_used()
    assert asked == [4, 5, 6, 8]


def test_every_group_of_a_padded_weight_is_in_the_table():
    """Rows of a table: two a column, one of ones."""
    codes = torch.randint(0, 256, (10, n_groups(100, 64), 64), dtype=torch.uint8)
    low = torch.zeros(10, 2, dtype=torch.float16)
    columns = bags.lay_out(split_code(codes, (4, 4)), (4, 4), low, low + 1)
    assert columns.table.shape[0] == 2 * 128 + 1
    assert (columns.group_size, columns.entry_bits) == (64, 4)

"""The native product: right to its bound on odd shapes, layouts and levels, whatever is computed beside it.

Seed features: S1.15
"""

import pytest
import torch

from tapwb_kernels.layout import n_groups, split_code
from tapwb_kernels.native_build import NativeUnavailable, processor
from tapwb_kernels.nested_dequantize.reference import nested_dequantize
from tapwb_kernels.nested_linear import native

LAYOUTS = [(8,), (4, 4), (4, 1, 1, 2), (2, 1, 1, 4), (2, 1, 1, 1, 1, 2), (1, 1, 2, 4), (2, 2, 2, 2)]
VARIANTS = {"avx-512": ("-DTAP_NO_TILES",), "avx2": ("-march=haswell",), "portable": ("-DTAP_PORTABLE",)}


@pytest.fixture(scope="module")
def kernel(native_folder):
    """The kernel as this machine uses it."""
    return load_or_skip(native_folder)


def load_or_skip(native_folder, defines=()):
    """The kernel, or the reason there is none."""
    try:
        return native.load(native_folder, defines=defines)
    except NativeUnavailable as error:
        pytest.skip(str(error))


def weight_of(out_features, in_features, group_size, plane_bits, seed=0, dtype=torch.float16):
    """Random weight: what a kernel is given, and the fits of 1 and 2 bits."""
    generator = torch.Generator().manual_seed(seed)
    groups = n_groups(in_features, group_size)
    codes = torch.randint(0, 256, (out_features, groups, group_size), dtype=torch.uint8, generator=generator)
    step = (torch.rand(out_features, groups, generator=generator) / 256).to(dtype)
    low = (torch.randn(out_features, groups, generator=generator) * 0.05 - 128 * step.float()).to(dtype)
    refit = {bits: ((step.float() * 2 ** (8 - bits)).to(dtype), low) for bits in (1, 2)}
    return (split_code(codes, plane_bits), plane_bits, low, step), refit


def exact(x, stored, bits, refit):
    """The product in double precision."""
    planes, plane_bits, low, step = stored
    weight = nested_dequantize(planes, plane_bits, low, step, bits, x.shape[1], refit=refit)
    return x.double() @ weight.double().T


def relative_error(actual, expected):
    """As a share of the norm of what is right."""
    return float((actual.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("plane_bits", LAYOUTS, ids=lambda widths: "+".join(map(str, widths)))
@pytest.mark.parametrize(
    ("out_features", "in_features", "group_size"),
    [
        (17, 576, 64),
        (576, 17, 64),
        (9, 1536, 128),
        (5, 4097, 64),
        (33, 300, 128),
        (7, 100, 24),
        (19, 96, 8),
        (3, 70, 32),
    ],
)
def test_every_level_of_every_layout_is_right(kernel, plane_bits, out_features, in_features, group_size):
    """1 to 8 rows on shapes that fill neither groups nor blocks, to 1e-4 of the result's norm."""
    stored, refit = weight_of(out_features, in_features, group_size, plane_bits)
    x = torch.randn(8, in_features, generator=torch.Generator().manual_seed(1)) + 0.3
    for bits in range(1, 9):
        expected = exact(x, stored, bits, refit)
        actual = kernel.nested_linear(x, *stored, bits, refit=refit)
        assert actual.shape == (8, out_features)
        assert relative_error(actual, expected) <= native.RELATIVE_ERROR


@pytest.mark.parametrize("out_features", [1536, 4097])
def test_large_weights_are_right_on_one_and_two_threads(kernel, out_features):
    """Blocks of rows that threads take from each other leave no row out."""
    stored, refit = weight_of(out_features, 576, 64, (4, 1, 1, 2))
    x = torch.randn(1, 576, generator=torch.Generator().manual_seed(1))
    expected = exact(x, stored, 5, refit)
    one = kernel.nested_linear(x, *stored, 5)
    assert relative_error(one, expected) <= native.RELATIVE_ERROR
    for n_threads in (2, 3):
        assert torch.equal(kernel.nested_linear(x, *stored, 5, n_threads=n_threads), one)


@pytest.mark.parametrize("plane_bits", [(8,), (4, 4), (4, 1, 1, 2)], ids=str)
@pytest.mark.parametrize("group_size", [64, 40])
def test_a_row_does_not_depend_on_the_rows_beside_it(kernel, plane_bits, group_size):
    """To the last bit, for 1 to 8 rows: what a draft and its verification compute is the same."""
    stored, _ = weight_of(50, 576, group_size, plane_bits)
    x = torch.randn(8, 576, generator=torch.Generator().manual_seed(2))
    for bits in (4, 5, 8):
        together = kernel.nested_linear(x, *stored, bits)
        for n_rows in range(1, 8):
            assert torch.equal(kernel.nested_linear(x[:n_rows], *stored, bits), together[:n_rows])


@pytest.mark.parametrize("variant", ["avx-512", "avx2", "portable"])
def test_other_processors_get_the_same_product(native_folder, variant):
    """The loops of older and of other processors, built here and held to the same bound."""
    needed = {"avx-512": "avx512vl", "avx2": "avx2"}.get(variant, "")
    if needed not in processor():
        pytest.skip(f"this processor has no {variant}")
    other = load_or_skip(native_folder, VARIANTS[variant])
    assert variant in other.instructions.lower()
    for plane_bits in LAYOUTS:
        for group_size in (24, 64, 128):
            stored, refit = weight_of(18, 300, group_size, plane_bits)
            x = torch.randn(7, 300, generator=torch.Generator().manual_seed(3)) + 0.3
            for bits in range(1, 9):
                expected = exact(x, stored, bits, refit)
                actual = other.nested_linear(x, *stored, bits, refit=refit)
                assert relative_error(actual, expected) <= native.RELATIVE_ERROR
                assert torch.equal(other.nested_linear(x[:1], *stored, bits, refit=refit), actual[:1])


def test_panels_multiply_many_rows_where_there_are_no_tiles(native_folder):
    """AVX-512 without AMX: the same bound, and rows that do not depend on each other."""
    other = load_or_skip(native_folder, VARIANTS["avx-512"])
    if not other.panel_group:
        pytest.skip("this processor has no AVX-512")
    for group_size in (24, 64, 128):
        stored, refit = weight_of(67, 300, group_size, (4, 1, 1, 2))
        x = torch.randn(23, 300, generator=torch.Generator().manual_seed(1)) + 0.3
        for bits in range(1, 9):
            actual = other.nested_linear(x, *stored, bits, refit=refit)
            assert relative_error(actual, exact(x, stored, bits, refit)) <= native.RELATIVE_ERROR
            assert torch.equal(other.nested_linear(x[3:13], *stored, bits, refit=refit), actual[3:13])


@pytest.mark.parametrize("spread", [1.0, 1e4])
def test_the_error_stays_within_what_the_digits_allow(kernel, spread):
    """Element by element: |w| summed over a group, times the group's largest activation, over 65278."""
    stored, _ = weight_of(40, 576, 64, (4, 4))
    x = torch.randn(4, 576, generator=torch.Generator().manual_seed(4))
    x[:, ::97] *= spread
    planes, plane_bits, low, step = stored
    weight = nested_dequantize(planes, plane_bits, low, step, 8, 576).double()
    largest = x.double().abs().view(4, 9, 64).amax(-1)
    bound = largest @ weight.abs().view(40, 9, 64).sum(-1).T / 65278
    error = (kernel.nested_linear(x, *stored, 8).double() - x.double() @ weight.T).abs()
    # fp32 sums add a few units in the last place of the largest term.
    assert bool((error <= bound + 1e-6 * (x.double().abs() @ weight.abs().T)).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_results_come_in_the_dtype_of_the_activations(kernel, dtype):
    """Sums are kept in fp32 and rounded once, at the end."""
    stored, _ = weight_of(40, 200, 64, (4, 4))
    x = torch.randn(3, 200, generator=torch.Generator().manual_seed(5)).to(dtype)
    actual = kernel.nested_linear(x, *stored, 8)
    assert actual.dtype == dtype
    tolerance = max(native.RELATIVE_ERROR, float(torch.finfo(dtype).eps))
    assert relative_error(actual, exact(x.float(), stored, 8, {})) <= tolerance


@pytest.mark.parametrize("group_size", [64, 24])
def test_wide_metadata_and_tiny_steps_are_read_exactly(kernel, group_size):
    """fp32 metadata, and fp16 steps below the smallest normal number."""
    x = torch.randn(2, 300, generator=torch.Generator().manual_seed(6))
    for dtype, scale in ((torch.float32, 1e6), (torch.float16, 2e-3)):
        (planes, widths, low, step), _ = weight_of(21, 300, group_size, (4, 4), dtype=dtype)
        stored = (planes, widths, (low.float() * scale).to(dtype), (step.float() * scale).to(dtype))
        assert relative_error(kernel.nested_linear(x, *stored, 8), exact(x, stored, 8, {})) <= native.RELATIVE_ERROR


def test_rows_of_zeros_and_of_nan_stay_what_they_are(kernel):
    """Zeros give zeros; a NaN or an infinity spoils its own row and no other."""
    stored, _ = weight_of(30, 200, 64, (4, 4))
    x = torch.randn(4, 200, generator=torch.Generator().manual_seed(7))
    x[0], x[1, 3], x[2, 150] = 0.0, float("nan"), float("inf")
    y = kernel.nested_linear(x, *stored, 8)
    assert torch.equal(y[0], torch.zeros(30))
    assert bool(torch.isnan(y[1:3]).all())
    assert torch.equal(y[3:], kernel.nested_linear(x[3:], *stored, 8))


def test_planes_below_the_level_are_never_read(kernel):
    """At 4 bits the result is the same whatever the lower planes hold, and even if they are gone."""
    (planes, widths, low, step), _ = weight_of(30, 200, 64, (4, 1, 1, 2))
    x = torch.randn(2, 200, generator=torch.Generator().manual_seed(8))
    whole = kernel.nested_linear(x, planes, widths, low, step, 4)
    gone = (planes[0], *(torch.empty(0, dtype=torch.uint8) for _ in planes[1:]))
    assert torch.equal(kernel.nested_linear(x, gone, widths, low, step, 4), whole)


def test_what_the_kernel_does_not_take_is_refused_with_the_reason(kernel):
    """No rows, gradients, doubles, strided weights, levels without a fit."""
    stored, _ = weight_of(30, 200, 64, (4, 4))
    planes, widths, low, step = stored
    x = torch.randn(9, 200)
    with pytest.raises(ValueError, match="at least one row"):
        kernel.nested_linear(x[:0], *stored, 8)
    with pytest.raises(ValueError, match="no gradient"):
        kernel.nested_linear(x[:1].clone().requires_grad_(), *stored, 8)
    with pytest.raises(ValueError, match=r"float64"):
        kernel.nested_linear(x[:1].double(), *stored, 8)
    with pytest.raises(ValueError, match="contiguous"):
        kernel.nested_linear(x[:1], planes, widths, low.T.contiguous().T, step, 8)
    with pytest.raises(ValueError, match="no refitted"):
        kernel.nested_linear(x[:1], *stored, 2)


def test_tensors_that_do_not_fit_each_other_are_never_read(kernel):
    """Planes cut short, metadata of another weight, more columns than groups hold."""
    (planes, widths, low, step), _ = weight_of(30, 200, 64, (4, 4))
    x = torch.randn(1, 200)
    with pytest.raises(ValueError, match=r"a plane of 4 bits has 3712 bytes, not 3840"):
        kernel.nested_linear(x, (planes[0], planes[1][:29].contiguous()), widths, low, step, 8)
    with pytest.raises(ValueError, match="do not fit"):
        kernel.nested_linear(x, planes, widths, low, step[:29].contiguous(), 8)
    with pytest.raises(ValueError, match="257 columns do not fit 4 groups of 64"):
        kernel.nested_linear(torch.randn(1, 257), planes, widths, low, step, 8)


@pytest.mark.parametrize("plane_bits", LAYOUTS, ids=lambda widths: "+".join(map(str, widths)))
@pytest.mark.parametrize(
    ("out_features", "in_features", "group_size"), [(17, 577, 64), (65, 40, 8), (32, 300, 24), (67, 700, 128)]
)
def test_many_rows_are_right(kernel, plane_bits, out_features, in_features, group_size):
    """Panels that are not full, groups that are not full, tiles that are not full: to 1e-4 of the result's norm."""
    if not kernel.takes(9, group_size):
        pytest.skip("this processor multiplies many rows in PyTorch")
    stored, refit = weight_of(out_features, in_features, group_size, plane_bits)
    x = torch.randn(23, in_features, generator=torch.Generator().manual_seed(1)) + 0.3
    x[4] = 0
    for bits in range(1, 9):
        expected = exact(x, stored, bits, refit)
        actual = kernel.nested_linear(x, *stored, bits, refit=refit)
        assert relative_error(actual, expected) <= native.RELATIVE_ERROR
        assert torch.equal(actual[4], torch.zeros(out_features))
        # A row among many does not depend on the others, to the last bit, nor on the number of threads.
        assert torch.equal(kernel.nested_linear(x[3:13], *stored, bits, refit=refit), actual[3:13])
        assert torch.equal(kernel.nested_linear(x, *stored, bits, refit=refit, n_threads=3), actual)


@pytest.mark.parametrize("plane_bits", LAYOUTS, ids=lambda widths: "+".join(map(str, widths)))
@pytest.mark.parametrize(("out_features", "in_features", "group_size"), [(17, 577, 64), (67, 700, 128), (96, 1600, 64)])
def test_rows_that_may_be_rounded_are_right_to_bf16(kernel, plane_bits, out_features, in_features, group_size):
    """Tiles that are not full, chunks of columns that are not full: to 4e-3 of the norm, each row by itself."""
    if not kernel.rounds(9, group_size):
        pytest.skip("this processor does not multiply many rows in bf16")
    stored, refit = weight_of(out_features, in_features, group_size, plane_bits)
    x = torch.randn(45, in_features, generator=torch.Generator().manual_seed(1)) + 0.3
    x[4] = 0
    for bits in range(1, 9):
        options = {"refit": refit, "may_round": True}
        actual = kernel.nested_linear(x, *stored, bits, **options)
        assert relative_error(actual, exact(x, stored, bits, refit)) <= native.ROUNDED_RELATIVE_ERROR
        assert torch.equal(actual[4], torch.zeros(out_features))
        assert torch.equal(kernel.nested_linear(x[3:20], *stored, bits, **options), actual[3:20])
        assert torch.equal(kernel.nested_linear(x, *stored, bits, n_threads=3, **options), actual)


def test_rounding_is_that_of_bf16_and_of_no_more_than_eight_rows(kernel):
    """Element by element: half a unit in the last of 8 binary digits, of activation and of weight; fp32 sums."""
    if not kernel.rounds(9, 64):
        pytest.skip("this processor does not multiply many rows in bf16")
    stored, _ = weight_of(50, 600, 64, (4, 4))
    x = torch.randn(40, 600, generator=torch.Generator().manual_seed(4))
    x[:, ::97] *= 1e4
    planes, plane_bits, low, step = stored
    weight = nested_dequantize(planes, plane_bits, low, step, 8, 600).double()
    error = (kernel.nested_linear(x, *stored, 8, may_round=True).double() - x.double() @ weight.T).abs()
    assert bool((error <= x.double().abs() @ weight.abs().T * (2**-7 + 2**-15)).all())
    few = kernel.nested_linear(x[:8], *stored, 8, may_round=True)
    assert torch.equal(few, kernel.nested_linear(x[:8], *stored, 8))
    assert not torch.equal(few, kernel.nested_linear(x, *stored, 8, may_round=True)[:8])


@pytest.mark.parametrize("may_round", [False, True])
def test_an_infinity_in_a_prompt_spoils_its_own_row(kernel, may_round):
    """As in a step: the row is NaN, whatever the weight."""
    if not kernel.takes(9, 64):
        pytest.skip("this processor multiplies many rows in PyTorch")
    stored, _ = weight_of(40, 200, 64, (4, 4))
    x = torch.randn(20, 200, generator=torch.Generator().manual_seed(1))
    whole = kernel.nested_linear(x, *stored, 8, may_round=may_round)
    x[3, 7], x[18, 0] = float("inf"), float("-inf")
    y = kernel.nested_linear(x, *stored, 8, may_round=may_round)
    assert y[[3, 18]].isnan().all()
    others = [row for row in range(20) if row not in (3, 18)]
    assert torch.equal(y[others], whole[others])


def test_many_rows_in_bf16_and_with_nan(kernel):
    """A row with NaN is NaN, its neighbours are not; bf16 comes back as bf16, rounded once."""
    if not kernel.takes(9, 64):
        pytest.skip("this processor multiplies many rows in PyTorch")
    stored, _ = weight_of(40, 200, 64, (4, 4))
    x = torch.randn(12, 200, generator=torch.Generator().manual_seed(1))
    x[7, 5] = float("nan")
    y = kernel.nested_linear(x, *stored, 8)
    assert y[7].isnan().all()
    assert y[[*range(7), *range(8, 12)]].isfinite().all()
    narrow = x.bfloat16()
    torch.testing.assert_close(
        kernel.nested_linear(narrow, *stored, 8)[:7],
        kernel.nested_linear(narrow.float(), *stored, 8)[:7].bfloat16(), rtol=0, atol=0,
    )  # fmt: skip


def test_many_rows_are_refused_where_there_is_no_loop_for_them(native_folder):
    """The portable build has none, and groups beyond 128 columns could overflow the sums."""
    portable = load_or_skip(native_folder, VARIANTS["portable"])
    stored, _ = weight_of(4, 64, 64, (4, 4))
    assert portable.panel_group == 0
    with pytest.raises(ValueError, match="takes no 9 rows"):
        portable.nested_linear(torch.ones(9, 64), *stored, 8)
    assert not load_or_skip(native_folder).takes(9, 256)

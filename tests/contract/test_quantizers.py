"""The contract of a quantization scheme; every registered one must pass, a new file needs no edit here.

Seed features: S1.10, S1.11, S1.12, S1.13
"""

import pytest
import torch

from tapwb.core.errors import InvalidTensor, UnsupportedBits
from tapwb.quant import PrecisionManager, quantizers
from tapwb.quant.granularity import GRANULARITIES

pytestmark = pytest.mark.parametrize("scheme", quantizers.names())

SHAPES = [(17,), (3, 17), (5, 576), (2, 3, 70), (1, 4097), (4, 1)]


def widths(scheme):
    """Bit-widths the scheme offers."""
    return range(quantizers.entry(scheme).metadata.get("min_bits", 2), 9)


def cases(shapes):
    """Every granularity with every shape, but for a vector per channel: it has nothing to share (tested on its own)."""
    return [(name, shape) for name in GRANULARITIES for shape in shapes if name != "per_channel" or len(shape) > 1]


def test_it_says_what_it_is(scheme):
    """A summary for lists, a docstring for readers."""
    entry = quantizers.entry(scheme)
    assert len(entry.summary) > 20
    assert quantizers[scheme].__doc__


@pytest.mark.parametrize(("granularity", "shape"), cases(SHAPES))
def test_shape_and_dtype_survive(scheme, granularity, shape):
    """Any shape, any floating dtype, finite values out."""
    manager = PrecisionManager(scheme, granularity, group_size=32)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        values = torch.randn(shape, generator=torch.manual_seed(1)).to(dtype)
        result = manager.fake_quantize(values, 5)
        assert (result.shape, result.dtype) == (values.shape, dtype)
        assert bool(torch.isfinite(result).all())


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_eight_bits_are_close_and_two_bits_are_bounded(scheme, granularity):
    """At 8 bits within 5 % of the norm of Gaussian values, at the lowest width not far beyond it."""
    values = torch.randn(32, 1536, generator=torch.manual_seed(2))
    manager = PrecisionManager(scheme, granularity)
    assert manager.error(values, 8).relative < 0.05
    assert manager.error(values, min(widths(scheme))).relative < 1.2


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("value", [0.0, 0.1, -1 / 3, 2.5, -7e-9, 3e5])
def test_a_constant_comes_back_exactly(scheme, granularity, value):
    """At every width; for nested, whose cells have a middle, the step is 0."""
    values = torch.full((3, 70), value)
    for bits in widths(scheme):
        assert torch.equal(PrecisionManager(scheme, granularity).fake_quantize(values, bits), values)


@pytest.mark.parametrize(("granularity", "shape"), cases([(0,), (0, 8), (8, 0), (2, 0, 3)]))
def test_an_empty_tensor_stays_empty(scheme, granularity, shape):
    """No values, no bytes, the same shape, no error."""
    manager = PrecisionManager(scheme, granularity)
    quantized = manager.quantize(torch.zeros(shape), 4)
    assert manager.dequantize(quantized).shape == shape
    assert quantized.packed.numel() == 0
    assert manager.error(torch.zeros(shape), 4).mse == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_refused_with_their_place(scheme, bad):
    """The message names the position and the way out."""
    values = torch.zeros(4, 70)
    values[2, 33] = bad
    with pytest.raises(InvalidTensor, match=r"\[2, 33\].*1 of 280.*nan_to_num"):
        PrecisionManager(scheme).quantize(values, 4)


@pytest.mark.parametrize("bits", [-1, 0, 9, 16, 3.5, True])
def test_widths_it_does_not_have_are_refused(scheme, bits):
    """The message says which there are."""
    with pytest.raises(UnsupportedBits, match="to 8"):
        PrecisionManager(scheme).quantize(torch.randn(4, 64), bits)


@pytest.mark.parametrize(
    "tensor", [torch.tensor(1.0), torch.arange(64).view(1, 64), torch.zeros(2, 64, dtype=torch.bool)]
)
def test_what_is_not_an_array_of_numbers_is_refused(scheme, tensor):
    """Scalars, integers and booleans."""
    with pytest.raises(InvalidTensor):
        PrecisionManager(scheme).quantize(tensor, 4)


def test_codes_fit_their_width_and_bytes_are_counted(scheme):
    """Packed size is exactly bits per code; effective bits count the numbers per group."""
    values = torch.randn(16, 640, generator=torch.manual_seed(3))
    for bits in widths(scheme):
        quantized = PrecisionManager(scheme).quantize(values, bits)
        assert int(quantized.codes().max()) < 1 << bits
        assert quantized.packed.numel() == values.numel() * bits // 8
        assert bits < quantized.effective_bits <= bits + 0.5


def test_outliers_beyond_half_precision_are_kept(scheme):
    """A group whose scale fp16 cannot hold is stored with fp32 numbers, not as infinity."""
    values = torch.randn(2, 128, generator=torch.manual_seed(4)) * 1e6
    assert PrecisionManager(scheme).error(values, 8).relative < 0.05


def test_the_order_of_rows_does_not_matter(scheme):
    """Groups know nothing of each other: permuting rows permutes the result."""
    values = torch.randn(6, 96, generator=torch.manual_seed(5))
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    manager = PrecisionManager(scheme, group_size=32)
    assert torch.equal(manager.fake_quantize(values[order], 4), manager.fake_quantize(values, 4)[order])


def test_unusual_layouts_in_memory_give_the_same_codes(scheme):
    """Transposed and sliced tensors are read by value, not by storage."""
    base = torch.randn(130, 70, generator=torch.manual_seed(6))
    strided = base.T[::2]
    manager = PrecisionManager(scheme)
    assert torch.equal(manager.fake_quantize(strided, 4), manager.fake_quantize(strided.contiguous(), 4))

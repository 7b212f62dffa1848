"""Weights laid out by columns are the same weights: to run, to save, to load, to move, to copy.

Seed features: S1.15
"""

import copy
from pathlib import Path

import pytest
import torch

from tapwb.core.errors import UnsupportedBits
from tapwb.core.jobs import NO_PROGRESS
from tapwb.engine import TAPConfig, TAPEngine
from tapwb.execution import decode, dispatch
from tapwb.execution.columns import lay_by_columns, lay_by_rows
from tapwb.execution.packed import PackedWeight
from tapwb.quant.nested import quantize_nested
from tapwb_kernels.native_build import NativeUnavailable
from tapwb_kernels.nested_linear import bag_choice, bags
from tapwb_kernels.nested_linear.bag_choice import BagChoice
from tapwb_kernels.nested_linear.choice import NativeChoice

pytestmark = pytest.mark.skipif(bool(bags.why_not()), reason=bags.why_not())


@pytest.fixture
def without_compiler(monkeypatch):
    """No native kernel, and bags that are faster than the grouped path."""

    def fails(folder):
        raise NativeUnavailable("no C++ compiler on the path")

    monkeypatch.setattr(dispatch, "_native", NativeChoice(lambda: Path("/nowhere"), fails))
    monkeypatch.setattr(decode, "stepper_for", lambda *args, **kwargs: (None, "no C++ compiler on the path"))
    monkeypatch.setattr(dispatch, "_bags", BagChoice())
    monkeypatch.setattr(bag_choice, "_times_us", lambda weight, bits: (1.0, 2.0))


def packed_of(layout="4+4", out=200, cols=100):
    """A random weight in its module."""
    weight = torch.randn(out, cols, generator=torch.Generator().manual_seed(0))
    return PackedWeight.from_nested(quantize_nested(weight, layout=layout))


def laid_out(packed):
    """The same weight by columns; the first stays as it is."""
    moved = copy.deepcopy(packed)
    moved.lay_by_columns()
    return moved


def same_state(one, other):
    """Whether two modules would be saved alike."""
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("layout", ["4+4", "4+1+1+2", "2+1+1+4", "8"])
def test_a_weight_by_columns_is_the_same_weight(layout):
    """Planes, numbers, bytes read and what it is worth at every level."""
    packed = packed_of(layout)
    before, after = packed(), laid_out(packed)()
    assert isinstance(after, dispatch.ColumnTensor)
    assert (after.shape, after.group_size, after.levels) == (before.shape, before.group_size, before.levels)
    assert after.nbytes == before.nbytes
    for bits in before.levels:
        assert torch.equal(after.dequantize(bits), before.dequantize(bits))
        assert after.bytes_read(bits) == before.bytes_read(bits)
    index = torch.tensor([3, 0, 199])
    assert torch.equal(after.rows(index).dequantize(8), before.rows(index).dequantize(8))
    if 2 not in before.levels:
        with pytest.raises(UnsupportedBits):
            after.bytes_read(2)


@pytest.mark.parametrize("layout", ["4+4", "2+1+1+4"])
def test_it_is_saved_loaded_moved_and_copied_as_planes(layout):
    """A file does not know of columns; whatever replaces tensors ends them."""
    packed = packed_of(layout)
    moved = laid_out(packed)
    assert same_state(moved, packed)
    again = copy.deepcopy(moved)
    assert again.is_by_columns
    assert again().columns.table is again.table
    assert again.table.data_ptr() != moved.table.data_ptr()
    assert same_state(again, packed)
    other = packed_of(layout, out=200)
    other.lay_by_columns()
    other.load_state_dict(packed.state_dict())
    assert not other.is_by_columns
    assert same_state(other, packed)
    moved.to(torch.bfloat16)
    assert not moved.is_by_columns
    assert same_state(moved, packed)
    assert torch.equal(moved().dequantize(8), packed().dequantize(8))


def test_nothing_is_held_twice():
    """The table replaces the planes: 2 % more bytes at 576 outputs, not twice as many."""
    packed = packed_of(out=576, cols=640)
    before = sum(tensor.untyped_storage().nbytes() for tensor in packed.buffers())
    packed.lay_by_columns()
    after = sum(tensor.untyped_storage().nbytes() for tensor in packed.buffers())
    assert before < after <= 1.02 * before
    assert {name for name, _ in packed.named_buffers()} == {"table", "numbers"}


@pytest.mark.parametrize("bits", [3, 4, 5, 8, 16, torch.tensor([4, 8, 5, 4, 6, 16])], ids=str)
def test_the_product_by_columns_is_that_of_the_reference(bits, without_compiler):
    """Through dispatch, at one level or several; asked for by name, or as the machine's choice."""
    weight = laid_out(packed_of("4+1+1+2"))()
    x = torch.randn(6, 100, generator=torch.Generator().manual_seed(2))
    with dispatch.force("reference"):
        expected = dispatch.linear(x, weight, bits)
    bound = dispatch.LARGEST_ERROR["bags"] * float(expected.norm())
    assert float((dispatch.linear(x, weight, bits) - expected).norm()) <= bound
    with dispatch.force("bags"):
        assert float((dispatch.linear(x, weight, bits) - expected).norm()) <= bound
    with dispatch.force("grouped"):
        assert float((dispatch.linear(x, weight, bits) - expected).norm()) <= bound


def test_activations_that_need_a_gradient_keep_it():
    """Bags have none: the weight is unpacked, and the gradient is that of the reference."""
    packed, gradients = packed_of(), []
    for weight in (packed(), laid_out(packed)()):
        x = torch.randn(1, 100, generator=torch.Generator().manual_seed(3)).requires_grad_()
        dispatch.linear(x, weight, 8).square().sum().backward()
        gradients.append(x.grad)
    assert float((gradients[1] - gradients[0]).norm()) <= 1e-4 * float(gradients[0].norm())


def test_a_model_is_laid_out_once_and_the_reason_is_told(without_compiler):
    """Every weight that is wide enough; the choice names the kernel and why there is no native one."""
    model = torch.nn.ModuleList([packed_of(), packed_of(out=64), packed_of("8")])
    assert dispatch.current().name == "grouped"
    assert lay_by_columns(model) == 2
    assert [packed.is_by_columns for packed in model] == [True, False, True]
    assert lay_by_columns(model) == 0
    lay_by_rows(model)
    assert not any(packed.is_by_columns for packed in model)
    assert lay_by_columns(model) == 2
    chosen = dispatch.current()
    assert chosen.name == "bags"
    assert "no native kernel: no C++ compiler on the path" in chosen.reason
    assert dispatch.chosen_for(model[0](), 8, 1).name == "bags"
    assert "embedding bags, microseconds: 4 bits 1 against 2" in dispatch.chosen_for(model[0](), 8, 1).reason


def test_planes_stay_where_another_kernel_reads_them(without_compiler, monkeypatch):
    """With a native kernel, slow bags, another kernel asked for, or weights that come and go."""
    model = torch.nn.ModuleList([packed_of()])
    with dispatch.force("grouped"):
        assert lay_by_columns(model) == 0
    model[0]._hf_hook = object()
    assert lay_by_columns(model) == 0
    del model[0]._hf_hook
    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "_native", NativeChoice(lambda: Path("/nowhere"), lambda folder: object()))
        patch.setattr(NativeChoice, "_load", lambda self: setattr(self, "_kernel", object()))
        assert lay_by_columns(model) == 0
    monkeypatch.setattr(bag_choice, "_times_us", lambda weight, bits: (2.0, 1.0))
    assert lay_by_columns(model) == 0


def test_an_engine_writes_the_same_text_by_columns_and_from_planes(without_compiler, monkeypatch):
    """Small weights, too, once they are allowed: text, kernel and memory; 8-bit activations go back to planes."""
    monkeypatch.setattr(bags, "LEAST_OUT", 8)
    told = {}
    for name, times in (("bags", (1.0, 2.0)), ("grouped", (2.0, 1.0))):
        monkeypatch.setattr(dispatch, "_bags", BagChoice())
        monkeypatch.setattr(bag_choice, "_times_us", lambda weight, bits, found=times: found)
        engine = TAPEngine(TAPConfig(precision_levels=(8,), mean_bits=8, time_reference=False))
        engine.load_model("tiny-llama", levels=[4, 8])
        text, trace, _ = engine.trace("Once upon a time", 8, precision="4")
        assert trace.kernel.name == name
        told[name] = text
        held = [module.is_by_columns for module in engine.nested.model.modules() if isinstance(module, PackedWeight)]
        assert all(held) if name == "bags" else not any(held)
        if name == "bags":
            with engine.nested.context.activations(lambda x, weight, bits, site: dispatch.linear(x, weight, bits)):
                decode._prepare(engine.nested, NO_PROGRESS)
            assert not any(m.is_by_columns for m in engine.nested.model.modules() if isinstance(m, PackedWeight))
    assert told["bags"] == told["grouped"]

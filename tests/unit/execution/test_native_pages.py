"""Weights that were gathered are the same weights: values, logits, checkpoint; only their place is another.

Seed features: S1.15
"""

import mmap
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tapwb.execution import native_pages
from tapwb.execution.native_pages import gather_weights
from tapwb.execution.nest import nest_model
from tapwb.execution.packed import PackedWeight
from tapwb.models.quiet import without_progress_bars
from tapwb.models.tiny import tiny_model
from tapwb.quant.nested import NestedLayout

TOKENS = torch.tensor([[5, 9, 2, 7]])


@pytest.fixture
def nested():
    """A tiny model with 2-bit levels, whose weights have every kind of buffer."""
    return nest_model(tiny_model("llama").model, layout=NestedLayout.named("wide"))


@pytest.fixture
def small_is_enough(monkeypatch):
    """Gather however little there is; skipped where the system has no large pages."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        pytest.skip("this system has no large pages to ask for")
    monkeypatch.setattr(native_pages, "_LEAST_BYTES", 0)
    monkeypatch.setattr(native_pages, "_TRIM_BYTES", 1 << 12)


def buffers_of(model):
    """All packed buffers by name."""
    return {
        f"{name}.{own}": tensor
        for name, module in model.named_modules()
        if isinstance(module, PackedWeight)
        for own, tensor in module.named_buffers(recurse=False)
    }


def test_gathered_weights_are_bit_for_bit_the_same_and_lie_in_order(nested, small_is_enough, tmp_path):
    """Every buffer, one after the other in one piece of memory that begins a large page; the checkpoint as before."""
    model: Any = nested.model
    before = {name: tensor.clone() for name, tensor in buffers_of(model).items()}
    with nested.context.use(4), torch.no_grad():
        logits = model(TOKENS).logits
    moved = gather_weights(model)
    after = buffers_of(model)
    assert sum(tensor.nbytes for tensor in after.values()) <= moved
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    places = [tensor.data_ptr() for tensor in after.values()]
    assert places == sorted(places)
    assert places[0] % (1 << 21) == 0
    assert places[-1] - places[0] < moved
    assert all(place % 64 == 0 for place in places)
    with nested.context.use(4), torch.no_grad():
        assert torch.equal(model(TOKENS).logits, logits)
    with without_progress_bars():
        model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in before.items())


def test_little_weights_stay_where_they_are(nested):
    """What fits the caches gains nothing."""
    before = {name: tensor.data_ptr() for name, tensor in buffers_of(nested.model).items()}
    assert gather_weights(nested.model) == 0
    assert {name: tensor.data_ptr() for name, tensor in buffers_of(nested.model).items()} == before


def test_a_system_without_large_pages_is_left_alone(nested, small_is_enough, monkeypatch):
    """Whether the name is missing or the kernel refuses."""
    before = {name: tensor.data_ptr() for name, tensor in buffers_of(nested.model).items()}
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", -1)
    assert gather_weights(nested.model) == 0
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE")
    assert gather_weights(nested.model) == 0
    assert {name: tensor.data_ptr() for name, tensor in buffers_of(nested.model).items()} == before

"""Other methods for the same matrices: what they read back, what they take, and a reason where they are absent.

Seed features: S1.8
"""

import importlib.util

import pytest
import torch

from tapwb.core.errors import UsageError
from tapwb.core.reading import Unavailable
from tapwb.quant import peers, quantize_nested
from tapwb.quant.peers import PeerWeight, WeightPeer, parse_peer, quantize_by_peer


@pytest.fixture(scope="module")
def weight():
    """Gaussian weights."""
    return torch.randn(96, 128, generator=torch.manual_seed(0)) * 0.05


def test_a_peer_is_named_with_its_bits():
    """Four by default; anything else is refused with what there is."""
    assert parse_peer("hqq") == WeightPeer("hqq", 4)
    assert str(parse_peer(" hqq:3 ")) == "hqq:3"
    with pytest.raises(UsageError, match="is no peer for weights"):
        parse_peer("awq:4")
    with pytest.raises(UsageError, match="8, 4, 3, 2"):
        parse_peer("hqq:5")


def test_an_absent_package_gives_a_reason_and_no_numbers(weight, monkeypatch):
    """What is missing and how to get it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = quantize_by_peer(weight, parse_peer("hqq:4"), 64)
    assert isinstance(found, Unavailable)
    assert found.reason == "hqq is not installed: pip install hqq"


def test_hqq_comes_back_near_and_is_counted_on_its_tensors(weight):
    """Half a byte a weight and two 16-bit numbers in 64; fewer bits are further away."""
    pytest.importorskip("hqq", reason="hqq is not installed: pip install hqq")
    found = {bits: quantize_by_peer(weight, WeightPeer("hqq", bits), 64) for bits in (8, 4, 3, 2)}
    errors = []
    for made in found.values():
        assert isinstance(made, PeerWeight)
        assert made.weight.shape == weight.shape
        errors.append(float((weight - made.weight).square().mean()))
    assert errors == sorted(errors)
    assert errors[1] < 1.2 * (weight - quantize_nested(weight, group_size=64).dequantize(4)).square().mean()
    assert found[4].nbytes == weight.numel() // 2 + weight.numel() // 64 * 4
    assert found[8].nbytes == weight.numel() + weight.numel() // 64 * 4


def test_a_matrix_that_cannot_be_grouped_is_named(weight):
    """Instead of an error from inside the package."""
    pytest.importorskip("hqq", reason="hqq is not installed: pip install hqq")
    found = quantize_by_peer(weight[:3, :5], WeightPeer("hqq", 4), 64)
    assert isinstance(found, Unavailable)
    assert "3 x 5" in found.reason


def test_every_peer_says_which_bits_it_has():
    """The list that messages and help are made from."""
    assert all(parse_peer(name).bits == 4 for name in peers.WEIGHT_PEERS)

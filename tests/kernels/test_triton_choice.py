"""On a card the Triton kernel is used where it was seen right and not slower, and the reason is told.

Seed features: S1.15
"""

import os
import subprocess
import sys

import pytest
import torch

from tapwb.execution import dispatch
from tapwb.quant.nested import quantize_nested
from tapwb_kernels.nested_linear import triton_choice
from tapwb_kernels.nested_linear.triton_choice import TritonChoice

IN_THE_INTERPRETER = """
import torch
from tapwb_kernels.nested_linear import grouped, triton, triton_choice
from tapwb_kernels.nested_linear.choice import random_weight
from tapwb_kernels.nested_linear.triton_choice import DENSE_ROWS, TritonChoice, nested_linear

counted = []
triton_choice._REPEATS = 1  # the interpreter is slow, and the times are planted

def seconds_of(fast, slow):
    def seconds(call, device):
        call()
        counted.append(call.__name__)
        return fast if call.__name__ == "fast" else slow
    return seconds

weight = random_weight(33, 200, (4, 4), 64)
x = torch.randn(6, 200)
quick = TritonChoice(seconds_of(1e-6, 2e-6))
for bits in (8, torch.tensor([4, 8, 5, 4, 6, 8]), torch.tensor([1, 8, 2, 4, 1, 8])):
    y = nested_linear(quick, x, *weight.stored, bits, refit=weight.refit)
    expected = grouped.nested_linear(x, *weight.stored, bits, refit=weight.refit)
    assert float((y - expected).norm() / expected.norm()) < 1e-5, bits
many = torch.randn(DENSE_ROWS, 200)
y = nested_linear(quick, many, *weight.stored, 8)
expected = grouped.nested_linear(many, *weight.stored, 8)
assert float((y - expected).norm() / expected.norm()) < 1e-5
assert {"fast", "plain"} == set(counted)
assert all(v.is_used and "microseconds" in v.reason for v in quick.verdicts().values())
n = len(counted)
assert nested_linear(quick, x, *weight.stored, 8) is not None and len(counted) == n, "judged once"
slow = TritonChoice(seconds_of(3e-6, 2e-6))
assert nested_linear(slow, x, *weight.stored, 8) is None
assert "slower here: 3 against 2" in slow.verdict(x, (4, 4), 64, 8, 6).reason
# The workbench, told that these tensors lie on a card.
from tapwb.execution import dispatch
from tapwb.quant.nested import quantize_nested
nested = quantize_nested(torch.randn(33, 200), layout="fine")
dispatch._is_on_card = lambda x: True
for seconds, name in ((seconds_of(1e-6, 2e-6), "triton"), (seconds_of(3e-6, 2e-6), "grouped")):
    dispatch._triton = TritonChoice(seconds)
    for bits in (5, torch.tensor([4, 8, 5, 16, 6, 8])):
        actual = dispatch.linear(x, nested, bits)
        with dispatch.force("reference"):
            expected = dispatch.linear(x, nested, bits)
        assert float((actual - expected).norm() / expected.norm()) < 1e-5
    with dispatch.force("triton"):
        forced = dispatch.linear(x, nested, 5)
    with dispatch.force("grouped"):
        assert torch.equal(dispatch.linear(x, nested, 5), forced) == False
    chosen = dispatch.chosen_for(nested, 5, 6)
    assert (chosen.name, "microseconds" in chosen.reason) == (name, True), chosen
    told = dispatch._on_card(torch.device("cpu"))
    assert told.name == name, told
    assert name == "triton" or "slower here: 3 against 2 microseconds" in told.reason, told

real = triton.nested_linear
triton.nested_linear = lambda *a, **k: real(*a, **k) * 1.001
wrong = TritonChoice(seconds_of(1e-6, 2e-6))
assert nested_linear(wrong, x, *weight.stored, 8) is None
assert "wrong on this card: relative error 1.0e-03" in wrong.verdict(x, (4, 4), 64, 8, 6).reason
def fails(*a, **k):
    raise RuntimeError("out of resource: shared memory")
triton.nested_linear = fails
broken = TritonChoice(seconds_of(1e-6, 2e-6))
assert nested_linear(broken, x, *weight.stored, 8) is None
assert "does not run here: RuntimeError: out of resource" in broken.verdict(x, (4, 4), 64, 8, 6).reason
print("all agree")
"""


def test_it_is_used_where_right_and_quick_and_nowhere_else():
    """One level, several, low levels, many rows; slower, wrong and broken kernels are declined with their reason."""
    pytest.importorskip("triton", reason="the triton package exists for Linux on x86-64 only")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IN_THE_INTERPRETER],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "all agree" in done.stdout, done.stderr[-2000:]


def test_a_cpu_is_told_why_not(monkeypatch):
    """Without the interpreter nothing is imported, compiled or timed."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)

    def never(call, device):
        raise AssertionError("timed")

    verdict = TritonChoice(never).verdict(torch.zeros(1, 8), (4, 4), 8, 8, 1)
    assert not verdict.is_used
    assert "riton" in verdict.reason


def test_tensors_on_a_cpu_never_reach_it(monkeypatch):
    """The workbench asks only for tensors on a card."""

    def never(*args, **kwargs):
        raise AssertionError("asked")

    monkeypatch.setattr(triton_choice, "nested_linear", never)
    weight = quantize_nested(torch.randn(8, 64, generator=torch.Generator().manual_seed(0)))
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(1))
    with dispatch.force("triton"):
        forced = dispatch.linear(x, weight, 8)
    with dispatch.force("grouped"):
        assert torch.equal(dispatch.linear(x, weight, 8), forced)
    assert dispatch.linear(x, weight, 8).shape == (2, 8)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card")
def test_without_a_card_the_reason_is_told():
    """As in the trace of a run that was asked to use one."""
    chosen = dispatch.current("cuda")
    assert chosen.name == "grouped"
    assert "no Triton kernel: " in chosen.reason


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (torch.zeros(1, 8, dtype=torch.float64), "takes no activations of torch.float64"),
        (torch.zeros(1, 8, requires_grad=True), "has no gradient"),
    ],
)
def test_what_the_kernel_cannot_take_is_named(x, reason):
    """Before any device is asked."""
    assert reason in triton_choice.why_not(x)

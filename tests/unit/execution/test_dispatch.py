"""Which kernel runs is decided once, told with the reason, and never changes a result beyond its bound.

Seed features: S1.15
"""

import os
import subprocess
import sys

import pytest
import torch

from tapwb.core.errors import ExecutionError
from tapwb.execution import dispatch
from tapwb.quant.nested import quantize_nested
from tapwb_kernels.native_build import NativeUnavailable
from tapwb_kernels.nested_linear.choice import NativeChoice


@pytest.fixture
def weight():
    """A nested weight whose last group is padded."""
    return quantize_nested(torch.randn(33, 200, generator=torch.Generator().manual_seed(0)), layout="fine")


def without_kernel(monkeypatch):
    """A machine on which the native kernel cannot be had."""

    def fails(folder):
        raise NativeUnavailable("no C++ compiler on the path (c++). Install one, for example g++")

    monkeypatch.setattr(dispatch, "_native", NativeChoice(lambda: None, fails))


def test_without_a_native_kernel_the_reason_is_told_and_pytorch_runs(weight, monkeypatch):
    """As in the trace of a run."""
    without_kernel(monkeypatch)
    x = torch.randn(2, 200, generator=torch.Generator().manual_seed(1))
    chosen = dispatch.current()
    assert chosen.name == "grouped"
    assert "no native kernel: no C++ compiler on the path" in chosen.reason
    auto = dispatch.linear(x, weight, 5)
    with dispatch.force("grouped"):
        assert torch.equal(dispatch.linear(x, weight, 5), auto)
    with pytest.raises(ExecutionError, match="there is no native kernel"), dispatch.force("native"):
        pass


@pytest.mark.parametrize("bits", [3, 8, 16, torch.tensor([4, 8, 5, 4, 6, 16])], ids=str)
def test_the_native_kernel_gives_what_the_reference_gives(weight, bits):
    """One level or several, to 1e-4 of the norm; more than eight rows, too."""
    if dispatch.native().kernel() is None:
        pytest.skip(dispatch.native().why_none())
    x = torch.randn(6, 200, generator=torch.Generator().manual_seed(2))
    with dispatch.force("reference"):
        expected = dispatch.linear(x, weight, bits)
    with dispatch.force("native"):
        actual = dispatch.linear(x, weight, bits)
        twelve = dispatch.linear(x.repeat(2, 1), weight, 8)
    assert float((actual - expected).norm()) <= 1e-4 * float(expected.norm())
    with dispatch.force("reference"):
        expected = dispatch.linear(x.repeat(2, 1), weight, 8)
    assert float((twelve - expected).norm()) <= 1e-4 * float(expected.norm())


def test_a_card_is_not_told_to_run_the_cpus_kernel():
    """The choice is one of a device."""
    assert dispatch.current("cuda").name == "grouped"


def test_activations_that_need_a_gradient_keep_it(weight):
    """Signals that look at gradients go through the path that has one."""
    x = torch.randn(1, 200, requires_grad=True)
    dispatch.linear(x, weight, 8).sum().backward()
    assert x.grad is not None
    assert bool((x.grad != 0).any())


def test_a_process_without_compiler_and_cache_runs_and_says_why(tmp_path):
    """With an empty path: no crash, the reason in the choice."""
    code = (
        "import torch; from tapwb.execution import dispatch; from tapwb.quant.nested import quantize_nested; "
        "y = dispatch.linear(torch.ones(1, 64), quantize_nested(torch.ones(8, 64)), 8); "
        "print(dispatch.current().name, dispatch.current().reason, round(float(y[0, 0]), 3))"
    )
    env = {**os.environ, "PATH": str(tmp_path), "TAPWB_CACHE_DIR": str(tmp_path)}
    env.pop("CXX", None)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("grouped ")
    assert "no C++ compiler on the path" in done.stdout
    assert done.stdout.strip().endswith("64.0")

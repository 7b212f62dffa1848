"""A device's abilities are a value, with the reason where something is missing."""

import platform
import subprocess
import sys

import pytest
import torch

from tapwb_kernels.capability import capability_of


def test_a_cpu_says_why_triton_does_not_run_on_it(monkeypatch):
    """Never just False."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    cpu = capability_of("cpu")
    assert (cpu.device, cpu.compute_capability, cpu.has_triton) == ("cpu", None, False)
    assert "triton" in cpu.why_not_triton.lower()
    assert cpu.name


@pytest.mark.skipif(platform.system() != "Linux", reason="only Linux publishes the processor's features as a file")
def test_a_linux_cpu_lists_its_instruction_sets():
    """Only those kernels care about."""
    assert set(capability_of("cpu").cpu_features) <= {
        "avx2",
        "avx512f",
        "avx512_vnni",
        "avx512_bf16",
        "amx_int8",
        "amx_bf16",
        "asimd",
        "i8mm",
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is present")
def test_an_absent_card_is_described_not_raised():
    """Asking about CUDA on a machine without one gives an answer."""
    cuda = capability_of("cuda")
    assert not cuda.has_triton
    assert cuda.why_not_triton


def test_looking_does_not_import_triton():
    """Asking costs nothing: the package is found, not loaded."""
    script = (
        "import sys, torch; before = 'triton' in sys.modules;"
        "from tapwb_kernels.capability import capability_of; capability_of('cpu');"
        "print(('triton' in sys.modules) == before)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "True"

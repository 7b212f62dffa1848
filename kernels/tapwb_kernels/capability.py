"""What a device can do, as a value.

Whoever chooses a kernel asks here once and keeps the answer (and the reason) beside the result. Nothing in this module
imports Triton or starts a device context beyond what torch already has.
"""

import functools
import importlib.util
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

_CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd", "i8mm")
OLDEST_CUDA = (7, 0)


@dataclass(frozen=True, slots=True)
class Capability:
    """One device.

    Attributes:
        device: Torch device type: ``"cpu"``, ``"cuda"``, ``"mps"`` ...
        name: Its name, for people.
        compute_capability: Of a CUDA device, e.g. ``(9, 0)``; ``None`` elsewhere.
        cpu_features: Instruction sets of a CPU that kernels care about; empty elsewhere, or where the system does not
            tell.
        has_triton: Whether Triton kernels run here.
        why_not_triton: If not, why, and what would help; empty if they do.
    """

    device: str
    name: str
    compute_capability: tuple[int, int] | None
    cpu_features: tuple[str, ...]
    has_triton: bool
    why_not_triton: str


def capability_of(device: torch.device | str) -> Capability:
    """Describe a device."""
    kind = torch.device(device).type
    compute = torch.cuda.get_device_capability(device) if kind == "cuda" and torch.cuda.is_available() else None
    name = torch.cuda.get_device_name(device) if compute else _processor() if kind == "cpu" else kind
    reason = _why_not_triton(kind, compute)
    features = _cpu_features() if kind == "cpu" else ()
    return Capability(kind, name, compute, features, has_triton=not reason, why_not_triton=reason)


def why_not_triton(device: torch.device | str) -> str:
    """Why Triton kernels do not run on a device; empty if they do. Remembered, because every product asks.

    Args:
        device: Torch device.
    """
    return _remembered(str(device), os.environ.get("TRITON_INTERPRET"))


@functools.lru_cache(maxsize=64)
def _remembered(device: str, interpreter: str | None) -> str:
    return capability_of(device).why_not_triton


def _why_not_triton(kind: str, compute: tuple[int, int] | None) -> str:
    if importlib.util.find_spec("triton") is None:
        return "the triton package is not installed (pip install triton; Linux on x86-64 only)"
    if kind == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return ""
    if kind != "cuda":
        return f"Triton has no backend for {kind}; TRITON_INTERPRET=1 runs its kernels on a CPU, slowly, for tests"
    if compute is None:
        return "no CUDA or ROCm device is visible to torch"
    # ROCm devices report through the same call, with numbers that are not comparable.
    if torch.version.hip is None and compute < OLDEST_CUDA:
        return f"compute capability {compute[0]}.{compute[1]} is older than {OLDEST_CUDA[0]}.{OLDEST_CUDA[1]}"
    return ""


def _cpu_features() -> tuple[str, ...]:
    """Instruction sets from the kernel's list; other systems do not publish one as a file."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return ()
    for line in cpuinfo.read_text(errors="replace").splitlines():
        if line.startswith(("flags", "Features")):
            present = set(line.partition(":")[2].split())
            return tuple(flag for flag in _CPU_FLAGS if flag in present)
    return ()


def _processor() -> str:
    return platform.processor() or platform.machine() or "cpu"

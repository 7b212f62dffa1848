"""Clocks, counters and intervals of the GPU suite. Works on a card, and on a CPU so that the suite can be tested."""

import ctypes
import math
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import torch

# 97.5 % quantiles of Student's t for 1 to 30 degrees of freedom; beyond them it is within 2 % of the normal's.
_T975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
_NORMAL975 = 1.96


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the suite runs.

    Attributes:
        device: ``"cuda"`` or, for tests, ``"cpu"``.
    """

    device: str

    @property
    def is_card(self) -> bool:
        """Whether times mean anything."""
        return self.device == "cuda"

    def wait(self) -> None:
        """Until the device has done all that was asked of it."""
        if self.is_card:
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], object]) -> float:
        """Wall time of a call, the device's work included."""
        self.wait()
        started = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - started

    def beyond_cache_bytes(self) -> int:
        """Four times the second-level cache: what is read in turns out of so much comes from memory."""
        if not self.is_card:
            return 1 << 14
        return max(1 << 28, 4 * torch.cuda.get_device_properties(0).L2_cache_size)

    def replayed(self, call: Callable[[], object]) -> Callable[[], object]:
        """The call as a captured graph, so that launches cost nothing; itself where there are no graphs."""
        if not self.is_card:
            return call
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        self.wait()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean of values with its 95 % interval, and how many there were.

    Args:
        values: One per round.
    """
    n, mean = len(values), statistics.fmean(values)
    if n < 2:
        return {"mean": mean, "ci95": None, "n": n}
    t = _T975[n - 2] if n - 2 < len(_T975) else _NORMAL975
    half = t * statistics.stdev(values) / math.sqrt(n)
    return {"mean": mean, "ci95": [mean - half, mean + half], "n": n}


def ratio(fast: Sequence[float], slow: Sequence[float]) -> dict[str, Any]:
    """How many times one is the other, paired by round: the geometric mean with its 95 % interval.

    Args:
        fast: Speeds of one arm, one per round.
        slow: Speeds of the other in the same rounds.
    """
    logs = interval([math.log(a / b) for a, b in zip(fast, slow, strict=True)])
    ends = None if logs["ci95"] is None else [math.exp(end) for end in logs["ci95"]]
    return {"ratio": math.exp(logs["mean"]), "ci95": ends, "n": logs["n"]}


def copy_ceiling(machine: Machine) -> dict[str, Any]:
    """Bytes a second of a large copy, read and written bytes both counted: what no kernel here can beat.

    Args:
        machine: Where.
    """
    n_bytes = (1 << 32) if machine.is_card else (1 << 16)
    source = torch.randint(0, 256, (n_bytes,), dtype=torch.uint8, device=machine.device)
    target = torch.empty_like(source)
    target.copy_(source)
    speeds = [2 * n_bytes / machine.seconds(lambda: target.copy_(source)) / 1e9 for _ in range(15)]
    return {"buffer_bytes": n_bytes, "gb_per_s": interval(speeds)}


class EnergyCounter:
    """The driver's count of all energy a card has used, read through its own library.

    Attributes:
        why_none: Why there is no count; empty if there is one.
    """

    def __init__(self, machine: Machine) -> None:
        self.why_none = "" if machine.is_card else "a CPU has no NVML counter"
        if machine.is_card:
            self.why_none = self._open()

    def joules(self) -> float:
        """Since the driver was loaded; it moves about every 0.1 s.

        Raises:
            RuntimeError: If the driver does not answer.
        """
        count = ctypes.c_ulonglong()
        if status := self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._card, ctypes.byref(count)):
            raise RuntimeError(f"the driver's energy counter answered with error {status}")
        return count.value / 1e3

    def over(self, call: Callable[[], int], seconds: float) -> dict[str, float]:
        """Energy while a call is repeated for at least so long.

        Args:
            call: Does some work, waits for it, and says how much it was.
            seconds: Length of the window.
        """
        units, started, before = 0, time.perf_counter(), self.joules()
        while time.perf_counter() - started < seconds:
            units += call()
        return {"joules": self.joules() - before, "seconds": time.perf_counter() - started, "units": units}

    def _open(self) -> str:
        try:
            self._nvml = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError as error:
            return f"the driver's library is not there: {error}"
        self._card = ctypes.c_void_p()
        if status := self._nvml.nvmlInit_v2():
            return f"the driver's library answered with error {status}"
        name = f"GPU-{torch.cuda.get_device_properties(0).uuid}".encode()
        if status := self._nvml.nvmlDeviceGetHandleByUUID(name, ctypes.byref(self._card)):
            return f"the driver does not know this card by its name: error {status}"
        try:
            self.joules()
        except RuntimeError as error:
            return str(error)
        return ""


def provenance(machine: Machine) -> dict[str, Any]:
    """Machine, driver, versions, date.

    Args:
        machine: Where.
    """
    found: dict[str, Any] = {
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "mode": "card" if machine.is_card else "interpreter on a CPU: times mean nothing",
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    for package in ("torch", "triton", "transformers"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = f"unknown: {package} is not an installed package"
    if machine.is_card:
        card = torch.cuda.get_device_properties(0)
        found |= {"card": card.name, "memory_bytes": card.total_memory, "processors": card.multi_processor_count}
        found |= {"l2_bytes": card.L2_cache_size, "cuda": torch.version.cuda, "driver": _driver()}
    else:
        found |= {"card": platform.processor() or platform.machine(), "driver": "none: a CPU"}
    return found


def _driver() -> str:
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError as error:
        return f"unknown: {error}"
    text = ctypes.create_string_buffer(80)
    if status := nvml.nvmlInit_v2() or nvml.nvmlSystemGetDriverVersion(text, 80):
        return f"unknown: the driver's library answered with error {status}"
    return text.value.decode()

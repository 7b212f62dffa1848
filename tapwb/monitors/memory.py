"""Memory of the process and of the device, now and at its highest.

The kernel keeps the process's own high-water mark (``ru_maxrss``), but since the process began; a sampling thread
gives the mark of one block of code, and misses peaks shorter than its interval. Both are shown, by name. The tracker
frees what it caused itself; a leak in somebody else's code it can find (``leak.py``), not mend.
"""

import gc
import sys
import threading
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Self

import psutil

from tapwb.core.errors import UsageError
from tapwb.core.heap import trim_heap
from tapwb.core.reading import Measured, Reading, Unavailable
from tapwb.monitors.leak import LeakReport, detect_leak


@dataclass(frozen=True, slots=True)
class MemorySnapshot:
    """Memory at one moment.

    Attributes:
        rss_bytes: Resident memory of this process.
        process_peak_bytes: Highest resident memory since the process began.
        available_bytes: Memory the system could still give without swapping.
        device_bytes: Device memory in live tensors of this process.
        device_reserved_bytes: Device memory held by torch's allocator, live or not.
        device_peak_bytes: Highest ``device_bytes`` since the tracker was started.
    """

    rss_bytes: Measured
    process_peak_bytes: Measured
    available_bytes: Measured
    device_bytes: Measured
    device_reserved_bytes: Measured
    device_peak_bytes: Measured

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {name: getattr(self, name).to_json() for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Released:
    """What :meth:`MemoryTracker.release` gave back.

    Attributes:
        samples: Recorded samples dropped.
        collected_objects: Unreachable Python objects freed by the garbage collector.
        rss_bytes: Change of resident memory (negative: shrank).
        device_reserved_bytes: Change of device memory held by torch's allocator.
    """

    samples: int
    collected_objects: int
    rss_bytes: int
    device_reserved_bytes: Measured


class MemoryTracker:
    """Watches memory of this process.

    Args:
        interval_s: Time between two samples of the high-water mark, seconds.
        device: Torch device to watch besides the process: ``"cuda"``, ``"cuda:1"``; ``"cpu"`` has no memory of its own.

    Example:
        >>> with MemoryTracker() as tracker:
        ...     block = bytearray(30_000_000)
        >>> tracker.high_water().value > 30_000_000
        True
    """

    def __init__(self, interval_s: float = 0.01, device: str = "cpu") -> None:
        if interval_s <= 0:
            raise UsageError(f"a sampling interval of {interval_s} s is not positive. Give for example 0.01.")
        self._interval_s = interval_s
        self._device = device
        self._process = psutil.Process()
        self._samples_bytes: list[int] = []
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def snapshot(self) -> MemorySnapshot:
        """Memory now."""
        return MemorySnapshot(
            rss_bytes=_bytes(self._rss_bytes(), "process-rss"),
            process_peak_bytes=_process_peak(),
            available_bytes=_bytes(psutil.virtual_memory().available, "system-available"),
            device_bytes=self._device_bytes("memory_allocated"),
            device_reserved_bytes=self._device_bytes("memory_reserved"),
            device_peak_bytes=self._device_bytes("max_memory_allocated"),
        )

    def start(self) -> None:
        """Begin sampling, with a fresh high-water mark.

        Raises:
            UsageError: If sampling already.
        """
        if self._thread is not None:
            raise UsageError("this memory tracker is already sampling. Stop it first, or use a second one.")
        torch = self._torch()
        if torch is not None:
            torch.cuda.reset_peak_memory_stats(self._device)
        self._samples_bytes = [self._rss_bytes()]
        self._stopped.clear()
        self._thread = threading.Thread(target=self._sample, name="tapwb-memory", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End sampling; the high-water mark stays readable."""
        if self._thread is not None:
            self._stopped.set()
            self._thread.join()
            self._thread = None
            self._samples_bytes.append(self._rss_bytes())

    def high_water(self) -> Measured:
        """Highest sampled resident memory since :meth:`start`."""
        if not self._samples_bytes:
            return Unavailable("nothing was sampled: call start(), or use the tracker in a with block")
        return Reading(
            float(max(self._samples_bytes)), "byte", "measured:process-rss-sampled", n=len(self._samples_bytes)
        )

    def growth(self) -> Measured:
        """High-water mark above the level at :meth:`start`."""
        high = self.high_water()
        if isinstance(high, Unavailable):
            return high
        return Reading(high.value - self._samples_bytes[0], "byte", high.source, n=high.n)

    def detect_leak(self, function: Any, repeats: int = 20, **options: Any) -> LeakReport:
        """Call ``function`` again and again and report whether memory keeps growing, see :func:`detect_leak`."""
        return detect_leak(function, repeats, **options)

    def release(self) -> Released:
        """Give back what this tracker caused: its thread, its samples, its garbage, and allocator memory nobody uses.

        Memory that live objects still hold is theirs; it is not touched.
        """
        rss_before, held_before = self._rss_bytes(), self._device_bytes("memory_reserved")
        self.stop()
        n_samples, self._samples_bytes = len(self._samples_bytes), []
        collected = gc.collect()
        torch = self._torch()
        if torch is not None:
            torch.cuda.empty_cache()
        trim_heap()
        held_after = self._device_bytes("memory_reserved")
        change = held_after
        if isinstance(held_after, Reading) and isinstance(held_before, Reading):
            change = Reading(held_after.value - held_before.value, "byte", held_after.source)
        return Released(n_samples, collected, self._rss_bytes() - rss_before, change)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    # --- inside ---

    def _sample(self) -> None:
        while not self._stopped.wait(self._interval_s):
            self._samples_bytes.append(self._rss_bytes())

    def _rss_bytes(self) -> int:
        return int(self._process.memory_info().rss)

    def _torch(self) -> ModuleType | None:
        """Torch, if it is loaded and the watched device is a card that is there."""
        torch = sys.modules.get("torch")  # not imported here: whoever uses a card has imported it
        if not self._device.startswith("cuda") or torch is None or not torch.cuda.is_available():
            return None
        return torch

    def _device_bytes(self, counter: str) -> Measured:
        torch = self._torch()
        if torch is None:
            if not self._device.startswith("cuda"):
                return Unavailable(f"the device {self._device!r} has no memory of its own")
            return Unavailable("torch sees no card on this machine")
        return _bytes(getattr(torch.cuda, counter)(self._device), f"torch-{counter.replace('_', '-')}")


def _bytes(value: int, counter: str) -> Reading:
    return Reading(float(value), "byte", f"measured:{counter}")


def _process_peak() -> Measured:
    try:
        import resource
    except ImportError:
        return Unavailable("this system keeps no high-water mark of a process")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _bytes(peak if sys.platform == "darwin" else peak * 1024, "process-maxrss")  # Linux counts in KiB

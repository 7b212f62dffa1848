"""Energy of a window of time, from whatever instruments this machine has.

Rules, each of them from an error that people make with such numbers:

* Total and idle-subtracted energy are both given: power is not energy, and a faster run pays idle for less time.
* A window shorter than the counter's update interval has no reading; a window of a few updates carries their error.
* Measured and estimated joules are never added. Counters of different parts (card, processor) are, by name.
* On a card, the processor's counter alone is not the machine's energy: without a card counter there is no measured
  total, only an estimate.
"""

import math
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from tapwb.core.errors import UsageError
from tapwb.core.reading import Measured, Reading, Unavailable
from tapwb.monitors import energy_probes as _energy_probes  # fills the registry
from tapwb.monitors.energy_probes.estimate import RELATIVE_UNCERTAINTY
from tapwb.monitors.probe import Probe, Work, probes

del _energy_probes

#: Windows shorter than this are readable but noisy (arXiv:2312.02741 asks for several seconds and repeats).
GOOD_WINDOW_S = 2.0


@dataclass(frozen=True, slots=True)
class EnergyReading:
    """Energy of one window.

    Attributes:
        total_j: All energy of the window, joules.
        idle_subtracted_j: The same without what the machine draws at rest, joules.
        mean_power_w: ``total_j`` over the duration, watts.
        duration_s: Length of the window, seconds.
        source: Source of ``total_j``, or ``"unavailable"``.
        parts: Reading of every instrument by its name; only those named in ``source`` are in the total.
        warnings: What a reader of the number should know, one line each.
    """

    total_j: Measured
    idle_subtracted_j: Measured
    mean_power_w: Measured
    duration_s: float
    source: str
    parts: Mapping[str, Measured] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "total_j": self.total_j.to_json(),
            "idle_subtracted_j": self.idle_subtracted_j.to_json(),
            "mean_power_w": self.mean_power_w.to_json(),
            "duration_s": self.duration_s,
            "source": self.source,
            "parts": {name: part.to_json() for name, part in self.parts.items()},
            "warnings": list(self.warnings),
        }


@dataclass(slots=True)
class _Window:
    """An open window: when it began and what every probe showed then."""

    start_s: float
    work: Work
    start_j: dict[str, float | Unavailable]


class EnergyMonitor:
    """Reads energy over windows.

    Args:
        probes: Instruments, open or by name; by default every one that fits ``device``, and the estimate.
        device: Torch device whose energy is wanted.
        clock: Seconds, rising.

    Attributes:
        probes: The instruments in use.
        unavailable: Instruments that this machine does not have, with the reason.
        reading: The last window closed by a ``with`` block.

    Example:
        >>> with EnergyMonitor(["estimate"]) as monitor:
        ...     monitor.add_work(bytes_moved=10**9, operations=10**9)
        >>> monitor.reading.source
        'estimated:bytes-and-ops'
    """

    def __init__(
        self,
        probes: Sequence[Probe | str] | None = None,
        *,
        device: str = "cpu",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.unavailable: dict[str, Unavailable] = {}
        self.reading: EnergyReading | None = None
        self._clock = clock
        self._work = Work()
        self._windows: dict[str, _Window] = {}
        self._watch: _WrapWatch | None = None
        self.probes: tuple[Probe, ...] = tuple(self._open(probes, device))

    def begin(self, window: str = "window") -> None:
        """Open a window; windows of different names may overlap.

        Raises:
            UsageError: If one of that name is open.
        """
        if window in self._windows:
            raise UsageError(f"the energy window {window!r} is already open. End it, or give this one another name.")
        _synchronize_devices()
        now_s = self._clock()
        start_j = {probe.name: probe.energy_j(now_s, self._work) for probe in self.probes}
        self._windows[window] = _Window(now_s, self._work, start_j)
        if self._watch is None and (gaps := [p.max_gap_s for p in self.probes if p.max_gap_s is not None]):
            self._watch = _WrapWatch(self._touch, min(gaps) / 2)

    def add_work(self, bytes_moved: int = 0, operations: int = 0) -> None:
        """Report work done in the open windows, for the estimate.

        Args:
            bytes_moved: Bytes read from and written to memory.
            operations: Arithmetic operations; a multiply-add counts as two.

        Raises:
            UsageError: If either is negative.
        """
        if bytes_moved < 0 or operations < 0:
            raise UsageError(f"work of {bytes_moved} bytes and {operations} operations: give amounts of at least 0.")
        self._work = self._work + Work(bytes_moved, operations)

    def end(self, window: str = "window", *, bytes_moved: int = 0, operations: int = 0) -> EnergyReading:
        """Close a window and read it.

        Args:
            window: Its name.
            bytes_moved: Work to add before closing, see :meth:`add_work`.
            operations: The same.

        Raises:
            UsageError: If no such window is open.
        """
        if window not in self._windows:
            raise UsageError(f"no energy window {window!r} is open. Call begin({window!r}) first.")
        _synchronize_devices()
        self.add_work(bytes_moved, operations)
        now_s = self._clock()
        opened = self._windows.pop(window)
        ends_j = {probe.name: probe.energy_j(now_s, self._work) for probe in self.probes}
        if not self._windows:
            self._stop_watch()
        duration_s = now_s - opened.start_s
        done = Work(self._work.bytes_moved - opened.work.bytes_moved, self._work.operations - opened.work.operations)
        parts = {
            probe.name: _difference(probe, opened.start_j[probe.name], ends_j[probe.name], duration_s, done)
            for probe in self.probes
        }
        return self._sum_up(parts, duration_s)

    def measure_idle(self, duration_s: float = 2.0, sleep: Callable[[float], None] = time.sleep) -> dict[str, Measured]:
        """Measure the power at rest of every counter, to subtract it afterwards.

        Call it while nothing runs, close to the run: warm silicon leaks more than cold.

        Args:
            duration_s: How long to watch, seconds.
            sleep: Waits.

        Returns:
            Watts by probe name; the estimate keeps the constant of its model.
        """
        self.begin("idle")
        sleep(duration_s)
        rest = self.end("idle")
        found: dict[str, Measured] = {}
        for probe in self.probes:
            part = rest.parts[probe.name]
            if not probe.source.startswith("measured:"):
                continue
            if isinstance(part, Reading):
                probe.idle_power_w = part.value / rest.duration_s
                found[probe.name] = Reading(probe.idle_power_w, "W", probe.source)
            else:
                probe.idle_power_w = part
                found[probe.name] = part
        return found

    def close(self) -> None:
        """Drop open windows and let go of the devices."""
        self._windows.clear()
        self._stop_watch()
        for probe in self.probes:
            probe.close()

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(self, *error: object) -> None:
        self.reading = self.end()

    # --- inside ---

    def _open(self, asked: Sequence[Probe | str] | None, device: str) -> list[Probe]:
        names = _fitting(device) if asked is None else asked
        opened: list[Probe] = []
        for name in names:
            if not isinstance(name, str):
                opened.append(name)
                continue
            is_card = probes.entry(name).metadata.get("device") == "cuda"
            _, _, index = device.partition(":")
            arguments = {"device_index": int(index)} if is_card and index else {}
            probe = probes[name](device=device) if name == "estimate" else probes[name](**arguments)
            if isinstance(probe, Unavailable):
                self.unavailable[name] = probe
            else:
                opened.append(probe)
        if asked is None and device.startswith("cuda") and not {"nvml", "amd"} & {p.name for p in opened}:
            reason = "without a card counter the processor alone would pass for the whole machine"
            for probe in [p for p in opened if p.source.startswith("measured:")]:
                probe.close()
                opened.remove(probe)
                self.unavailable[probe.name] = Unavailable(reason)
        return opened

    def _sum_up(self, parts: dict[str, Measured], duration_s: float) -> EnergyReading:
        chosen = [p for p in self.probes if p.source.startswith("measured:")] or list(self.probes)[:1]
        total_j = _add([parts[p.name] for p in chosen]) if chosen else Unavailable(self._why_nothing())
        rest: list[Measured] = [_rest(p, parts[p.name], duration_s) for p in chosen]
        idle_subtracted_j = _add(rest) if chosen else total_j
        power: Measured = total_j
        if isinstance(total_j, Reading):
            spread = total_j.uncertainty
            power = Reading(
                total_j.value / duration_s, "W", total_j.source, None if spread is None else spread / duration_s
            )
        warnings = []
        if isinstance(total_j, Reading) and total_j.is_measured and duration_s < GOOD_WINDOW_S:
            warnings.append(
                f"the window of {duration_s:.2g} s is short for an energy counter: repeat the work for "
                f"{GOOD_WINDOW_S:g} s or more"
            )
        source = total_j.source if isinstance(total_j, Reading) else "unavailable"
        return EnergyReading(total_j, idle_subtracted_j, power, duration_s, source, parts, tuple(warnings))

    def _why_nothing(self) -> str:
        reasons = "; ".join(f"{name}: {why.reason}" for name, why in self.unavailable.items())
        return f"no energy instrument ({reasons or 'none was asked for'})"

    def _touch(self) -> None:
        now_s = self._clock()
        for probe in self.probes:
            if probe.max_gap_s is not None:
                probe.energy_j(now_s, self._work)

    def _stop_watch(self) -> None:
        if self._watch is not None:
            self._watch.stop()
            self._watch = None


class _WrapWatch:
    """Reads counters now and then from a thread, so that none wraps twice between two readings."""

    def __init__(self, touch: Callable[[], None], every_s: float) -> None:
        self._stopped = threading.Event()
        self._touch = touch
        self._every_s = every_s
        self._thread = threading.Thread(target=self._run, name="tapwb-energy", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s):
            self._touch()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._thread.join()


def _fitting(device: str) -> list[str]:
    kinds = {"cpu", "any"} | ({"cuda"} if device.startswith("cuda") else set())
    names = [name for name in probes if probes.entry(name).metadata.get("device") in kinds]
    return sorted(names, key=lambda name: probes.entry(name).metadata["device"] == "any")  # counters first


def _difference(
    probe: Probe, start_j: float | Unavailable, end_j: float | Unavailable, duration_s: float, work: Work
) -> Measured:
    """Energy of a window by one probe."""
    for value in (start_j, end_j):
        if isinstance(value, Unavailable):
            return value
    if duration_s < probe.update_interval_s:
        return Unavailable(
            f"a window of {duration_s:.3g} s is shorter than the {probe.update_interval_s:g} s between two updates of "
            f"the {probe.name} counter: repeat the work"
        )
    energy_j = float(end_j) - float(start_j)  # type: ignore[arg-type]
    if not probe.source.startswith("measured:"):
        if work == Work():
            return Unavailable("nobody reported the bytes and operations of this window: call add_work()")
        return Reading(energy_j, "J", probe.source, uncertainty=RELATIVE_UNCERTAINTY * energy_j)
    if energy_j <= 0:
        return Unavailable(f"the {probe.name} counter did not advance in {duration_s:.3g} s")
    # Each end falls anywhere between two updates: two uniform errors of one interval, sd T / sqrt(12) each.
    tick_j = energy_j / duration_s * probe.update_interval_s / math.sqrt(6)
    return Reading(energy_j, "J", probe.source, uncertainty=tick_j)


def _rest(probe: Probe, part: Measured, duration_s: float) -> Measured:
    """A part without its idle energy."""
    if isinstance(part, Unavailable):
        return part
    if isinstance(probe.idle_power_w, Unavailable):
        return probe.idle_power_w
    return Reading(part.value - probe.idle_power_w * duration_s, "J", part.source, part.uncertainty)


def _add(parts: Sequence[Measured]) -> Measured:
    """Sum of parts of one kind; one missing part leaves no sum."""
    total_j, variance, sources = 0.0, 0.0, []
    for part in parts:
        if isinstance(part, Unavailable):
            return part
        total_j += part.value
        variance += (part.uncertainty or 0.0) ** 2
        sources.append(part.source)
    kind = sources[0].partition(":")[0]
    source = f"{kind}:" + "+".join(source.partition(":")[2] for source in sources)
    return Reading(total_j, "J", source, uncertainty=math.sqrt(variance))


def _synchronize_devices() -> None:
    # Work still queued on a card would be paid for outside its window.
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()

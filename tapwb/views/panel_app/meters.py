"""The small meters of the status bar: power, memory, speed; one set of instruments for the whole process."""

import threading
import time

from tapwb.core.reading import Measured, Reading, Unavailable
from tapwb.core.units import format_bytes
from tapwb.monitors.energy import EnergyMonitor
from tapwb.monitors.memory import MemoryTracker
from tapwb.monitors.probe import probes
from tapwb.views.borrowed_words import source_words
from tapwb.views.i18n import Translate

_WINDOW = "meter"
# Counters move every 0.1 s at best; shorter windows would jump.
_INTERVAL_S = 2.0


class PowerMeter:
    """Mean power over the last seconds, from counters only: an estimate has no place on a meter."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._monitor: EnergyMonitor | None = None
        self._began_s = 0.0
        self._last: Measured = Unavailable("the first reading takes two seconds")

    def read(self) -> Measured:
        """Watts, or why they cannot be measured here."""
        with self._lock:
            if self._monitor is None:
                self._monitor = EnergyMonitor([n for n in probes.names() if n not in ("estimate", "replay")])
                self._monitor.begin(_WINDOW)
                self._began_s = time.monotonic()
            if not self._monitor.probes:
                reasons = "; ".join(f"{name}: {why.reason}" for name, why in self._monitor.unavailable.items())
                return Unavailable(reasons or "no energy counter is known")
            if time.monotonic() - self._began_s >= _INTERVAL_S:
                self._last = self._monitor.end(_WINDOW).mean_power_w
                self._monitor.begin(_WINDOW)
                self._began_s = time.monotonic()
            return self._last


POWER = PowerMeter()
_MEMORY = MemoryTracker()


def memory() -> Measured:
    """Resident memory of this process, bytes."""
    return _MEMORY.snapshot().rss_bytes


def show(measured: Measured, _: Translate, missing: str = "") -> str:
    """A reading with its unit and whether it was measured, for people; without one, ``missing`` in a word or two."""
    if isinstance(measured, Unavailable):
        return missing or _("unavailable")
    value = measured.value
    number = f"{value:,.0f} {measured.unit}" if value >= 100 else f"{value:.3g} {measured.unit}"
    shown = format_bytes(value) if measured.unit == "byte" else number
    return f"{shown} ({_('measured') if measured.is_measured else _('estimated')})"


def source(measured: Measured, _: Translate) -> str:
    """Where a reading comes from, or the reason why there is none."""
    if isinstance(measured, Reading):
        return source_words(measured.source, _)
    return measured.reason

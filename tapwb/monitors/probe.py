"""The border every energy instrument is read through.

A probe is a *cumulative* joule counter: two readings and a subtraction give the energy of a window, so nested and
overlapping windows need no help from the instrument. Real counters ignore the work that was done; the estimate is
computed from it. That one method serves both, and the window logic is written once, in ``energy.py``.

A probe is opened by a function that returns either the probe or the reason why this machine has none: a missing
driver is a fact about the machine, not an error of the caller.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from tapwb.core.reading import Unavailable
from tapwb.core.registry import Registry


@dataclass(frozen=True, slots=True)
class Work:
    """What a window did, for instruments that compute energy instead of measuring it.

    Attributes:
        bytes_moved: Bytes read from and written to memory outside the processor.
        operations: Arithmetic operations; a multiply-add counts as two.
    """

    bytes_moved: int = 0
    operations: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.bytes_moved + other.bytes_moved, self.operations + other.operations)


@runtime_checkable
class Probe(Protocol):
    """One energy instrument.

    Attributes:
        name: Its name in the registry.
        source: What a reading says it comes from: ``"measured:<counter>"`` or ``"estimated:<model>"``.
        update_interval_s: How often the counter moves; a shorter window cannot be read.
        max_gap_s: Longest time between two readings before the counter may have wrapped unseen; ``None``: no limit.
        idle_power_w: Power at rest that a window's energy includes, or why it is not known yet.
    """

    name: str
    source: str
    update_interval_s: float
    max_gap_s: float | None
    idle_power_w: float | Unavailable

    def energy_j(self, now_s: float, work: Work) -> float | Unavailable:
        """Joules since some fixed moment.

        Args:
            now_s: The monitor's clock.
            work: Everything done since the monitor was made.
        """

    def close(self) -> None:
        """Let go of the device; may be called twice."""


OpenProbe = Callable[..., Probe | Unavailable]

#: Instruments by name; each entry opens one, with defaults for every argument.
probes: Registry[OpenProbe] = Registry("energy probe")

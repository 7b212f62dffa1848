"""Processors: the RAPL counters that Linux shows as powercap files (Intel and AMD).

Each domain is a folder with ``name``, ``energy_uj`` and ``max_energy_range_uj``; the counter wraps to zero at the
latter. Package domains are summed, with the DRAM domain where the package does not include it. ``core`` and ``uncore``
are parts of the package, ``psys`` contains it, and ``intel-rapl-mmio`` shows the same package again: none is added.

Only root may read the counters by default (CVE-2020-8694), which is said instead of reported as zero.
"""

import threading
from dataclasses import dataclass
from pathlib import Path

from tapwb.core.reading import Unavailable
from tapwb.monitors.probe import Probe, Work, probes

POWERCAP = Path("/sys/class/powercap")
#: No package draws more; the shortest time in which a counter can wrap follows from it.
_MOST_POWER_W = 1000.0


@dataclass(slots=True)
class _Domain:
    """One counter and what was seen of it."""

    folder: Path
    range_uj: int
    last_uj: int
    total_uj: int = 0

    def advance(self) -> int:
        """Microjoules since the domain was opened, wraps included."""
        now_uj = int((self.folder / "energy_uj").read_text())
        step_uj = now_uj - self.last_uj
        self.total_uj += step_uj if step_uj >= 0 else step_uj + self.range_uj
        self.last_uj = now_uj
        return self.total_uj


class RaplProbe:
    """Sum of the package (and separate DRAM) counters of one machine."""

    name = "rapl"
    source = "measured:rapl-package"
    update_interval_s = 0.01  # the counters move every millisecond; ten make the tick negligible

    def __init__(self, domains: list[_Domain]) -> None:
        self._domains = domains
        self._lock = threading.Lock()  # the monitor also reads from a thread, to see every wrap
        self.idle_power_w: float | Unavailable = Unavailable("idle power was not measured: call measure_idle() first")
        self.max_gap_s: float | None = min(domain.range_uj for domain in domains) / 1e6 / _MOST_POWER_W

    def energy_j(self, now_s: float, work: Work) -> float | Unavailable:
        """Joules since the probe was opened."""
        try:
            with self._lock:
                return sum(domain.advance() for domain in self._domains) / 1e6
        except (OSError, ValueError) as error:
            return Unavailable(f"a RAPL counter cannot be read any more ({error})")

    def close(self) -> None:
        """Nothing to let go of."""


@probes.register("rapl", "processor package counters (Linux powercap)", device="cpu")
def open_rapl(root: Path | str = POWERCAP) -> Probe | Unavailable:
    """Open the package counters under ``root``.

    Args:
        root: Powercap folder.
    """
    root = Path(root)
    domains: list[_Domain] = []
    try:
        folders = sorted(root.glob("intel-rapl:*")) if root.is_dir() else []
        for folder in folders:
            name = (folder / "name").read_text().strip()
            if name.startswith("package") or name == "dram":
                range_uj = int((folder / "max_energy_range_uj").read_text())
                domains.append(_Domain(folder, range_uj, int((folder / "energy_uj").read_text())))
    except PermissionError as error:
        return Unavailable(f"RAPL needs the right to read {error.filename}: run as root, or chmod a+r that file")
    except (OSError, ValueError) as error:
        return Unavailable(f"the RAPL counters under {root} cannot be read ({error})")
    if not any(domain.range_uj > 0 for domain in domains):
        return Unavailable(f"no RAPL package counter under {root}: not Linux on bare metal, or no driver")
    return RaplProbe(domains)

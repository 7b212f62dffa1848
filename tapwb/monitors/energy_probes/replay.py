"""A recorded counter, played back: tests and demonstrations see real energy curves on a machine without a counter.

The file is CSV with the columns ``time_s`` and ``energy_j`` (cumulative). Playback starts at the first reading and
holds each value until the next one, as a counter does. The source says that it is a replay.
"""

import bisect
import csv
import itertools
from pathlib import Path

from tapwb.core.errors import UsageError
from tapwb.core.reading import Unavailable
from tapwb.monitors.probe import Probe, Work, probes


class ReplayProbe:
    """Plays back one recording.

    Args:
        time_s: Times of the recorded values, rising.
        energy_j: Cumulative energy at those times, never falling.
        label: Name of the recording, for the source.
    """

    name = "replay"
    max_gap_s: float | None = None

    def __init__(self, time_s: list[float], energy_j: list[float], label: str) -> None:
        self.source = f"measured:replay-{label}"
        self._time_s = time_s
        self._energy_j = energy_j
        self._start_s: float | None = None
        self.update_interval_s = (time_s[-1] - time_s[0]) / (len(time_s) - 1)
        self.idle_power_w: float | Unavailable = Unavailable("idle power was not measured: call measure_idle() first")

    def energy_j(self, now_s: float, work: Work) -> float | Unavailable:
        """Recorded joules at the present moment of the playback."""
        if self._start_s is None:
            self._start_s = now_s
        at_s = now_s - self._start_s + self._time_s[0]
        if at_s > self._time_s[-1] + self.update_interval_s:
            return Unavailable(f"the recording ends after {self._time_s[-1] - self._time_s[0]:g} s")
        # A hair of slack, so that a value recorded at exactly this moment is not missed by rounding.
        return self._energy_j[max(0, bisect.bisect_right(self._time_s, at_s + 1e-9) - 1)]

    def close(self) -> None:
        """Nothing to let go of."""


@probes.register("replay", "a recorded counter (CSV with time_s, energy_j)", device="none")
def open_replay(path: Path | str | None = None) -> Probe | Unavailable:
    """Open a recording.

    Args:
        path: The CSV file.

    Raises:
        UsageError: If the file is not such a recording.
    """
    if path is None:
        return Unavailable("no recording was given: open the replay probe with path=FILE.csv")
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        time_s = [float(row["time_s"]) for row in rows]
        energy_j = [float(row["energy_j"]) for row in rows]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{path} is no energy recording ({error!r}). Give a CSV file with the columns time_s and energy_j."
        ) from error
    rising = all(a < b for a, b in itertools.pairwise(time_s))
    if len(time_s) < 2 or not rising or sorted(energy_j) != energy_j:
        raise UsageError(f"{path} needs at least two rows with rising time_s and energy_j that never falls.")
    return ReplayProbe(time_s, energy_j, path.stem)

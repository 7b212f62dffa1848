"""The last record of the flow: every reading of one run under its name, and where it was made."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tapwb.core.errors import ReportError
from tapwb.core.provenance import Provenance
from tapwb.core.reading import Measured, Reading, Unavailable


@dataclass(frozen=True, slots=True)
class Report:
    """All readings of one run.

    Attributes:
        readings: By dotted name, in the order in which they are shown: ``"speed.ttft_s"``, ``"energy.total_j"``.
        provenance: Where, when, on what and with which seed.
        title: What was run, for people.
    """

    readings: Mapping[str, Measured]
    provenance: Provenance
    title: str = ""

    def __getitem__(self, name: str) -> Measured:
        try:
            return self.readings[name]
        except KeyError:
            known = ", ".join(self.readings) or "none"
            raise ReportError(f"no reading {name!r} in this report. It holds: {known}.") from None

    def section(self, name: str) -> Iterator[tuple[str, Measured]]:
        """Readings whose dotted name begins with ``name``, without that beginning."""
        for full, reading in self.readings.items():
            if full.startswith(f"{name}."):
                yield full.removeprefix(f"{name}."), reading

    def unavailable(self) -> dict[str, str]:
        """Why which reading is missing."""
        return {name: reading.reason for name, reading in self.readings.items() if isinstance(reading, Unavailable)}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "title": self.title,
            "readings": {name: reading.to_json() for name, reading in self.readings.items()},
            "provenance": self.provenance.to_json(),
        }


def reading_from_json(data: Mapping[str, Any]) -> Measured:
    """A reading back from its JSON.

    Raises:
        ReportError: If it is none.
    """
    if "unavailable" in data:
        return Unavailable(str(data["unavailable"]))
    try:
        low_high = data.get("ci95")
        return Reading(
            float(data["value"]),
            str(data["unit"]),
            str(data["source"]),
            None if data.get("uncertainty") is None else float(data["uncertainty"]),
            None if data.get("n") is None else int(data["n"]),
            None if low_high is None else (float(low_high[0]), float(low_high[1])),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ReportError(
            f"{dict(data)!r} is no reading ({error!r}). A reading has value, unit and source, or unavailable."
        ) from error

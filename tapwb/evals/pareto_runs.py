"""A Pareto measurement that stays: found again for the same model and text, and every point a saved run of its own.

The measurement lies in the cache by what it depends on (weights, text, settings); its points lie in the folder of runs,
each with the plans of its windows, so that a point on a chart can be opened and questioned.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tapwb.core import settings as environment
from tapwb.core.errors import StoreError, TapError
from tapwb.core.reading import Measured, Reading, Unavailable
from tapwb.evals.pareto_table import ParetoPoint, ParetoTable
from tapwb.metrics.adaptivity import damage_at_bits
from tapwb.metrics.statistics import Interval, bootstrap_ci
from tapwb.store import RunRecord, RunStore

if TYPE_CHECKING:
    from tapwb.evals.pareto import ParetoSettings
    from tapwb.plan.precision_plan import PrecisionPlan

FORMAT = "tapwb.pareto_measurement"
FORMAT_VERSION = 1
#: Kind of the saved run behind one point.
POINT_KIND = "pareto-point"
#: Families in the order of a legend; what a user would deploy, then what it is held against.
FAMILIES = (
    "uniform", "router", "layers+tokens", "layers", "adaptive", "floors", "shuffled", "shuffled router", "random",
    "oracle",
)  # fmt: skip
_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Subject:
    """What was measured.

    Attributes:
        model_id: The model as it was asked for.
        checksum_sha256: Its weights.
        text_name: What the text is called.
        text_sha256: The text.
    """

    model_id: str
    checksum_sha256: str
    text_name: str
    text_sha256: str

    @classmethod
    def of(cls, model_id: str, checksum_sha256: str, text_name: str, text: str) -> "Subject":
        """The subject of a measurement on this text."""
        return cls(model_id, checksum_sha256, text_name, hashlib.sha256(text.encode()).hexdigest())

    @property
    def key(self) -> str:
        """Short name of weights and text."""
        return hashlib.sha256(f"{self.checksum_sha256}|{self.text_sha256}".encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class ShownPoint:
    """One point as a chart shows it.

    Attributes:
        precision: In the grammar of the command line; its name in the measurement.
        family: See :class:`~tapwb.evals.pareto_table.ParetoPoint`.
        signal: What scored the tokens.
        target_bits: Mean that was asked for.
        mean_bits: Mean bits used.
        kl: Mean KL divergence with its interval over windows, nats per token.
        perplexity_ratio: Perplexity over that of the weights as loaded.
        gain: Adaptivity gain, bits.
        share: Share of the oracle's gain.
        run_id: The saved run; ``None`` where the measurement came from a file without runs.
    """

    precision: str
    family: str
    signal: str | None
    target_bits: float
    mean_bits: float
    kl: Reading
    perplexity_ratio: float
    gain: Measured
    share: Measured
    run_id: str | None


@dataclass(frozen=True, slots=True)
class AtBudget:
    """What one curve promises at a budget.

    Attributes:
        family: Family of the curve.
        signal: Its signal.
        kl: Interpolated KL divergence, nats per token, or why there is none.
        relative: The same over that of uniform at the same bits.
    """

    family: str
    signal: str | None
    kl: Measured
    relative: Measured


@dataclass(frozen=True, eq=False)
class Measurement:
    """A measurement with what it is known by.

    Attributes:
        table: Points and windows.
        payload: JSON of the table with every derived number; computed once.
        subject: Model and text; ``None`` where a file does not say it.
        settings: What was measured, as JSON.
        saved_utc: When.
        runs: Id of the saved run of each point.
        source: ``"measured"``, ``"cache"``, or the name of the file it was read from.
    """

    table: ParetoTable
    payload: Mapping[str, Any]
    subject: Subject | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    saved_utc: str = ""
    runs: Mapping[str, str] = field(default_factory=dict)
    source: str = "measured"

    @functools.cached_property
    def points(self) -> tuple[ShownPoint, ...]:
        """Every point, in the order of the table."""
        return tuple(
            _shown(point, data, self.runs.get(point.precision))
            for point, data in zip(self.table.points, self.payload["points"], strict=True)
        )

    @functools.cached_property
    def curves(self) -> dict[tuple[str, str | None], dict[float, float]]:
        """KL divergence by mean bits, for each family and signal."""
        found: dict[tuple[str, str | None], dict[float, float]] = {}
        others = tuple(dict.fromkeys(point.family for point in self.points if point.family not in FAMILIES))
        for family in (*FAMILIES, *others):
            for point in self.points:
                if point.family == family:
                    found.setdefault((family, point.signal), {})[point.mean_bits] = point.kl.value
        return found

    def at(self, mean_bits: float) -> list[AtBudget]:
        """What every curve promises at this mean; drawn from what was measured, without a model."""
        uniform = damage_at_bits(self.curves.get(("uniform", None), {}), mean_bits)
        rows = []
        for (family, signal), curve in self.curves.items():
            here = damage_at_bits(curve, mean_bits)
            relative: Measured = here if isinstance(here, Unavailable) else uniform
            if isinstance(here, Reading) and isinstance(uniform, Reading) and uniform.value > 0:
                relative = Reading(here.value / uniform.value, "1", uniform.source)
            rows.append(AtBudget(family, signal, here, relative))
        return rows

    def point(self, precision: str) -> ShownPoint:
        """The point of this name.

        Raises:
            TapError: If there is none.
        """
        found = next((point for point in self.points if point.precision == precision), None)
        if found is None:
            raise TapError(f"no point {precision!r} in this measurement. Choose one of the chart.")
        return found

    def record(self, precision: str, store: RunStore) -> RunRecord:
        """The run that produced a point: the saved one, or what the file of the measurement says of it.

        Raises:
            TapError: If there is no such point, or its run cannot be read any more.
        """
        run_id = self.point(precision).run_id
        if run_id is not None:
            return store.load(run_id)
        index = [point.precision for point in self.table.points].index(precision)
        return _record(self, index)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; holds the record of ``tapwb pareto --out`` whole."""
        subject = None if self.subject is None else dataclasses.asdict(self.subject)
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "subject": subject,
            "settings": dict(self.settings),
            "saved_utc": self.saved_utc,
            "runs": dict(self.runs),
            "table": dict(self.payload),
        }

    @classmethod
    def from_json(cls, data: object, source: str) -> "Measurement":
        """A measurement from its own JSON, or from that of ``tapwb pareto``.

        Args:
            data: Parsed JSON.
            source: Where it comes from, for the reader.

        Raises:
            TapError: If it is neither.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            table = ParetoTable.from_json(data)
            utc = str(table.provenance.get("utc", ""))
            return cls(table, table.to_json(), None, dict(table.setup), utc, {}, source)
        try:
            if data["format_version"] != FORMAT_VERSION:
                raise ValueError(f"version {data['format_version']!r}")
            table = ParetoTable.from_json(data["table"])
            subject = None if data["subject"] is None else Subject(**data["subject"])
            runs = {str(name): str(run) for name, run in data["runs"].items()}
            known = {point.precision for point in table.points}
            # What is drawn is computed from the windows again, unless the file is ours: others may have been edited.
            payload = data["table"] if source == "cache" else table.to_json()
            shown = {name: run for name, run in runs.items() if name in known}
            return cls(table, payload, subject, dict(data["settings"]), str(data["saved_utc"]), shown, source)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TapError(f"this JSON is no Pareto measurement ({error}). Measure again.") from None


def keep_measurement(
    table: ParetoTable,
    plans: Mapping[str, Sequence["PrecisionPlan"]],
    subject: Subject,
    settings: "ParetoSettings",
    store: RunStore,
) -> Measurement:
    """Save every point as a run, and the measurement in the cache.

    Args:
        table: What was measured.
        plans: The plan of every window by the name of its point.
        subject: Model and text.
        settings: What was asked for.
        store: Where runs are kept.

    Raises:
        StoreError: If runs cannot be written.
        DiskFull: If there is no room.
    """
    utc = datetime.now(UTC).isoformat(timespec="seconds")
    made = Measurement(table, table.to_json(), subject, dataclasses.asdict(settings), utc)
    runs = {}
    for index, point in enumerate(table.points):
        record = _record(made, index)
        arrays = {
            f"bits_window_{window}": plan.bits.cpu().numpy()
            for window, plan in enumerate(plans.get(point.precision, ()))
        }
        store.save(record, arrays=arrays or None)
        runs[point.precision] = record.run_id
    made = dataclasses.replace(made, runs=runs)
    _write(_file(subject, settings), made.to_json())
    return made


def find_measurement(subject: Subject, settings: "ParetoSettings") -> Measurement | None:
    """The measurement of this model and text in the cache: with these settings, or else the newest with others."""
    exact = _file(subject, settings)
    others = sorted(exact.parent.glob(f"{subject.key}-*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in [exact, *(other for other in others if other != exact)]:
        if (found := _read(file)) is not None:
            return found
    return None


def has_settings(measurement: Measurement, settings: "ParetoSettings") -> bool:
    """Whether a measurement was made with these settings."""
    return _settings_key(measurement.settings) == _settings_key(dataclasses.asdict(settings))


def open_measurement(content: str, name: str) -> Measurement:
    """A measurement from a file that this program wrote.

    Args:
        content: Its text.
        name: Its name.

    Raises:
        TapError: If it holds something else.
    """
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise TapError(f"{name!r} is not JSON ({error}). Choose a file made by tapwb pareto --out.") from None
    return Measurement.from_json(data, name)


def n_passes(settings: "ParetoSettings", windows: int) -> int:
    """Passes that a measurement takes, beside those over layers: one for each plan and window, and the reference."""
    return windows * (len(settings.curve()) + len(settings.requests()) + 1)


def _shown(point: ParetoPoint, data: Mapping[str, Any], run_id: str | None) -> ShownPoint:
    interval = bootstrap_ci(point.kl, n_resamples=_RESAMPLES) if len(point.kl) > 1 else None
    if isinstance(interval, Interval):
        kl = interval.to_reading("nat", "measured:mean over windows")
    else:
        kl = Reading(float(np.mean(point.kl)), "nat", "measured:mean over windows", n=len(point.kl))
    return ShownPoint(
        precision=point.precision,
        family=point.family,
        signal=point.signal,
        target_bits=point.target_bits,
        mean_bits=float(np.mean(point.mean_bits)),
        kl=kl,
        perplexity_ratio=float(data["perplexity_ratio"]),
        gain=_reading(data.get("adaptivity_gain_bits"), "uniform widths are the measure of gain, not a part of it"),
        share=_reading(data.get("oracle_share"), "no share of the oracle belongs to this family"),
        run_id=run_id,
    )


def _reading(data: Mapping[str, Any] | None, otherwise: str) -> Measured:
    if data is None:
        return Unavailable(otherwise)
    if "unavailable" in data:
        return Unavailable(str(data["unavailable"]))
    ci95 = data.get("ci95")
    return Reading(
        float(data["value"]),
        str(data["unit"]),
        str(data["source"]),
        data.get("uncertainty"),
        data.get("n"),
        None if ci95 is None else (float(ci95[0]), float(ci95[1])),
    )


def _record(measurement: Measurement, index: int) -> RunRecord:
    """One point as a run."""
    point, data = measurement.table.points[index], dict(measurement.payload["points"][index])
    asked = {name: data.pop(name) for name in ("precision", "family", "signal", "target_bits")}
    made_with = data.pop("settings")
    subject = measurement.subject
    about = (
        {"model": measurement.table.provenance.get("model_id")}
        if subject is None
        else {"model": subject.model_id, "text": subject.text_name, "text_sha256": subject.text_sha256}
    )
    # Levels of the point stand above those of the whole measurement, which are several.
    setup = {name: value for name, value in measurement.table.setup.items() if name not in ("levels", "layer_levels")}
    settings = {**asked, **setup, **about, **made_with, "windows": len(point.kl)}
    return RunRecord.create(POINT_KIND, provenance=measurement.table.provenance, settings=settings, results=data)


def _settings_key(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(dict(settings), sort_keys=True).encode()).hexdigest()[:12]


def _file(subject: Subject, settings: "ParetoSettings") -> Path:
    name = f"{subject.key}-{_settings_key(dataclasses.asdict(settings))}.json"
    return environment.cache_dir() / "pareto" / name


def _read(file: Path) -> Measurement | None:
    try:
        return Measurement.from_json(json.loads(file.read_text(encoding="utf-8")), "cache")
    except (OSError, ValueError, TapError):  # absent, damaged or of another version: it is measured again
        return None


def _write(file: Path, data: Mapping[str, Any]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        scratch = file.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps(data), encoding="utf-8")
        scratch.replace(file)
    except OSError as error:
        raise StoreError(
            f"the measurement cannot be kept in {file.parent} ({error.strerror or error}). "
            "Set TAPWB_CACHE_DIR to another folder; its points are saved as runs."
        ) from error

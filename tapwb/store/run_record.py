"""One run as data: what was asked, where it ran, what came out. Plain JSON with a version number."""

import dataclasses
import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from pathlib import PurePath
from typing import Any, Self

import numpy as np

from tapwb.core.errors import StoreError
from tapwb.store.redact import redact

#: Raised by one whenever a reader of the old form would misread the new one.
SCHEMA_VERSION = 1
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One saved run.

    Attributes:
        run_id: Name of its folder; those made by :meth:`create` sort by time.
        kind: What was run: ``"run"``, ``"eval-perplexity"``, ``"tokens"``.
        created_utc: ISO 8601 in UTC.
        provenance: Versions, machine, seed, model.
        settings: What was asked for.
        results: What came out.
        schema_version: Form of the record.
    """

    run_id: str
    kind: str
    created_utc: str
    provenance: Mapping[str, Any]
    settings: Mapping[str, Any]
    results: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def create(cls, kind: str, *, provenance: Any, settings: Mapping[str, Any], results: Mapping[str, Any]) -> Self:
        """A new record, stamped now.

        Args:
            kind: What was run.
            provenance: A ``Provenance``, or its JSON.
            settings: What was asked for; readings, records, paths and NumPy numbers become plain JSON.
            results: What came out, likewise.

        Raises:
            StoreError: If something in it has no JSON form.
        """
        now = datetime.now(UTC)
        # Microseconds in the name keep runs of one second in order; the tail keeps two processes apart.
        run_id = f"{now:%Y%m%dT%H%M%S%f}Z-{secrets.token_hex(3)}"
        return cls(
            run_id,
            kind,
            now.isoformat(timespec="microseconds"),
            to_plain(provenance, "provenance"),
            to_plain(settings, "settings"),
            to_plain(results, "results"),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON with everything that looks like a credential replaced by a marker.

        Raises:
            StoreError: If something in it has no JSON form.
        """
        plain: dict[str, Any] = redact(
            {
                "schema_version": self.schema_version,
                "run_id": check_run_id(self.run_id),
                "kind": self.kind,
                "created_utc": self.created_utc,
                "provenance": to_plain(self.provenance, "provenance"),
                "settings": to_plain(self.settings, "settings"),
                "results": to_plain(self.results, "results"),
            }
        )
        return plain

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """A record back from its JSON.

        Raises:
            StoreError: If it is no record, or of a form that this version does not know.
        """
        if not isinstance(data, dict) or "schema_version" not in data:
            raise StoreError("this is no run record: it has no schema_version. Delete the run, or restore run.json.")
        version = data["schema_version"]
        if not isinstance(version, int) or not 1 <= version <= SCHEMA_VERSION:
            raise StoreError(
                f"run record of schema {version!r}; this version reads 1 to {SCHEMA_VERSION}. "
                "Update tapwb to the version that wrote it, or delete the run."
            )
        texts = {name: data.get(name) for name in ("run_id", "kind", "created_utc")}
        parts = {name: data.get(name) for name in ("provenance", "settings", "results")}
        wrong = [name for name, value in texts.items() if not isinstance(value, str)]
        wrong += [name for name, value in parts.items() if not isinstance(value, dict)]
        if wrong:
            raise StoreError(f"the run record lacks {', '.join(wrong)}. Delete the run, or restore run.json.")
        return cls(**texts, **parts, schema_version=version)  # type: ignore[arg-type]


def check_run_id(run_id: str) -> str:
    """``run_id``, if it can name a folder.

    Raises:
        StoreError: If it holds anything but letters, digits, ``-`` and ``_``.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise StoreError(f"{run_id!r} is no run id. Use letters, digits, - and _, at most 100 (see the list of runs).")
    return run_id


def to_plain(value: Any, path: str = "value") -> Any:
    """``value`` as JSON data: readings and records by their ``to_json``, arrays as lists, times and paths as text.

    Args:
        value: What to convert.
        path: Where it stands, for the error message.

    Raises:
        StoreError: If it has no JSON form, or a number is not finite.
    """
    if value is None or (isinstance(value, bool | str) and not isinstance(value, Enum)):
        return value
    if isinstance(value, Enum):
        return to_plain(value.value, path)
    if isinstance(value, int | float | np.number | np.bool_):
        return _number(value, path)
    if callable(getattr(value, "to_json", None)):
        return to_plain(value.to_json(), path)
    if isinstance(value, Mapping):
        return {str(_key(name, path)): to_plain(part, f"{path}.{name}") for name, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        parts = sorted(value) if isinstance(value, set | frozenset) else value
        return [to_plain(part, f"{path}[{i}]") for i, part in enumerate(parts)]
    if isinstance(value, np.ndarray):
        return to_plain(value.tolist(), path)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name), f"{path}.{f.name}") for f in dataclasses.fields(value)}
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat()
    raise StoreError(f"{path} is a {type(value).__name__}, which has no JSON form. Save plain values, or pass arrays=.")


def _number(value: Any, path: str) -> bool | int | float:
    plain: bool | int | float = value.item() if isinstance(value, np.generic) else value
    if isinstance(plain, float) and not math.isfinite(plain):
        raise StoreError(f"{path} is {plain}, which JSON cannot hold. Save Unavailable(reason) instead.")
    return plain


def _key(name: Any, path: str) -> Any:
    if isinstance(name, Enum):
        return name.value
    if not isinstance(name, str | int | float):
        raise StoreError(f"{path} has a {type(name).__name__} for a name. Use text.")
    return name

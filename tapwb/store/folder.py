"""A folder of runs.

::

    <root>/.lock
    <root>/<run id>/run.json
    <root>/<run id>/arrays-<hash>.npz

Writers hold the lock; readers need none, because ``run.json`` is replaced in one step and names the arrays that belong
to it. Whatever a killed writer leaves behind is hidden from readers and swept away by the next writer.
"""

import errno
import hashlib
import io
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tapwb.core.errors import DiskFull, StoreError
from tapwb.core.settings import runs_dir
from tapwb.store.lock import folder_lock
from tapwb.store.run_record import RunRecord, check_run_id

_RECORD = "run.json"
_ARRAYS_KEY = "arrays_file"
_TEMPORARY = ".tmp-"
_DELETED = ".deleted-"


@dataclass(frozen=True, slots=True)
class RunProblem:
    """A run that cannot be read.

    Attributes:
        run_id: Name of its folder.
        reason: Why, in one line.
    """

    run_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class RunListing:
    """What is on the shelf.

    Attributes:
        runs: Readable runs, newest first.
        problems: The others, so that they are neither hidden nor in the way.
    """

    runs: tuple[RunRecord, ...]
    problems: tuple[RunProblem, ...]


class RunStore:
    """Saved runs in a folder.

    Args:
        path: The folder; by default ``TAPWB_RUNS_DIR``. Made on the first save.
        lock_timeout_s: Longest wait for another writer.
    """

    def __init__(self, path: Path | str | None = None, *, lock_timeout_s: float = 30.0) -> None:
        self.path = runs_dir() if path is None else Path(path)
        self._lock_timeout_s = lock_timeout_s

    def save(
        self, record: RunRecord, *, arrays: Mapping[str, NDArray[Any]] | None = None, overwrite: bool = False
    ) -> Path:
        """Write a run, whole or not at all.

        Args:
            record: The run; texts that look like credentials are replaced by a marker.
            arrays: Numeric arrays to keep beside it, any shapes.
            overwrite: Whether a run of this id may be replaced, arrays included.

        Returns:
            The folder of the run.

        Raises:
            StoreError: If the id is taken, something has no JSON form, or the folder cannot be written.
            DiskFull: If there is no room; nothing half written stays.
        """
        data = record.to_json()
        packed = _pack(arrays) if arrays else None
        if packed is not None:
            data[_ARRAYS_KEY] = f"arrays-{hashlib.sha256(packed).hexdigest()[:16]}.npz"
        text = json.dumps(data, ensure_ascii=False, indent=1, allow_nan=False)
        target = self.path / record.run_id
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with folder_lock(self.path, self._lock_timeout_s):
                self._sweep()
                if (target / _RECORD).exists() and not overwrite:
                    raise StoreError(f"run {record.run_id} is saved already. Pass overwrite=True to replace it.")
                target.mkdir(exist_ok=True)
                if packed is not None:
                    _write_whole(target / data[_ARRAYS_KEY], packed)
                _write_whole(target / _RECORD, text.encode())
                for old in target.glob("arrays-*.npz"):
                    if old.name != data.get(_ARRAYS_KEY):
                        old.unlink()
        except OSError as error:
            self._undo(target)
            raise _advice(error, self.path) from error
        return target

    def load(self, run_id: str) -> RunRecord:
        """Read a run.

        Raises:
            StoreError: If there is no such run, or it cannot be read.
        """
        return RunRecord.from_json(self._read(run_id))

    def load_arrays(self, run_id: str) -> dict[str, NDArray[Any]]:
        """Read the arrays saved beside a run; none gives an empty dictionary.

        Raises:
            StoreError: If there is no such run, or its arrays cannot be read.
        """
        name = self._read(run_id).get(_ARRAYS_KEY)
        if name is None:
            return {}
        try:
            return self._unpack(run_id, str(name))
        except FileNotFoundError:
            # Replaced between the two reads: the record now names other arrays.
            name = self._read(run_id).get(_ARRAYS_KEY)
        try:
            return {} if name is None else self._unpack(run_id, str(name))
        except FileNotFoundError as error:
            raise StoreError(f"the arrays of run {run_id} are gone. Delete the run.") from error

    def list(self, kind: str | None = None) -> RunListing:
        """All runs, newest first, and those that cannot be read.

        Args:
            kind: Only runs of this kind.
        """
        runs: list[RunRecord] = []
        problems: list[RunProblem] = []
        for folder in sorted(self.path.iterdir()) if self.path.is_dir() else []:
            if folder.name.startswith(".") or not folder.is_dir():
                continue
            try:
                record = self.load(folder.name)
            except StoreError as error:
                problems.append(RunProblem(folder.name, str(error)))
                continue
            if kind is None or record.kind == kind:
                runs.append(record)
        runs.sort(key=lambda record: (record.created_utc, record.run_id), reverse=True)
        return RunListing(tuple(runs), tuple(problems))

    def delete(self, run_id: str) -> None:
        """Remove a run, readable or not.

        Raises:
            StoreError: If there is no such run, or it cannot be removed.
        """
        target = self.path / check_run_id(run_id)
        if not target.is_dir():
            raise StoreError(f"no run {run_id} in {self.path}. Look at the list of runs.")
        try:
            with folder_lock(self.path, self._lock_timeout_s):
                gone = self.path / f"{_DELETED}{run_id}"
                shutil.rmtree(gone, ignore_errors=True)
                target.rename(gone)  # one step: nobody sees half a run
                shutil.rmtree(gone)
        except OSError as error:
            raise _advice(error, self.path) from error

    # --- inside ---

    def _read(self, run_id: str) -> dict[str, Any]:
        file = self.path / check_run_id(run_id) / _RECORD
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise StoreError(f"no run {run_id} in {self.path}. Look at the list of runs.") from None
        except (OSError, ValueError) as error:
            raise StoreError(f"run {run_id} cannot be read ({error}). Delete it, or restore {_RECORD}.") from error
        if not isinstance(data, dict):
            raise StoreError(f"run {run_id} holds no record. Delete it, or restore {_RECORD}.")
        if data.get("run_id") != run_id:
            raise StoreError(f"the folder {run_id} holds run {data.get('run_id')!r}. Rename the folder back.")
        return data

    def _unpack(self, run_id: str, name: str) -> dict[str, NDArray[Any]]:
        file = self.path / run_id / Path(name).name
        try:
            # Opened here, because NumPy leaves a truncated file open.
            with file.open("rb") as opened, np.load(opened, allow_pickle=False) as packed:
                return {key: packed[key] for key in packed.files}
        except FileNotFoundError:
            raise
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise StoreError(f"the arrays of run {run_id} cannot be read ({error}). Delete the run.") from error

    def _sweep(self) -> None:
        """Remove what killed writers left; whoever holds the lock is the only one who could be using it."""
        for folder in self.path.glob(f"{_DELETED}*"):
            shutil.rmtree(folder, ignore_errors=True)
        for file in self.path.glob(f"*/{_TEMPORARY}*"):
            file.unlink(missing_ok=True)

    def _undo(self, target: Path) -> None:
        """Remove the folder of a run that never got its record."""
        if target.is_dir() and not (target / _RECORD).exists():
            shutil.rmtree(target, ignore_errors=True)


def _write_whole(target: Path, content: bytes) -> None:
    """Write a file so that readers see the old content or the new, never a part."""
    temporary = target.with_name(f"{_TEMPORARY}{target.name}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the new name with no content
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _pack(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    converted = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in converted.items():
        if array.dtype.kind not in "biufc":
            raise StoreError(f"array {name!r} holds {array.dtype}, not numbers. Put texts and records in the results.")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **converted)
    return buffer.getvalue()


def _advice(error: OSError, path: Path) -> StoreError | DiskFull:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"no room left under {path}. Free some space, or set TAPWB_RUNS_DIR to another disk.")
    return StoreError(f"{path} cannot be written ({error.strerror or error}). Set TAPWB_RUNS_DIR to another folder.")

"""A folder in the cache is either complete or absent.

Conversion takes seconds to minutes and can be stopped by Ctrl-C, a full disk or a power cut. So the folder is built
under a hidden name beside its final place, flushed to disk, and renamed; a manifest with the size of every file tells
a complete folder from one that something damaged later. One process builds, others wait: the lock is the operating
system's (``filelock``), so the lock of a process that died is free at once and no stale lock can exist.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tapwb.core.errors import DiskFull
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.core.units import format_bytes

MANIFEST = "tapwb_model.json"
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}


def free_bytes(folder: Path) -> int:
    """Free space on the disk that holds ``folder`` (which need not exist yet), in bytes."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a complete folder, or ``{}`` where there is none or it cannot be read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def is_complete(folder: Path) -> bool:
    """Whether the manifest is there and every file it lists has the size it lists."""
    sizes = read_manifest(folder).get("files")
    if not isinstance(sizes, dict) or not sizes:
        return False
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items())


def ensure_folder(
    target: Path,
    build: Callable[[Path], dict[str, Any]],
    *,
    needed_bytes: int,
    progress: Progress = NO_PROGRESS,
) -> Path:
    """Return ``target``, building it first if it is absent or damaged.

    Args:
        target: Final folder.
        build: Fills the empty folder it is given and returns what the manifest should say about it.
        needed_bytes: Free disk space that building takes at its peak.
        progress: Told while another process is building; cancelling works there as well.

    Raises:
        DiskFull: If there is not enough room, before or while building. Nothing is left behind.
    """
    if is_complete(target):
        return target
    with _no_room_is_disk_full(target, needed_bytes):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _exclusive(target, progress):
            if not is_complete(target):
                _build(target, build, needed_bytes)
    return target


def _build(target: Path, build: Callable[[Path], dict[str, Any]], needed_bytes: int) -> None:
    _remove_leftovers(target)
    if (free := free_bytes(target)) < needed_bytes:
        raise DiskFull(_full(target, needed_bytes, free))
    scratch = target.with_name(f".{target.name}.building-{os.getpid()}")
    scratch.mkdir()
    try:
        manifest = build(scratch)
        sizes = {str(p.relative_to(scratch)): p.stat().st_size for p in sorted(scratch.rglob("*")) if p.is_file()}
        (scratch / MANIFEST).write_text(json.dumps({**manifest, "files": sizes}, indent=2), encoding="utf-8")
        _flush(scratch)
        if target.exists():
            shutil.rmtree(target)
        scratch.replace(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _remove_leftovers(target: Path) -> None:
    """Remove what a killed process left; only the holder of the lock calls this."""
    for leftover in target.parent.glob(f".{target.name}.building-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Make the contents durable before the rename makes them visible."""
    for path in (*folder.rglob("*"), folder):
        if path.is_dir() and os.name == "nt":
            continue  # Windows cannot open a folder
        descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _exclusive(target: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock of ``target``, telling ``progress`` when another process has it."""
    from filelock import FileLock, Timeout

    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        lock.acquire(timeout=0.05)
    except Timeout:
        progress.stage(f"wait for another process that prepares {target.name}")
        while not lock.is_locked:
            try:
                lock.acquire(timeout=0.5)
            except Timeout:
                progress.check_cancelled()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _no_room_is_disk_full(target: Path, needed_bytes: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise DiskFull(_full(target, needed_bytes, free_bytes(target))) from error


def _full(target: Path, needed_bytes: int, free: int) -> str:
    return (
        f"preparing {target.name} needs {format_bytes(needed_bytes)} on the disk of {target.parent}, "
        f"{format_bytes(free)} are free. Free some space, or set TAPWB_CACHE_DIR to a larger disk."
    )

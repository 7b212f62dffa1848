"""SHA-256 of files, with progress, and one checksum for a folder of weights.

A checksum of many gigabytes is worth keeping: it is remembered by path, size and modification time in the cache.
"""

import hashlib
import json
import os
from pathlib import Path

from tapwb.core.errors import ChecksumMismatch
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.core.settings import cache_dir

_BLOCK = 1 << 22
_WORTH_KEEPING_BYTES = 1 << 26


def file_sha256(path: Path, progress: Progress = NO_PROGRESS) -> str:
    """Checksum of one file as 64 hex digits; large files are remembered."""
    stat = path.stat()
    key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    known = _remembered()
    if key in known:
        return known[key]
    checksum = _read_through(path, progress)
    if stat.st_size >= _WORTH_KEEPING_BYTES:
        _remember(key, checksum)
    return checksum


def folder_sha256(files: list[Path], progress: Progress = NO_PROGRESS) -> str:
    """Checksum over the checksums of ``files``; that of the file itself if there is only one.

    Files of a Hugging Face cache are links to blobs named after their SHA-256, so those are not read.
    """
    sums = []
    for path in sorted(files):
        blob = path.resolve().name
        is_blob_name = path.is_symlink() and len(blob) == 64 and set(blob) <= set("0123456789abcdef")
        sums.append(blob if is_blob_name else file_sha256(path, progress))
    return sums[0] if len(sums) == 1 else hashlib.sha256("\n".join(sums).encode()).hexdigest()


def check_sha256(path: Path, expected: str, progress: Progress = NO_PROGRESS) -> None:
    """Compare a file with the checksum it must have, reading it whatever is remembered of it.

    Raises:
        ChecksumMismatch: If they differ.
    """
    came = _read_through(path, progress)
    if came != expected:
        raise ChecksumMismatch(
            f"{path.name} has SHA-256 {came[:16]}... ({path.stat().st_size} bytes), expected {expected[:16]}.... "
            "The download was damaged or the source was changed: try again, or check the package index in use."
        )


def _read_through(path: Path, progress: Progress) -> str:
    progress.stage(f"checksum of {path.name}", total=path.stat().st_size, unit="byte")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            progress.advance(len(block))
    return digest.hexdigest()


def _memory() -> Path:
    return cache_dir() / "checksums.json"


def _remembered() -> dict[str, str]:
    try:
        known = json.loads(_memory().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(key: str, checksum: str) -> None:
    path = key.split("|", 1)[0]
    kept = {k: v for k, v in _remembered().items() if k.split("|", 1)[0] != path}
    _memory().parent.mkdir(parents=True, exist_ok=True)
    scratch = _memory().with_suffix(f".{os.getpid()}")
    scratch.write_text(json.dumps({**kept, key: checksum}, indent=1), encoding="utf-8")
    scratch.replace(_memory())

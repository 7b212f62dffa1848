"""One writer at a time, across processes, by a lock that the system drops when its holder dies."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tapwb.core.errors import StoreError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


@contextmanager
def folder_lock(folder: Path, timeout_s: float = 30.0) -> Iterator[None]:
    """Hold the lock of a folder.

    The lock file stays behind on purpose: removing it would let two writers hold two locks of the same name.

    Args:
        folder: Existing folder.
        timeout_s: Longest wait for another writer.

    Raises:
        StoreError: If another process keeps the lock longer.
    """
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        deadline_s = time.monotonic() + timeout_s
        while not _try_lock(descriptor):
            if time.monotonic() > deadline_s:
                raise StoreError(
                    f"another process has been writing to {folder} for more than {timeout_s:g} s. "
                    "Wait for it, end it, or choose another folder (TAPWB_RUNS_DIR)."
                )
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)  # closing drops the lock


def _try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True

"""Memory that the program no longer uses and the allocator still holds.

Only glibc is spoken to; other systems give large blocks back by themselves or offer no way to ask.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
#: Where glibc's own rule ends: it raises the threshold with every large block that is freed.
_LARGEST_THRESHOLD_BYTES = 32 << 20


def trim_heap() -> None:
    """Ask glibc to return free pages; other systems have no such call and need none."""
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


@contextmanager
def large_blocks_apart(from_bytes: int = 1 << 20) -> Iterator[None]:
    """Blocks of at least ``from_bytes`` go back to the system as soon as they are freed.

    By its own rule glibc keeps blocks of up to 32 MiB on the heap once a few were freed; passing temporaries then
    leave holes that other sizes do not fill, and the peak of a load is luck. Fresh pages cost time, so this is for
    phases of few, large, short-lived blocks.
    """
    set_option = _glibc("mallopt")
    if set_option is None:
        yield
        return
    set_option(_M_MMAP_THRESHOLD, from_bytes)
    try:
        yield
    finally:
        set_option(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD_BYTES)
        # Whoever sets one threshold freezes both: the other would stay at 128 KB, and every pass fetch fresh pages.
        set_option(_M_TRIM_THRESHOLD, 2 * _LARGEST_THRESHOLD_BYTES)


def _glibc(name: str) -> Any:
    """A function of the C library, or None where it is not glibc."""
    library = cast(Any, ctypes.CDLL(None)) if sys.platform == "linux" else None
    return getattr(library, name, None)

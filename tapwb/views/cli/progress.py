"""A job's stages as a bar on standard error, with the remaining time; Ctrl-C stops at the next safe point.

The first Ctrl-C asks the running step to end, so that a conversion is never left half written; the second one stops
at once.
"""

import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from tapwb.core.errors import Cancelled
from tapwb.views.cli.output import terminal_safe, warn

if TYPE_CHECKING:
    from rich.progress import Progress as Bars


class RichProgress:
    """Shows what a long function reports; implements :class:`tapwb.core.jobs.Progress`.

    Where standard error is no terminal (a log, a pipe) each new stage is one line instead of a bar.

    Args:
        shown: Draw at all; ``False`` only watches for Ctrl-C.
    """

    def __init__(self, *, shown: bool = True) -> None:
        self._shown = shown
        self._bars: Bars | None = None
        self._task: Any = None
        self._line = ""
        self._cancelled = threading.Event()
        self._before: Any = None

    def stage(self, name: str, total: int | None = None, unit: str = "") -> None:
        """Begin the stage ``name``."""
        self.check_cancelled()
        label = terminal_safe(name)
        if self._bars is None:
            if self._shown and label != self._line:
                sys.stderr.write(f"{label}\n")
            self._line = label
            return
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(label, total=total, unit=unit or "step", started=True)

    def advance(self, steps: int = 1) -> None:
        """Count ``steps`` as done."""
        self.check_cancelled()
        if self._bars is not None and self._task is not None:
            self._bars.advance(self._task, steps)

    def check_cancelled(self) -> None:
        """Raise if Ctrl-C was pressed.

        Raises:
            Cancelled: If so.
        """
        if self._cancelled.is_set():
            raise Cancelled

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._interrupt)
        if self._shown and sys.stderr.isatty():
            self._bars = _bars()
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        if self._cancelled.is_set():
            raise KeyboardInterrupt
        self._cancelled.set()
        warn("stopping after this step; press Ctrl-C again to stop at once")


def _bars() -> "Bars":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}", markup=False),
        TimeRemainingColumn(),
        console=Console(stderr=True, markup=False, emoji=False),
        transient=True,
        get_time=time.monotonic,
    )

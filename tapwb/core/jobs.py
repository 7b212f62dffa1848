"""Long work: stages, progress, remaining time, cancel, and an error that stays until it is dismissed.

Functions that may take long accept ``progress: Progress`` and report to it; they know nothing of threads or screens.
A :class:`Job` is the live record of one such call; a :class:`JobRunner` runs jobs one after the other per device, so
that two users never load two models into one card at once. The command line, the notebooks and the dashboard all show
the same object.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from tapwb.core.errors import Cancelled, TapError


class Progress(Protocol):
    """What long functions report to. Every method raises :class:`Cancelled` once the user cancelled."""

    def stage(self, name: str, total: int | None = None, unit: str = "") -> None:
        """Begin the stage ``name`` of ``total`` steps (``None``: unknown)."""

    def advance(self, steps: int = 1) -> None:
        """Count ``steps`` as done."""

    def check_cancelled(self) -> None:
        """Only look whether to stop."""


class _Silent:
    """Reports nowhere and never cancels."""

    def stage(self, name: str, total: int | None = None, unit: str = "") -> None:
        """Ignore."""

    def advance(self, steps: int = 1) -> None:
        """Ignore."""

    def check_cancelled(self) -> None:
        """Ignore."""


NO_PROGRESS: Progress = _Silent()


class JobState(StrEnum):
    """Where a job is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    ERROR = "error"
    CANCELLED = "cancelled"


@dataclass(slots=True)
class Stage:
    """One stage of a job.

    Attributes:
        name: What is being done, for people.
        total: Number of steps, or ``None`` when unknown.
        unit: What a step is: ``"token"``, ``"linear"``, ``"byte"``.
        done: Steps finished.
        started_s: Monotonic clock at its start.
    """

    name: str
    total: int | None = None
    unit: str = ""
    done: int = 0
    started_s: float = field(default_factory=time.monotonic)

    @property
    def fraction(self) -> float | None:
        """Share done in [0, 1], or ``None`` when the total is unknown."""
        return None if not self.total else min(1.0, self.done / self.total)

    def eta_s(self, now_s: float | None = None) -> float | None:
        """Seconds until this stage ends at its present pace, or ``None`` before anything is known."""
        if not self.total or self.done == 0:
            return None
        elapsed = (time.monotonic() if now_s is None else now_s) - self.started_s
        return max(0.0, elapsed * (self.total - self.done) / self.done)


class Job:
    """One long call: its state, stages, result or error. Safe to read from any thread.

    Attributes:
        name: What the job does, for people.
        state: Where it is.
        stages: Stages so far; the last one is current.
        result: What the function returned, once done.
        error: Why it failed, until :meth:`dismiss_error`.
    """

    def __init__(self, name: str, on_change: Callable[["Job"], None] | None = None) -> None:
        self.name = name
        self.state = JobState.QUEUED
        self.stages: list[Stage] = []
        self.result: Any = None
        self.error: BaseException | None = None
        self.started_s: float | None = None
        self.ended_s: float | None = None
        self._cancel = threading.Event()
        self._finished = threading.Event()
        self._on_change = on_change
        self._last_notice_s = 0.0

    # --- what the running function calls (the Progress protocol) ---

    def stage(self, name: str, total: int | None = None, unit: str = "") -> None:
        """Begin a stage."""
        self.check_cancelled()
        self.stages.append(Stage(name, total, unit))
        self._notify()

    def advance(self, steps: int = 1) -> None:
        """Count steps of the current stage."""
        self.check_cancelled()
        if self.stages:
            self.stages[-1].done += steps
        # Listeners redraw; ten notices a second are enough for any eye.
        if time.monotonic() - self._last_notice_s > 0.1:
            self._notify()

    def check_cancelled(self) -> None:
        """Raise if :meth:`cancel` was called.

        Raises:
            Cancelled: If so.
        """
        if self._cancel.is_set():
            raise Cancelled

    # --- what watchers call ---

    @property
    def is_active(self) -> bool:
        """Whether the job is queued or running."""
        return self.state in (JobState.QUEUED, JobState.RUNNING)

    @property
    def current(self) -> Stage | None:
        """The stage being worked on."""
        return self.stages[-1] if self.stages else None

    @property
    def eta_s(self) -> float | None:
        """Seconds left in the current stage, when known."""
        return self.current.eta_s() if self.current and self.is_active else None

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start (until the end, once ended)."""
        if self.started_s is None:
            return 0.0
        return (self.ended_s or time.monotonic()) - self.started_s

    def cancel(self) -> None:
        """Ask the job to stop at its next report; a queued job never starts."""
        self._cancel.set()

    def wait(self, timeout_s: float | None = None) -> Any:
        """Block until the end and return the result.

        Raises:
            TimeoutError: If it has not ended after ``timeout_s``.
            BaseException: Whatever the job raised.
        """
        if not self._finished.wait(timeout_s):
            raise TimeoutError(f"{self.name} has not ended after {timeout_s} s")
        if self.error is not None:
            raise self.error
        return self.result

    def dismiss_error(self) -> None:
        """Forget the error after the user has read it."""
        self.error = None
        self._notify()

    def run(self, function: Callable[["Job"], Any]) -> None:
        """Run ``function(job)`` here and now, recording how it ends; never raises what the function raised."""
        self.started_s = time.monotonic()
        try:
            self.check_cancelled()
            self.state = JobState.RUNNING
            self._notify()
            self.result = function(self)
            self.state = JobState.DONE
        except (Cancelled, KeyboardInterrupt) as stop:
            self.error, self.state = stop, JobState.CANCELLED
        except Exception as error:  # noqa: BLE001 - the job's whole purpose is to keep any error for its watcher
            self.error, self.state = error, JobState.ERROR
        finally:
            self.ended_s = time.monotonic()
            self._finished.set()
            self._notify()

    def describe_error(self) -> str:
        """The error in one line for people; foreign exceptions keep their type name."""
        if self.error is None:
            return ""
        if isinstance(self.error, TapError):
            return str(self.error)
        return f"{type(self.error).__name__}: {self.error}"

    def _notify(self) -> None:
        self._last_notice_s = time.monotonic()
        if self._on_change is not None:
            self._on_change(self)


class JobRunner:
    """Runs jobs: one at a time per device, input/output work side by side.

    Args:
        on_change: Called (from the working thread) whenever a job changes.
        io_threads: Threads for work that waits rather than computes.
    """

    def __init__(self, on_change: Callable[[Job], None] | None = None, io_threads: int = 8) -> None:
        self._on_change = on_change
        self._io_threads = io_threads
        self._pools: dict[str, ThreadPoolExecutor] = {}
        self._lock = threading.Lock()
        self.jobs: list[Job] = []

    def submit(self, name: str, function: Callable[[Job], Any], *, device: str = "cpu") -> Job:
        """Queue ``function(job)`` on ``device`` (or on ``"io"``, where jobs run side by side)."""
        job = Job(name, self._on_change)
        with self._lock:
            self.jobs = [*[j for j in self.jobs if j.is_active][-99:], job]
            if device not in self._pools:
                workers = self._io_threads if device == "io" else 1
                self._pools[device] = ThreadPoolExecutor(workers, thread_name_prefix=f"tapwb-{device}")
            future: Future[None] = self._pools[device].submit(job.run, function)
        del future
        return job

    def active(self) -> list[Job]:
        """Jobs queued or running, oldest first."""
        with self._lock:
            return [job for job in self.jobs if job.is_active]

    def shutdown(self) -> None:
        """Cancel everything and wait for the running steps to notice."""
        for job in self.active():
            job.cancel()
        with self._lock:
            pools, self._pools = list(self._pools.values()), {}
        for pool in pools:
            pool.shutdown(wait=True, cancel_futures=False)

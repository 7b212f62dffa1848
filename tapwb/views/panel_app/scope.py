"""What one drawing of the screen holds on to, and lets go of again.

Jobs change the workbench from the worker's thread and far more often than a screen can follow. A scope brings every
refresh onto the document's own thread, joins refreshes that pile up, and cuts all its watchers when the language
changes or the visitor leaves: a watcher left behind would keep the whole session alive.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

import param
from bokeh.document import Document

from tapwb.views.i18n import Translate
from tapwb.workbench import Workbench


class Gate:
    """Holds refreshes back until the browser has drawn the page.

    What changes between the moment the page is sent and the moment the browser reports it drawn reaches nobody: Panel
    (1.9) takes it for part of the page that was sent. On a busy machine that is seconds.
    """

    def __init__(self) -> None:
        self._waiting: dict[Callable[[], None], Callable[[Callable[[], None]], None]] = {}
        self._lock = threading.Lock()
        self._is_open = False

    def holds(self, refresh: Callable[[], None], later: Callable[[Callable[[], None]], None]) -> bool:
        """Whether the refresh has to wait; ``later`` is called with it once the gate opens."""
        with self._lock:
            if not self._is_open:
                self._waiting[refresh] = later
            return not self._is_open

    def open(self) -> None:
        """The browser is ready: let everything through, now and from now on."""
        with self._lock:
            self._is_open = True
            waiting, self._waiting = self._waiting, {}
        for refresh, later in waiting.items():
            later(refresh)

    def close(self) -> None:
        """The visitor has left: forget what waited."""
        with self._lock:
            self._waiting.clear()


class Scope:
    """One visitor's screen in one language.

    Args:
        workbench: The visitor's state.
        translate: From English to the visitor's language.
        document: The page's document; ``None`` refreshes at once (tests, notebooks).
        gate: Holds refreshes back until the browser is ready for them.
    """

    def __init__(
        self,
        workbench: Workbench,
        translate: Translate,
        document: Document | None = None,
        gate: Gate | None = None,
    ) -> None:
        self.workbench = workbench
        self.translate = translate
        self._document = document
        self._gate = gate
        self._watchers: list[tuple[param.Parameterized, Any]] = []
        self._pending: set[Callable[[], None]] = set()
        self._paced_s: dict[Callable[[], None], float] = {}
        self._lock = threading.Lock()
        # Server threads and the event loop may draw at the same time; the last to draw must be the last that looked.
        self._drawing = threading.RLock()
        self._is_open = True

    @property
    def is_dark(self) -> bool:
        """Whether the screen is dark."""
        return bool(self.workbench.theme == "dark")

    def refresh_on(self, names: list[str], refresh: Callable[[], None], *, now: bool = True) -> None:
        """Call ``refresh`` whenever one of the workbench's values changes, and once at the start."""
        self.watch(self.workbench, names, lambda *_events: self._later(refresh))
        if now:
            refresh()

    def later(self, work: Callable[[], None]) -> None:
        """Do something as soon as the browser has drawn what is there; at once outside a server."""
        self._later(work)

    def after(self, delay_s: float, work: Callable[[], None]) -> None:
        """Do something once the browser has had time to draw; at once outside a server."""
        document = self._document
        if document is None:
            self.draw(work)
        else:
            document.add_timeout_callback(lambda: self._later(work), round(1000 * delay_s))

    def watch(self, source: param.Parameterized, names: list[str], callback: Callable[[Any], object]) -> None:
        """Watch until the scope is closed; the callback runs on whatever thread made the change."""
        self._watchers.append((source, source.param.watch(callback, names)))

    def paced(self, work: Callable[[], None], interval_s: float = 0.3) -> None:
        """Do something on the document's own thread, at once, but not more often than a browser can follow.

        A slider that is dragged sends a value for every pixel. What is asked for within the interval is done once, at
        its end.
        """
        document = self._document
        if document is None:
            self.draw(work)
            return
        with self._lock:
            now_s = time.monotonic()
            due_s = max(now_s, self._paced_s.get(work, 0.0) + interval_s)
            if work in self._paced_s and self._paced_s[work] > now_s:
                return  # one is on its way already
            self._paced_s[work] = due_s
        if due_s <= now_s:
            self._later(work)
        else:
            document.add_timeout_callback(lambda: self._later(work), round(1000 * (due_s - now_s)))

    def draw(self, refresh: Callable[[], None]) -> None:
        """Refresh now, one at a time, unless the scope is closed."""
        with self._drawing:
            if self._is_open:
                refresh()

    def close(self) -> None:
        """Cut every watcher; refreshes that are still on their way do nothing."""
        self._is_open = False
        for source, watcher in self._watchers:
            source.param.unwatch(watcher)
        self._watchers.clear()
        self._paced_s.clear()
        self._document = None

    def _later(self, refresh: Callable[[], None]) -> None:
        document = self._document
        if document is None:
            self.draw(refresh)
            return
        if self._gate is not None and self._gate.holds(refresh, self._later):
            return
        with self._lock:
            if refresh in self._pending:
                return
            self._pending.add(refresh)
        document.add_next_tick_callback(lambda: self._run(refresh))

    def _run(self, refresh: Callable[[], None]) -> None:
        with self._lock:
            self._pending.discard(refresh)
        self.draw(refresh)

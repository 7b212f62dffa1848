"""What one drawing of the screen holds on to, and lets go of again.

Jobs change the workbench from the worker's thread and far more often than a screen can follow. A scope brings every
refresh onto the document's own thread, joins refreshes that pile up, and cuts all its watchers when the language
changes or the visitor leaves: a watcher left behind would keep the whole session alive.
"""

import threading
from collections.abc import Callable
from typing import Any

import param
from bokeh.document import Document

from tapwb.views.i18n import Translate
from tapwb.workbench import Workbench


class Scope:
    """One visitor's screen in one language.

    Args:
        workbench: The visitor's state.
        translate: From English to the visitor's language.
        document: The page's document; ``None`` refreshes at once (tests, notebooks).
    """

    def __init__(self, workbench: Workbench, translate: Translate, document: Document | None = None) -> None:
        self.workbench = workbench
        self.translate = translate
        self._document = document
        self._watchers: list[tuple[param.Parameterized, Any]] = []
        self._pending: set[Callable[[], None]] = set()
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

    def watch(self, source: param.Parameterized, names: list[str], callback: Callable[[Any], object]) -> None:
        """Watch until the scope is closed; the callback runs on whatever thread made the change."""
        self._watchers.append((source, source.param.watch(callback, names)))

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
        self._document = None

    def _later(self, refresh: Callable[[], None]) -> None:
        document = self._document
        if document is None:
            self.draw(refresh)
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

"""A browser, a served dashboard with a tiny model, and a log of every request the page makes."""

import socket
import time
import urllib.request
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest

TINY = "tiny-random-llama"
LOCAL = {"localhost", "127.0.0.1"}


@dataclass
class Watched:
    """A browser page and what happened on it.

    Attributes:
        page: The playwright page.
        outside: Requests to other machines.
        errors: Script errors and dialogs.
    """

    page: Any
    outside: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@dataclass
class Dashboard:
    """A served dashboard.

    Attributes:
        url: Its address.
        seen: Weak references to every screen, oldest visit first.
    """

    url: str
    seen: list[weakref.ref] = field(default_factory=list)

    def shells(self) -> list[Any]:
        """Live screens, oldest visit first."""
        return [shell for reference in self.seen if (shell := reference()) is not None]


@pytest.fixture(scope="session")
def dashboard() -> Iterator[Dashboard]:
    """The dashboard with a tiny random model, loaded and scored."""
    from tapwb.views.panel_app import app
    from tapwb.workbench import RUNNER, SHELF

    served = Dashboard("")

    class Noted(app.Shell):
        """A screen that leaves a weak reference for the tests."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            served.seen.append(weakref.ref(self))

    original, app.Shell = app.Shell, Noted

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = app.serve(port=port, model=TINY, open_browser=False, threaded=True, linger_s=1.0)
    wait_until(lambda: SHELF.card(TINY) is not None and not RUNNER.active(), 180)
    url = f"http://localhost:{port}/"
    wait_until(lambda: urllib.request.urlopen(url, timeout=30).status == 200, 60)
    served.url = url
    yield served
    server.stop()
    app.Shell = original


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[[str], Watched]]:
    """Opens a page at an address and waits until it is drawn; afterwards nothing may have left this machine."""
    opened: list[Watched] = []

    def go(url: str, ready: str = "tab") -> Watched:
        context = chromium.new_context(viewport={"width": 1366, "height": 900})
        watched = Watched(context.new_page())
        opened.append(watched)
        watched.page.on("request", lambda request: _note(watched, request.url))
        watched.page.on("pageerror", lambda error: watched.errors.append(error.stack or str(error)))
        watched.page.on("dialog", lambda dialog: (watched.errors.append(dialog.message), dialog.dismiss()))
        watched.page.goto(url)
        watched.page.get_by_role(ready).first.wait_for(timeout=60_000)
        return watched

    yield go
    for watched in opened:
        watched.page.context.close()
        assert watched.outside == []
        assert watched.errors == []


def wait_until(is_true: Callable[[], Any], timeout_s: float = 30) -> None:
    """Wait for a Python condition.

    Raises:
        TimeoutError: If it does not come true.
    """
    end_s = time.monotonic() + timeout_s
    while not is_true():
        if time.monotonic() > end_s:
            raise TimeoutError(f"not true after {timeout_s} s")
        time.sleep(0.05)


@pytest.fixture
def slow_steps() -> Iterator[None]:
    """Jobs that write take seconds, not milliseconds: there is time to look at them, and to stop them."""
    from tapwb.execution import dispatch

    with dispatch.force("reference", "slow on purpose"):
        yield


@pytest.fixture(name="wait_until")
def wait_until_fixture() -> Callable[..., None]:
    """Wait for a Python condition."""
    return wait_until


def _note(watched: Watched, url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme in ("http", "https", "ws", "wss") and parts.hostname not in LOCAL:
        watched.outside.append(url)

"""What happens between the page's sending and its drawing in the browser is shown once the browser is ready."""

import pytest
from bokeh.document import Document

from tapwb.views.panel_app.app import setup
from tapwb.views.panel_app.shell import Shell
from tapwb.workbench import Workbench


@pytest.fixture
def shell():
    """A screen whose page was sent and not drawn yet."""
    setup()
    made = Shell(Workbench(), Document())
    yield made
    made.close()


def test_a_tick_before_the_page_is_drawn_changes_nothing_that_was_sent(shell, monkeypatch):
    """Panel takes such a change for part of the page: the browser would show the old words for ever."""
    refreshed = []
    monkeypatch.setattr(shell.header, "refresh", lambda: refreshed.append("header"))
    monkeypatch.setattr(shell.status, "refresh", lambda: refreshed.append("status"))
    shell.tick()
    assert not refreshed
    shell._gate.open()
    for callback in list(shell._document.session_callbacks):
        callback.callback()
    assert sorted(refreshed) == ["header", "status"]

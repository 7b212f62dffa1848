"""A closed browser tab leaves no traceback in the terminal; every other error does."""

import asyncio
import gc
import logging
import threading

import pytest
from tornado.websocket import WebSocketClosedError

from tapwb.views.panel_app.closed_tabs import expect_closed_tabs


def test_only_closed_sockets_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """Three tasks fail that nobody awaits: the one with the closed socket is not logged, the others are."""

    async def fail(error: Exception) -> None:
        raise error

    async def main() -> None:
        tasks = [asyncio.ensure_future(fail(e)) for e in (WebSocketClosedError(), ValueError("a bug"), OSError("disk"))]
        await asyncio.wait(tasks)

    expect_closed_tabs()
    expect_closed_tabs()
    with caplog.at_level(logging.WARNING):
        # In a thread of its own: a browser test may have left a loop running in this one.
        thread = threading.Thread(target=lambda: asyncio.run(main()))
        thread.start()
        thread.join()
        gc.collect()
        logging.getLogger("asyncio").warning("without an error")
    kinds = [record.exc_info[0] if record.exc_info else None for record in caplog.records if record.name == "asyncio"]
    assert sorted(map(str, kinds)) == sorted(map(str, [ValueError, OSError, None]))
    assert len([one for one in logging.getLogger("asyncio").filters if type(one).__name__ == "ClosedTabs"]) == 1

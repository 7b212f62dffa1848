"""Keeps one message out of the log: that a browser tab was closed while something was on its way to it."""

import logging


class ClosedTabs(logging.Filter):
    """Drops records of a socket that closed under a write, and nothing else.

    Bokeh and Panel hand each message to tornado as a task of its own. When the reader closes the tab, those still on
    their way fail, nobody awaits them, and asyncio prints two tracebacks for what is no fault: the session ends as it
    should. Every other error of a task keeps its traceback.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to keep the record."""
        from tornado.websocket import WebSocketClosedError

        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        return not isinstance(error, WebSocketClosedError)


_FILTER = ClosedTabs()


def expect_closed_tabs() -> None:
    """Put the filter on asyncio's log; a second call changes nothing."""
    logging.getLogger("asyncio").addFilter(_FILTER)

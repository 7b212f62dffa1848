"""Serve the dashboard: one process, one shelf of models, one screen per visitor.

The views live in this imported module, not in a served script: Panel clears a script's names before its visitors are
told goodbye, and whoever needs them then leaks.
"""

from typing import Any

import panel as pn
from panel.io.resources import get_dist_path
from panel.io.state import state

from tapwb.core import settings
from tapwb.core.errors import ExecutionError
from tapwb.views.panel_app.address import read_address
from tapwb.views.panel_app.closed_tabs import expect_closed_tabs
from tapwb.views.panel_app.shell import Shell
from tapwb.workbench import DEFAULT_MODEL, Workbench, start_preload

_THREADS = 4
#: A visitor may paste a long text; the largest prompt is 20,000 characters, which UTF-8 makes 80 kB at most.
_MESSAGE_BYTES = 20 * 2**20
_TICK_MS = 1000


class Visit:
    """One visitor, from the first request to the goodbye.

    Args:
        model: Model to show unless the address names another.
    """

    def __init__(self, model: str) -> None:
        workbench = Workbench(model_id=model, lang=settings.get("TAPWB_LANG"))
        read_address(workbench, dict(state.session_args or {}))
        workbench.adopt()
        if state.curdoc is not None:
            # Panel learns only later where its style sheets are served, and until then it writes a public address.
            state.curdoc.template_variables["dist_url"] = get_dist_path()
        self.shell = Shell(workbench, state.curdoc, base_url=_base_url())
        state.on_session_destroyed(self._goodbye)
        state.add_periodic_callback(self.shell.tick, period=_TICK_MS, start=True)

    def _goodbye(self, session_context: Any) -> None:
        del session_context  # Panel hands it over and insists on a callback that takes exactly this
        self.shell.close()


def view(model: str = DEFAULT_MODEL) -> Any:
    """The page for one visitor; what the server calls for each."""
    return Visit(model).shell.page


def setup() -> None:
    """Load the parts of Panel that the pages draw with, and expect readers to leave; once per process."""
    expect_closed_tabs()
    pn.extension("plotly", "tabulator", notifications=False, reconnect=True)


def serve(
    port: int = 5006,
    model: str | None = None,
    open_browser: bool = True,
    *,
    threaded: bool = False,
    preload: bool = True,
    linger_s: float = 30.0,
) -> Any:
    """Serve the dashboard on this machine until it is stopped.

    Args:
        port: Port; 0 takes a free one.
        model: Model to load at the start; by default the embedded one.
        open_browser: Open the page in the user's browser.
        threaded: Serve from a thread and return at once (tests).
        preload: Load the model and score the sample prompt in the background, so that the first visitor finds both.
        linger_s: How long a visitor who lost the connection may take to come back, seconds.

    Returns:
        The server, when threaded.

    Raises:
        ExecutionError: If the port is taken.
    """
    setup()
    chosen = model or DEFAULT_MODEL
    # Held by this frame, which lives as long as the server: nobody else refers to it.
    background = start_preload(chosen) if preload else None
    try:
        return pn.serve(
            {"/": lambda: view(chosen)},
            port=port,
            address="127.0.0.1",
            websocket_origin=["localhost:*", "127.0.0.1:*"]
            if port == 0
            else [f"localhost:{port}", f"127.0.0.1:{port}"],
            title="TAP Workbench",
            show=open_browser,
            threaded=threaded,
            num_threads=_THREADS,
            websocket_max_message_size=_MESSAGE_BYTES,
            # Leaves room to come back after a network cut, and lets go of visitors who do not.
            unused_session_lifetime_milliseconds=round(1000 * linger_s),
            check_unused_sessions_milliseconds=round(min(5000, 500 * linger_s)),
        )
    except OSError as error:
        raise ExecutionError(
            f"port {port} cannot be used: {error.strerror or error}. Choose another with --port."
        ) from error
    finally:
        if not threaded and background is not None:
            background.close()


def _base_url() -> str:
    location = state.location
    if location is None:
        return ""
    return f"{location.protocol or 'http:'}//{location.hostname or 'localhost'}:{location.port or ''}/"


__all__ = ["Visit", "serve", "setup", "view"]

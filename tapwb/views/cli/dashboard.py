"""``tapwb app``: serve the dashboard."""

from typing import Annotated

import typer

from tapwb.core.errors import ExecutionError
from tapwb.views.cli import options
from tapwb.views.cli.inputs import quiet_libraries

EXAMPLE = "tapwb app --port 5010 --no-browser"


def command(
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port on this machine; 0 takes a free one.")
    ] = 5006,
    model: options.Model = options.DEFAULT_MODEL,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in your browser.")] = True,
) -> None:
    """Serve the dashboard.

    It answers on http://localhost:5006 with the model loaded and a sample prompt scored. Ctrl-C ends it.
    """
    quiet_libraries()
    try:
        from tapwb.views.panel_app.app import serve
    except ModuleNotFoundError as error:
        raise ExecutionError(
            f"the dashboard needs the package {error.name!r}. Install it: pip install 'tapwb[app]', or run make app."
        ) from error
    serve(port=port, model=model, open_browser=browser)

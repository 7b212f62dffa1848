"""``tapwb lab``: JupyterLab on the notebooks."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from tapwb.core.errors import ExecutionError

EXAMPLE = "tapwb lab --port 8890"
_PERCENT_SCRIPTS_ARE_NOTEBOOKS = {
    "@jupyterlab/docmanager-extension:plugin": {"defaultViewers": {"python": "Jupytext Notebook"}},
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false"},
}


def command(
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port on this machine; 0 takes a free one.")
    ] = 8888,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in your browser.")] = True,
    folder: Annotated[Path | None, typer.Option("--folder", help="Another folder of notebooks.")] = None,
) -> None:
    """Open JupyterLab on the notebooks.

    The .py files there open as notebooks. Ctrl-C ends it.
    """
    from tapwb.views.report.source import notebooks_folder

    missing = [name for name in ("jupyterlab", "jupytext", "ipykernel") if importlib.util.find_spec(name) is None]
    if missing:
        raise ExecutionError(
            f"JupyterLab needs {', '.join(missing)}. Install them: pip install 'tapwb[notebooks]', or run make lab."
        )
    # JupyterLab opens .py files in the text editor unless a default says otherwise; the user's own settings stay.
    with tempfile.TemporaryDirectory(prefix="tapwb-lab-") as settings:
        defaults = Path(settings) / "labconfig" / "default_setting_overrides.json"
        defaults.parent.mkdir()
        defaults.write_text(json.dumps(_PERCENT_SCRIPTS_ARE_NOTEBOOKS), encoding="utf-8")
        paths = os.pathsep.join(filter(None, (settings, os.environ.get("JUPYTER_CONFIG_PATH"))))
        words = lab_command(folder or notebooks_folder(), port, browser)
        done = subprocess.run(words, env=os.environ | {"JUPYTER_CONFIG_PATH": paths}, check=False)
    raise typer.Exit(done.returncode)


def lab_command(folder: Path, port: int, browser: bool) -> list[str]:
    """The words that start JupyterLab with percent scripts opening as notebooks."""
    words = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={folder}", f"--ServerApp.port={port}"]
    # A saved notebook goes back to its .py alone: outputs stay out of version control.
    words += ["--ServerApp.contents_manager_class=jupytext.TextFileContentsManager", "--LabApp.news_url=None"]
    words += [] if browser else ["--no-browser"]
    words += ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    return words

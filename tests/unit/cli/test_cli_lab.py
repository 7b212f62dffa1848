"""`tapwb lab` starts JupyterLab on this machine, with the percent scripts opening as notebooks."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import typer

from tapwb.views.cli import lab
from tapwb.views.report.source import notebooks_folder


def test_lab_opens_the_notebooks_without_touching_the_user_s_settings(monkeypatch):
    """JupyterLab gets the folder, the port and its defaults through one extra settings folder, gone afterwards."""
    seen = {}

    def start(words, env, check):
        folder = env["JUPYTER_CONFIG_PATH"].split(os.pathsep)[0]
        settings = json.loads(
            (Path(folder) / "labconfig" / "default_setting_overrides.json").read_text(encoding="utf-8")
        )
        seen.update(words=words, folder=folder, settings=settings, check=check)
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(lab.subprocess, "run", start)
    with pytest.raises(typer.Exit) as stop:
        lab.command(port=8899, browser=False, folder=None)
    assert stop.value.exit_code == 0
    assert f"--ServerApp.root_dir={notebooks_folder()}" in seen["words"]
    assert {"--ServerApp.port=8899", "--no-browser"} <= set(seen["words"])
    viewers = seen["settings"]["@jupyterlab/docmanager-extension:plugin"]["defaultViewers"]
    assert viewers == {"python": "Jupytext Notebook"}
    assert not Path(seen["folder"]).exists()

"""Shared fixtures: the evaluation texts and the embedded model; the same weights on every machine."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tapwb.core.threads import wait_without_spinning

wait_without_spinning()
# With the hub, the default model would be the unquantized one, and numbers would differ between machines.
os.environ.setdefault("TAPWB_HUB", "off")

# The same examples on every run: a failure is a fact about the code, not about the day.
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile("repeatable")

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `minutes` run when they are asked for (`-m minutes`); otherwise they say that they did not."""
    if "minutes" in (config.getoption("-m") or ""):
        return
    for item in items:
        if item.get_closest_marker("minutes"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: ask for it with -m minutes"))


@pytest.fixture(scope="session")
def evaldata() -> Path:
    """Folder with the public evaluation texts; the test is skipped where it is absent."""
    named = os.environ.get("TAPWB_EVALDATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "evaldata"
    if not folder.is_dir():
        pytest.skip("evaluation texts are absent: set TAPWB_EVALDATA to their folder")
    return folder


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """Folder of the embedded default model, fetched and converted on first use."""
    from tapwb.models.load import resolve_model

    return Path(resolve_model("smollm2-135m").path)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """One running Chromium or Chrome for all tests: playwright allows one driver a process."""
    from tapwb.views.report.browser import find_browser

    path = find_browser()
    if path is None:
        pytest.skip("no Chromium or Chrome: install one, or set TAPWB_BROWSER to its path")
    playwright = pytest.importorskip("playwright.sync_api")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", "--force-device-scale-factor=1"]
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=str(path), args=flags)
        yield opened
        opened.close()

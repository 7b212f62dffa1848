"""Find a Chromium or Chrome on this machine; PDF pages, static figures and browser tests need one.

The system's own browser is used instead of one that a Python package downloads: nbconvert's ``webpdf`` and
``playwright install`` both fetch theirs from outside the package registry, which fails on a closed network.
``python -m tapwb.views.report.browser`` exits 0 if there is one, which is how the Makefile asks.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tapwb.core import settings
from tapwb.core.errors import ReportError, SettingsError

_NAMES = (
    "chromium",
    "chromium-browser",
    "google-chrome-stable",
    "google-chrome",
    "chrome",
    "microsoft-edge",
)
_MAC = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
#: No sandbox because containers forbid one (the pages are our own files); nothing that talks to the outside.
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
)


def find_browser() -> Path | None:
    """The browser named by ``TAPWB_BROWSER``, or the first one installed, or ``None``.

    Raises:
        SettingsError: If ``TAPWB_BROWSER`` names something that is not there.
    """
    named = settings.get("TAPWB_BROWSER")
    if named:
        found = shutil.which(named)
        if found is None:
            raise SettingsError(f"TAPWB_BROWSER={named!r} is not a program. Unset it or give the path of a Chromium.")
        return Path(found)
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    return Path(found) if found else next((Path(path) for path in _MAC if Path(path).is_file()), None)


def run_headless(browser: Path, *arguments: str, timeout_s: float = 120.0) -> str:
    """Start the browser without a window, wait for it to end, and return what it printed.

    Args:
        browser: From :func:`find_browser`.
        arguments: Flags and the address, for example ``--dump-dom file:///...``.
        timeout_s: Seconds after which it is stopped.

    Raises:
        ReportError: If it fails or does not end.
    """
    # A profile of its own: a browser that the user has open would otherwise take the page over.
    with tempfile.TemporaryDirectory(prefix="tapwb-browser-", ignore_cleanup_errors=True) as profile:
        command = [str(browser), *FLAGS, f"--user-data-dir={profile}", *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired:
            raise ReportError(
                f"{browser.name} did not end within {timeout_s:g} s. Try again, or use --to html."
            ) from None
        except OSError as error:
            raise ReportError(f"{browser} does not start: {error}. Set TAPWB_BROWSER to a working Chromium.") from error
    if done.returncode != 0:
        why = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise ReportError(f"{browser.name} ended with status {done.returncode}: {why[0]}. Use --to html instead.")
    return done.stdout


if __name__ == "__main__":
    sys.exit(0 if find_browser() else 1)

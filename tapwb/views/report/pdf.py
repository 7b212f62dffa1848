"""A page as PDF, printed by the system's browser."""

import tempfile
from pathlib import Path

from tapwb.core.errors import ReportError
from tapwb.views.report.browser import find_browser, run_headless


def require_browser() -> Path:
    """The browser that prints.

    Raises:
        ReportError: If there is none, with what to do.
    """
    browser = find_browser()
    if browser is None:
        raise ReportError(
            "a PDF needs Chromium or Chrome, and none was found. Install one (make browser), set TAPWB_BROWSER to its "
            "path, or use --to html and print it from any browser."
        )
    return browser


def to_pdf(page: str, browser: Path) -> bytes:
    """Print an HTML page.

    Args:
        page: The HTML text.
        browser: From :func:`require_browser`.

    Raises:
        ReportError: If nothing was printed.
    """
    with tempfile.TemporaryDirectory(prefix="tapwb-pdf-") as folder:
        source, target = Path(folder) / "report.html", Path(folder) / "report.pdf"
        source.write_text(page, encoding="utf-8")
        run_headless(browser, "--no-pdf-header-footer", f"--print-to-pdf={target}", source.as_uri())
        if not target.is_file() or target.stat().st_size == 0:
            raise ReportError(
                f"{browser.name} printed nothing. Use --to html, or set TAPWB_BROWSER to another browser."
            )
        return target.read_bytes()

"""All steps of a report in order: read, run, freeze, stamp, write."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
from nbformat import NotebookNode

from tapwb.core.errors import ReportError, UsageError
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.core.provenance import Provenance
from tapwb.views.report import execute as running
from tapwb.views.report import source
from tapwb.views.report.browser import find_browser
from tapwb.views.report.figures import freeze
from tapwb.views.report.html import to_html
from tapwb.views.report.pdf import require_browser, to_pdf
from tapwb.views.report.provenance import find_provenance

if TYPE_CHECKING:
    from tapwb.store.run_record import RunRecord

FORMATS = ("html", "pdf", "ipynb")


def check_formats(formats: Sequence[str]) -> tuple[str, ...]:
    """The formats, if each is known, without repeats.

    Raises:
        UsageError: Otherwise.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise UsageError(f"report format {', '.join(unknown) or '(none)'} is not one of {', '.join(FORMATS)}.")
    return tuple(dict.fromkeys(formats))


def report_notebook(
    path: Path,
    formats: Sequence[str],
    folder: Path,
    *,
    parameters: Mapping[str, Any] | None = None,
    show_code: bool = False,
    progress: Progress = NO_PROGRESS,
) -> list[Path]:
    """Run a notebook and write it in the given formats.

    Args:
        path: Percent script or notebook file.
        formats: Out of :data:`FORMATS`.
        folder: Where to write; made if missing.
        parameters: Replace values of the notebook's parameters cell.
        show_code: Print the code as well.
        progress: Told about every cell and format.

    Returns:
        The files, in the order of ``formats``.

    Raises:
        UsageError: If a format or parameter is unknown; nothing was run.
        ReportError: If a cell fails; the partly run notebook is kept in ``folder`` and named in the message.
    """
    chosen = check_formats(formats)
    notebook = source.read_notebook(path)
    source.check_parameters(notebook, parameters or {})
    if "pdf" in chosen:
        require_browser()  # before minutes of work, not after
    _make_folder(folder)
    kept = folder / f"{path.stem}.ipynb"
    with tempfile.TemporaryDirectory(prefix="tapwb-report-") as scratch:
        partly = Path(scratch) / kept.name
        done, failure = running.execute(
            notebook, parameters or {}, partly, cwd=path.resolve().parent, progress=progress
        )
    done.metadata["title"] = notebook.metadata["title"]
    done.metadata["tap"] = find_provenance(done) or Provenance.collect().to_json()
    if failure is not None:
        _write(kept, nbformat.writes(done))
        raise ReportError(f"{path.name} stopped at {failure}. What ran until then is in {kept}.")
    return write_report(done, path.stem, chosen, folder, show_code=show_code, progress=progress)


def report_run(
    record: "RunRecord", formats: Sequence[str], folder: Path, *, progress: Progress = NO_PROGRESS
) -> list[Path]:
    """Write a saved run in the given formats; needs no model and runs no kernel.

    Args:
        record: From :class:`tapwb.store.RunStore`.
        formats: Out of :data:`FORMATS`.
        folder: Where to write; made if missing.
        progress: Told about every format.

    Raises:
        UsageError: If a format is unknown.
        ReportError: If a format cannot be made.
    """
    from tapwb.views.report.saved_run import notebook_from_run

    chosen = check_formats(formats)
    if "pdf" in chosen:
        require_browser()
    _make_folder(folder)
    return write_report(notebook_from_run(record), f"run-{record.run_id}", chosen, folder, progress=progress)


def write_report(
    notebook: NotebookNode,
    stem: str,
    formats: Sequence[str],
    folder: Path,
    *,
    show_code: bool = False,
    progress: Progress = NO_PROGRESS,
) -> list[Path]:
    """Write a notebook that has its outputs; figures are drawn once for all formats."""
    progress.stage("write the report", total=len(formats) + 1, unit="file")
    script = freeze(notebook, find_browser())
    progress.advance()
    page = to_html(notebook, script=script, show_code=show_code)
    files = []
    for name in formats:
        target = folder / f"{stem}.{name}"
        if name == "html":
            _write(target, page)
        elif name == "ipynb":
            _write(target, nbformat.writes(notebook))
        else:
            _write(target, to_pdf(page, require_browser()))
        files.append(target)
        progress.advance()
    return files


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReportError(f"{folder} cannot be made ({error.strerror}). Give another folder with --out.") from error


def _write(target: Path, content: str | bytes) -> None:
    """Write a whole file or none: a reader never meets half a report."""
    scratch = target.with_name(f".{target.name}.part")
    try:
        scratch.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        scratch.replace(target)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise ReportError(f"{target} cannot be written ({error.strerror}). Give another folder with --out.") from error

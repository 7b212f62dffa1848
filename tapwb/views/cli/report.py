"""``tapwb report``: a notebook or a saved run as one offline file."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tapwb.core.errors import ReportError, UsageError
from tapwb.core.provenance import Provenance
from tapwb.core.units import format_bytes
from tapwb.views.cli import options
from tapwb.views.cli.inputs import quiet_libraries
from tapwb.views.cli.output import command_output, pairs
from tapwb.views.cli.progress import RichProgress

EXAMPLE = "tapwb report 00_first_look --to html,ipynb -p max_new_tokens=40"


def command(
    notebook: Annotated[
        str | None, typer.Argument(metavar="[NOTEBOOK]", help="A notebook's name (00_first_look) or file.")
    ] = None,
    run_id: Annotated[str | None, typer.Option("--run", help="Report a saved run instead; loads no model.")] = None,
    parameter: Annotated[
        list[str] | None, typer.Option("-p", "--parameter", metavar="NAME=VALUE", help="Set a notebook's parameter.")
    ] = None,
    to: Annotated[str, typer.Option("--to", help="Formats, joined by commas: html, pdf, ipynb.")] = "html",
    folder: Annotated[Path, typer.Option("--out", help="Folder to write to.")] = Path("reports"),
    code: Annotated[bool, typer.Option("--code/--no-code", help="Show the notebook's code.")] = False,
    as_json: options.Json = False,
) -> None:
    """Make an offline report of a notebook or run.

    One file that opens anywhere without a network, with its provenance inside. If a
    cell fails the partly run notebook is kept and the exit status is 1.
    """
    if (notebook is None) == (run_id is None):
        raise UsageError("give either a notebook or --run ID: tapwb report 00_first_look, or tapwb report --run ID.")
    with command_output(as_json=as_json) as out:
        quiet_libraries()
        formats = [name.strip() for name in to.split(",") if name.strip()]
        try:
            with RichProgress() as progress:
                files = _build(notebook, run_id, parameter or [], formats, folder, code, progress)
        except ModuleNotFoundError as error:
            raise ReportError(
                f"reports need the package {error.name!r}. Install it: pip install 'tapwb[notebooks]', or make report."
            ) from error
        payload = {
            "files": [file.resolve() for file in files],
            "sizes_bytes": [file.stat().st_size for file in files],
            "source": notebook or f"run {run_id}",
            "provenance": Provenance.collect(),
        }
        out.result(payload, pairs("Report", {str(file): format_bytes(file.stat().st_size) for file in files}))


def _build(
    notebook: str | None,
    run_id: str | None,
    words: list[str],
    formats: list[str],
    folder: Path,
    code: bool,
    progress: RichProgress,
) -> list[Path]:
    from tapwb.views.report import build, source

    parameters: dict[str, Any] = source.parse_parameters(words)
    if run_id is not None:
        if parameters:
            raise UsageError("a saved run has no parameters; -p goes with a notebook.")
        from tapwb.views.cli.runs import open_store

        return build.report_run(open_store().load(run_id), formats, folder, progress=progress)
    path = source.find_notebook(str(notebook))
    return build.report_notebook(path, formats, folder, parameters=parameters, show_code=code, progress=progress)

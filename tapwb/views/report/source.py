"""Where a report starts: a percent script or notebook file becomes a notebook with a provenance cell at its end."""

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from tapwb.core.errors import ReportError, UsageError

PROVENANCE_MIME = "application/vnd.tapwb.provenance+json"
_PROVENANCE_CODE = "from tapwb.views.notebook import show_provenance\n\nshow_provenance()"


def notebooks_folder() -> Path:
    """The project's ``notebooks/`` folder.

    Raises:
        ReportError: If the package is not run from a checkout.
    """
    folder = Path(__file__).resolve().parents[3] / "notebooks"
    if not folder.is_dir():
        raise ReportError(
            "the notebooks are part of the repository, not of the installed package. Run from a checkout."
        )
    return folder


def find_notebook(name: str) -> Path:
    """A notebook by path, or by its name in the project's folder (``00_first_look``, ``00``, ``ablations_cells``).

    Raises:
        UsageError: If there is none, with the names there are.
    """
    path = Path(name).expanduser()
    if path.is_file() and path.suffix in (".py", ".ipynb"):
        return path
    if path.name == name:  # a bare name, not a path
        stem = name.removesuffix(".py").removesuffix(".ipynb")
        known = {file.stem: file for file in sorted(notebooks_folder().glob("*.py"))}
        matches = [
            file for known_stem, file in known.items() if known_stem == stem or known_stem.startswith(f"{stem}_")
        ]
        if len(matches) == 1:
            return matches[0]
        raise UsageError(f"there is no notebook {name!r}. Known: {', '.join(known)}; or give a .py or .ipynb file.")
    raise UsageError(
        f"{name!r} is not a notebook file. Give a .py (percent format) or .ipynb file, or a notebook's name."
    )


def read_notebook(path: Path) -> NotebookNode:
    """Read a percent script or a notebook file, without outputs, with the provenance cell added.

    Raises:
        ReportError: If it is not a notebook.
    """
    import jupytext

    try:
        notebook = jupytext.read(path) if path.suffix == ".py" else nbformat.read(path, as_version=4)
    except (OSError, ValueError, nbformat.ValidationError) as error:
        raise ReportError(f"{path} cannot be read as a notebook: {error}. Save it again from JupyterLab.") from error
    notebook = nbformat.from_dict(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.cells.append(nbformat.v4.new_markdown_cell("## Where these numbers come from"))
    notebook.cells.append(nbformat.v4.new_code_cell(_PROVENANCE_CODE, metadata={"tags": ["provenance"]}))
    # The kernel of this very environment, whatever the file's author had.
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata["title"] = title_of(notebook, path.stem)
    return notebook


def title_of(notebook: NotebookNode, default: str) -> str:
    """The first heading of a notebook."""
    for cell in notebook.cells:
        heading = re.search(r"^# +(.+?)\s*$", cell.source, re.MULTILINE) if cell.cell_type == "markdown" else None
        if heading:
            return heading.group(1)
    return default


def parse_parameters(words: list[str]) -> dict[str, Any]:
    """``["windows=4", "model=tiny-random-llama"]`` as values; what is not a Python literal stays text.

    Raises:
        UsageError: If a word is not ``name=value``.
    """
    out: dict[str, Any] = {}
    for word in words:
        name, separator, value = word.partition("=")
        if not separator or not name.isidentifier():
            raise UsageError(f"-p {word!r} is not name=value. Write for example -p windows=4.")
        try:
            out[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            out[name] = value
    return out


def check_parameters(notebook: NotebookNode, parameters: Mapping[str, Any]) -> None:
    """Refuse parameters that the notebook does not have: a misspelt name would silently run the defaults.

    Raises:
        UsageError: With the names there are.
    """
    known: list[str] = []
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            nodes = ast.parse(cell.source).body
            targets = [target for node in nodes if isinstance(node, ast.Assign) for target in node.targets]
            known = [target.id for target in targets if isinstance(target, ast.Name)]
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise UsageError(f"the notebook has no parameter {', '.join(unknown)}. It has: {', '.join(known) or 'none'}.")

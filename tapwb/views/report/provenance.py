"""The provenance of a report: kept as data in its metadata, shown as its last cell."""

import html
import json
from collections.abc import Mapping
from typing import Any

import nbformat
from nbformat import NotebookNode

from tapwb.views.report.source import PROVENANCE_MIME


def provenance_html(facts: Mapping[str, Any]) -> str:
    """A two-column table of facts; nested ones are written as ``outer.inner``."""
    cells = "".join(
        f"<tr><th style='text-align:left;vertical-align:top'>{html.escape(name)}</th>"
        f"<td style='text-align:left;overflow-wrap:anywhere'>{html.escape(value)}</td></tr>"
        for name, value in _flat(facts)
    )
    return f"<table class='tap-provenance'><tbody>{cells}</tbody></table>"


def provenance_bundle(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts in every form a notebook, a page and a program may want."""
    return {
        "text/html": provenance_html(facts),
        "text/plain": "\n".join(f"{name}: {value}" for name, value in _flat(facts)),
        PROVENANCE_MIME: dict(facts),
    }


def find_provenance(notebook: NotebookNode) -> dict[str, Any] | None:
    """What the provenance cell of an executed notebook said, or ``None`` if it never ran."""
    for cell in reversed(notebook.cells):
        for output in cell.get("outputs", []):
            if PROVENANCE_MIME in output.get("data", {}):
                return dict(output["data"][PROVENANCE_MIME])
    return None


def _flat(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in facts.items():
        label = f"{prefix}{name}"
        if isinstance(value, Mapping) and set(value) == {"unavailable"}:
            rows.append((label, f"unavailable ({value['unavailable']})"))
        elif isinstance(value, Mapping):
            rows += _flat(value, f"{label}.")
        elif value is not None and value != []:
            rows.append((label, _text(value)))
    return rows


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def provenance_cells(facts: Mapping[str, Any]) -> list[NotebookNode]:
    """The last two cells of a report that is made without a kernel."""
    output = nbformat.v4.new_output("display_data", data=provenance_bundle(facts))
    return [
        nbformat.v4.new_markdown_cell("## Where these numbers come from"),
        nbformat.v4.new_code_cell("", outputs=[output], metadata={"tags": ["provenance"]}),
    ]

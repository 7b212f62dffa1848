"""Things a notebook or a report shows: plain tables and texts in every form a reader may want."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from tapwb.core.reading import Reading, Unavailable


class Shown:
    """Something to look at, in every form a notebook or a page may want.

    Attributes:
        bundle: Forms by mime type; always ``text/html`` and ``text/plain``.
    """

    def __init__(self, bundle: Mapping[str, Any]) -> None:
        self.bundle = dict(bundle)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return self.bundle

    def __repr__(self) -> str:
        return str(self.bundle["text/plain"])


def show_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> Shown:
    """A plain table; numbers, readings and missing values are printed for people.

    Args:
        columns: Headings.
        rows: Cells: text, numbers, :class:`Reading` or :class:`Unavailable`.
        title: Printed above.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    aligned = ["left" if any(isinstance(row[i], str) for row in rows) else "right" for i in range(len(columns))]
    head = "".join(f"<th style='text-align:{a}'>{html.escape(c)}</th>" for c, a in zip(columns, aligned, strict=True))
    body = "".join(
        "<tr>"
        + "".join(f"<td style='text-align:{a}'>{html.escape(c)}</td>" for c, a in zip(row, aligned, strict=True))
        + "</tr>"
        for row in cells
    )
    caption = (
        f"<caption style='text-align:left;font-weight:bold;white-space:nowrap'>{html.escape(title)}</caption>"
        if title
        else ""
    )
    page = f"<table class='tap-table'>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    lines = [title] if title else []
    lines += ["  ".join(columns)] + ["  ".join(row) for row in cells]
    return Shown({"text/html": page, "text/plain": "\n".join(lines)})


def show_text(text: str, label: str = "") -> Shown:
    """Text a model wrote, as text: nothing in it is read as markup."""
    heading = f"<div style='opacity:.7;font-size:85%'>{html.escape(label)}</div>" if label else ""
    block = f"<div style='white-space:pre-wrap;border-left:3px solid #888;padding:.2em .8em'>{html.escape(text)}</div>"
    return Shown({"text/html": heading + block, "text/plain": f"{label}\n{text}" if label else text})


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, Unavailable):
        return f"unavailable ({value.reason})"
    if isinstance(value, Reading):
        return f"{value.value:.4g} {value.unit} ({value.source})"
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}"

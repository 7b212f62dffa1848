"""What a command prints, where, and how it stays clean.

Standard output belongs to the result alone: while a command works, anything else that writes there (a library's
warning, a stray print, native code) is sent to standard error at the level of the file descriptor, so a script can
always read the one JSON object. Model output and file names are untrusted text: control characters and terminal
sequences are taken out before anything reaches a terminal, and nothing of it is read as markup.
"""

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from tapwb.views.cli.plain import dumps

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table

# CSI, OSC (titles, links), other escape sequences; then single controls except tab and newline, and direction marks.
_SEQUENCES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x9b[0-?]*[ -/]*[@-~]|\x1b[\]PX^_].*?(?:\x07|\x1b\\|\x9c|$)|\x1b[ -/]*[0-~]?", re.DOTALL
)
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

#: Columns to measure a table in before it is squeezed: more than any terminal has.
_WIDEST = 10_000
#: What is longer is a path or a checksum, and may be folded.
_LONGEST_WORD = 32


def terminal_safe(text: str) -> str:
    """``text`` without terminal sequences, control characters (tab and newline stay) and direction overrides."""
    return _CONTROLS.sub("", _SEQUENCES.sub("", text))


class Output:
    """The one way to standard output that a command has.

    Args:
        stream: The real standard output.
        as_json: Print one JSON object instead of text.
    """

    def __init__(self, stream: TextIO, *, as_json: bool) -> None:
        self.as_json = as_json
        self._stream = stream

    @property
    def console(self) -> "Console":
        """A rich console on standard output that takes no markup from the text it prints."""
        from rich.console import Console

        return Console(file=self._stream, markup=False, emoji=False, highlight=False, soft_wrap=False)

    def write(self, text: str) -> None:
        """Print untrusted text as it comes, at once: a token of a stream."""
        self._stream.write(terminal_safe(text))
        self._stream.flush()

    def result(self, payload: Mapping[str, Any], *renderables: "RenderableType") -> None:
        """Print the result: ``payload`` as JSON, or the ``renderables`` for people."""
        if self.as_json:
            self._stream.write(dumps(payload) + "\n")
        else:
            for renderable in renderables:
                self.console.print(renderable)
        self._stream.flush()


@contextlib.contextmanager
def command_output(*, as_json: bool) -> Iterator[Output]:
    """Keep standard output for the result while the body runs; everything else goes to standard error."""
    sys.stdout.flush()
    try:
        descriptor, other = sys.stdout.fileno(), sys.stderr.fileno()
    except (io.UnsupportedOperation, AttributeError, ValueError):  # captured in memory, as in tests and notebooks
        real = sys.stdout
        with contextlib.redirect_stdout(sys.stderr):
            yield Output(real, as_json=as_json)
        return
    kept = os.dup(descriptor)
    os.dup2(other, descriptor)
    try:
        with (
            open(kept, "w", encoding="utf-8", errors="backslashreplace", closefd=False) as real,
            contextlib.redirect_stdout(sys.stderr),
        ):
            yield Output(real, as_json=as_json)
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)


def warn(text: str) -> None:
    """One line on standard error."""
    sys.stderr.write(f"tapwb: {' '.join(terminal_safe(text).split())}\n")
    sys.stderr.flush()


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()
) -> "RenderableType":
    """A table of untrusted cells; one paragraph per row where the terminal is too narrow for its longest words.

    Args:
        title: Printed above it.
        columns: Headings.
        rows: Cells.
        right: Indices of the columns aligned to the right (numbers).
    """
    from rich import box
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    grid = Table(title=Text(terminal_safe(title)), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    widest = []
    for index, heading in enumerate(columns):
        lines = [line for row in rows for line in terminal_safe(row[index]).split("\n")]
        widest.append(max(map(cell_len, (heading, *lines))))
        # The first column names the row, those on the right hold numbers: neither can be read or copied in two lines.
        words = [word for line in lines for word in line.split() if cell_len(word) <= _LONGEST_WORD]
        pieces = lines if index == 0 or index in right else words
        grid.add_column(
            Text(heading),
            justify="right" if index in right else "left",
            overflow="fold",
            width=max(map(cell_len, (*heading.split(), *pieces)), default=0),
        )
    for row in rows:
        grid.add_row(*(Text(terminal_safe(cell)) for cell in row))
    return _TableOrParagraphs(grid, widest, columns, rows)


class _TableOrParagraphs:
    """A table where every word fits into its column, else a paragraph per row: words cut in two cannot be read.

    Args:
        grid: The table, each column as narrow as its longest word.
        widest: What each column would fill if it could.
        columns: Headings.
        rows: Cells.
    """

    def __init__(
        self, grid: "Table", widest: Sequence[int], columns: Sequence[str], rows: Sequence[Sequence[str]]
    ) -> None:
        self._grid, self._widest, self._columns, self._rows = grid, widest, columns, rows

    @property
    def row_count(self) -> int:
        """Rows of cells."""
        return len(self._rows)

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "Iterator[RenderableType]":
        from rich.padding import Padding
        from rich.text import Text

        spare = options.max_width - self._grid.__rich_measure__(console, options.update(max_width=_WIDEST)).minimum
        if spare >= 0:
            widths = [column.width or 0 for column in self._grid.columns]
            for column, width in zip(self._grid.columns, _shared(spare, widths, self._widest), strict=True):
                column.width = width
            yield self._grid
            return
        yield self._grid.title or ""
        for row in self._rows:
            name, *rest = (terminal_safe(cell) for cell in row)
            yield Text(name, style="bold")
            said = zip(self._columns[1:], rest, strict=True)
            lines = [f"{heading}: {cell}" for heading, cell in said if cell not in ("", "–")]
            if lines:
                yield Padding(Text("\n".join(lines)), (0, 0, 0, 2))


def _shared(spare: int, widths: Sequence[int], widest: Sequence[int]) -> list[int]:
    """Widths with what is spare given to the columns that lack most."""
    given = list(widths)
    lacking = [most - width for most, width in zip(widest, widths, strict=True)]
    for _ in range(min(spare, sum(lacking))):
        most = max(range(len(given)), key=lacking.__getitem__)
        given[most] += 1
        lacking[most] -= 1
    return given


def pairs(title: str, items: Mapping[str, str]) -> "RenderableType":
    """A two-column table: a name and what it is."""
    from rich.table import Table
    from rich.text import Text

    heading = Text(terminal_safe(title)) if title else None
    grid = Table.grid(padding=(0, 2))
    grid.title, grid.title_justify = heading, "left"
    for name, value in items.items():
        grid.add_row(Text(terminal_safe(name)), Text(terminal_safe(value)))
    return grid


def text(value: str) -> "RenderableType":
    """Untrusted text as a renderable."""
    from rich.text import Text

    return Text(terminal_safe(value))


def number(value: Any, spec: str = ".3g") -> str:
    """A number, a reading, or the reason why there is none, for a table cell."""
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        return f"unavailable ({value['unavailable']})" if "unavailable" in value else str(dict(value))
    return format(value, spec) if not isinstance(value, str) else value

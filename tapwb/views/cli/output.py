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
    from rich.console import Console, RenderableType

# CSI, OSC (titles, links), other escape sequences; then single controls except tab and newline, and direction marks.
_SEQUENCES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x9b[0-?]*[ -/]*[@-~]|\x1b[\]PX^_].*?(?:\x07|\x1b\\|\x9c|$)|\x1b[ -/]*[0-~]?", re.DOTALL
)
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


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
    """A rich table of untrusted cells.

    Args:
        title: Printed above it.
        columns: Headings.
        rows: Cells.
        right: Indices of the columns aligned to the right (numbers).
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(title=Text(terminal_safe(title)), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, heading in enumerate(columns):
        # The first column names the row: folded names cannot be read or copied.
        grid.add_column(
            Text(heading), justify="right" if index in right else "left", overflow="fold", no_wrap=index == 0
        )
    for row in rows:
        grid.add_row(*(Text(terminal_safe(cell)) for cell in row))
    return grid


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

"""The fields of every widget, in one table.

A widget has two homes (a notebook and the dashboard) and a static form (a report). The three are built from the same
rows, so that a field added here exists everywhere, with the same name, type and default. Names that Panel keeps for
itself (``name``, ``width``, ``visible``, ``loading`` ...) must not be used; a test holds that.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

STATIC = Path(__file__).parent / "static"

#: Names of Panel's own parameters, which a shared field must not take.
RESERVED = frozenset(
    ("align", "css_classes", "design", "height", "loading", "margin", "name", "sizing_mode", "styles", "tags", "theme")
) | {"visible", "width"}


@dataclass(frozen=True, slots=True)
class Field:
    """One field that Python and the browser share.

    Attributes:
        name: Its name on both sides.
        kind: ``list``, ``dict``, ``str``, ``int``, ``float`` or ``bool``.
        default: Value before anything is set.
        meaning: One line for people.
        from_browser: Whether the user changes it there (a selection), so that Python should listen.
    """

    name: str
    kind: type
    default: Any
    meaning: str
    from_browser: bool = False


TOKEN_STRIP = (
    Field("cells", list, [], "Text of each display cell; empty: the browser cuts `pieces` into graphemes itself."),
    Field("cell_of_token", list, [], "For each token, the index of its cell."),
    Field("pieces", list, [], "Text of each token; bytes that are no character alone are written <0xE0>."),
    Field("token_ids", list, [], "For each token, its number in the vocabulary."),
    Field("bytes_hex", list, [], "For each token, its bytes: 'e0 b8 aa'."),
    Field("special", list, [], "Indices of tokens that steer the model and are no text."),
    Field("scores", list, [], "For each token, its importance in [0, 1]; empty: no tint."),
    Field("bits", list, [], "For each token, its bits; empty: no underline."),
    Field("kept", list, [], "For each token, why its bits are not those of its importance; empty: they are."),
    Field("signal", str, "", "What the importance was measured by, as people read it."),
    Field("gamma", float, 1.0, "Exponent of the tint: below 1 brings out small scores."),
    Field("granularity", str, "token", "What is tinted and selected as one: token, word or line."),
    Field("show_whitespace", bool, True, "Whether blanks, tabs and line ends are drawn."),
    Field("color_scheme", str, "auto", "light, dark, or auto to follow the page or the system."),
    Field("labels", dict, {}, "Words of the tooltip and the legend, by their English name."),
    Field("focused", int, -1, "Token the keyboard stands on; -1: none.", True),
    Field("span", list, [], "First and last selected token, or nothing.", True),
    Field("pinned", int, -1, "Token whose tooltip stays open; -1: none.", True),
)

ANSWER_DIFF = (
    Field("candidate", str, "", "The text under test, as far as it is written."),
    Field("baseline", str, "", "The text it is held against."),
    Field("candidate_title", str, "", "Heading of the first text."),
    Field("baseline_title", str, "", "Heading of the second text."),
    Field("candidate_state", str, "", "What to say while the first text is empty or growing."),
    Field("baseline_state", str, "", "What to say while the second text is empty or growing."),
    Field("compare", bool, True, "Whether to mark the first difference."),
    Field("difference_label", str, "first difference", "What the mark is called when it is read aloud."),
    Field("color_scheme", str, "auto", "light, dark, or auto to follow the page or the system."),
)

DATA_TABLE = (
    Field("columns", list, [], "Headings."),
    Field("rows", list, [], "For each row, its cells as text."),
    Field("numbers", list, [], "Indices of the columns that hold numbers: to the right, and sorted as numbers."),
    Field("label", str, "", "What the table is called when it is read aloud."),
    Field("empty", str, "", "What to say while there are no rows."),
    Field("color_scheme", str, "auto", "light, dark, or auto to follow the page or the system."),
    Field("selected", int, -1, "Index in `rows` of the selected row, however it is sorted; -1: none.", True),
)

#: The words of the token strip, to be translated by whoever shows it.
TOKEN_STRIP_LABELS = (
    "Tokens",
    "token",
    "id",
    "bytes",
    "importance",
    "rank",
    "bits",
    "special token",
    "less important",
    "more important",
    "underline and small number: bits",
    "bits kept, whatever the importance",
    "No tokens yet.",
)


def defaults(fields: tuple[Field, ...]) -> dict[str, Any]:
    """A fresh copy of the fields' defaults, as plain values."""
    return {f.name: f.kind(f.default) if f.kind in (list, dict) else f.default for f in fields}

"""The words of the screen in the reader's language, from gettext catalogs.

``.po`` files are read directly (the format is a few lines a parser needs to know), so that what translators edit is
what runs and no compiled file can be out of date. English texts are the keys. Tests hold that every text of the
dashboard is in every catalog, with the same placeholders.
"""

import ast
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tapwb.core.errors import UnknownName
from tapwb_widgets.schema import TOKEN_STRIP_LABELS

#: Languages by code, each in its own words.
LANGUAGES = {"en": "English", "th": "ไทย"}
LOCALE = Path(__file__).parent / "locale"

Translate = Callable[[str], str]

#: Texts that reach the catalog through a variable, by the file they belong to; the others stand in a ``_("...")``.
INDIRECT_TEXTS = {
    "tables.py": (
        "measured",
        "estimated",
        "full",
        "sliding",
        "mla",
        "mean bits",
        "speed of writing",
        "time to the first token",
        "weights in memory",
        "attention cache",
        "weight bytes read",
        "energy",
        "energy saved",
    ),
    "token_strip.js": TOKEN_STRIP_LABELS,
}


@dataclass(frozen=True, slots=True)
class Catalog:
    """The texts of one language.

    Attributes:
        language: Its code.
        texts: Translation of each English text; the empty key is the file's header and is left out.
    """

    language: str
    texts: dict[str, str]

    def __call__(self, english: str) -> str:
        """The text in this language, or the English one where it is missing."""
        return self.texts.get(english) or english


@functools.cache
def catalog(language: str) -> Catalog:
    """The catalog of a language.

    Raises:
        UnknownName: If there is none.
    """
    path = LOCALE / language / "LC_MESSAGES" / "tapwb.po"
    if language not in LANGUAGES or not path.is_file():
        raise UnknownName(f"no language {language!r}. Known: {', '.join(LANGUAGES)}.")
    return Catalog(language, read_po(path.read_text(encoding="utf-8")))


def translator(language: str) -> Catalog:
    """A function from English texts to ``language``; an unknown code gives English, so that an odd link still works."""
    return catalog(language if language in LANGUAGES else "en")


def read_po(text: str) -> dict[str, str]:
    """Texts of a gettext ``.po`` file without plural forms.

    Raises:
        ValueError: If a line is neither a comment, a keyword nor a quoted text, or a key comes twice.
    """
    entries: list[dict[str, str]] = []
    part = ""
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        keyword, quoted = ("", stripped) if stripped.startswith('"') else stripped.split(" ", 1)
        if keyword == "msgid":
            entries.append({"msgid": "", "msgstr": ""})
        if keyword:
            part = keyword
        if part not in ("msgid", "msgstr") or not quoted.startswith('"') or not entries:
            raise ValueError(f"line {number} of the catalog cannot be read: {stripped!r}")
        entries[-1][part] += ast.literal_eval(quoted)
    texts = {entry["msgid"]: entry["msgstr"] for entry in entries if entry["msgid"]}
    if len(texts) != sum(1 for entry in entries if entry["msgid"]):
        raise ValueError("a key of the catalog comes twice")
    return texts


def texts_in_use() -> dict[str, str]:
    """Every English text that the views hand to gettext, with the file it stands in; what a catalog must hold."""
    found = {text: name for name, texts in INDIRECT_TEXTS.items() for text in texts}
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "_"):
                continue
            if node.args and isinstance(node.args[0], ast.Constant):
                found.setdefault(str(node.args[0].value), path.name)
    return found

"""The text that every machine with Python has: the language's manual, its library's docstrings, our own short texts.

A few chapters of the manual are held out. The manual repeats itself, so the split is made by paragraph: one that stands
in a held-out chapter is trained on nowhere, wherever else it stands; nor is any paragraph trained on twice. Other
releases of Python carry somewhat other words, so a corpus has a fingerprint.
"""

import ast
import hashlib
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tapwb.core.errors import UsageError

#: Chapters of the manual that are only scored: prose with examples, a page of tables, and rules.
HELD_OUT_TOPICS = ("calls", "execmodel", "formatstrings")
#: Folders of the library that hold programs and their tests rather than prose; some systems leave them out.
_NOT_PROSE = {"__pycache__", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "tests", "tkinter", "turtledemo"}
#: Shorter docstrings are mostly a line that says the name again.
_LEAST_DOCSTRING = 120


@dataclass(frozen=True, slots=True)
class Corpus:
    """Text to train on and text to score.

    Attributes:
        training: Documents.
        held_out: One text; no paragraph of it is in ``training``.
        characters: Characters by source, after paragraphs that repeat were left out.
        python: Python version the text comes from, or what else it is.
    """

    training: tuple[str, ...]
    held_out: str
    characters: Mapping[str, int]
    python: str

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of the training text."""
        return text_sha256("\f".join(self.training))[:16]

    @property
    def held_out_fingerprint(self) -> str:
        """Sixteen hexadecimal digits of the held-out text."""
        return text_sha256(self.held_out)[:16]


def text_sha256(text: str) -> str:
    """SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def write_texts(corpus: Corpus, folder: Path) -> tuple[Path, Path]:
    """Write ``training.txt`` and ``held_out.txt``, for other commands to calibrate and to score on.

    Args:
        corpus: The text.
        folder: Made if it is missing.

    Returns:
        The two files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = folder / "training.txt", folder / "held_out.txt"
    files[0].write_text("\n\n".join(corpus.training), encoding="utf-8")
    files[1].write_text(corpus.held_out, encoding="utf-8")
    return files


def held_out_text() -> str:
    """The held-out chapters of this Python's manual, in the order of :data:`HELD_OUT_TOPICS`.

    Raises:
        UsageError: If this Python has none of one.
    """
    topics = _manual()
    if missing := [name for name in HELD_OUT_TOPICS if name not in topics]:
        raise UsageError(f"the manual of this Python lacks {', '.join(missing)}. Use a Python with all its topics.")
    return "\n\n".join(topics[name].strip() for name in HELD_OUT_TOPICS)


def manual_text() -> str:
    """The whole manual of this Python, in the order of its topics: a long document that is everywhere at hand."""
    topics = _manual()
    return "\n\n".join(topics[name].strip() for name in sorted(topics))


def python_corpus(own_texts: Path) -> Corpus:
    """Gather the corpus from the running Python and a folder of our own texts.

    Args:
        own_texts: Folder with ``*.txt``.

    Raises:
        UsageError: If the manual is incomplete or the folder holds no text.
    """
    held_out = held_out_text()
    seen = {_bare(paragraph) for paragraph in held_out.split("\n\n")}
    topics = _manual()
    manual = [_unseen(topics[name], seen) for name in sorted(topics) if name not in HELD_OUT_TOPICS]
    files = sorted(own_texts.glob("*.txt"))
    if not files:
        raise UsageError(f"{own_texts} holds no *.txt. Give the folder data/calibration of the repository.")
    own = [_unseen(file.read_text(encoding="utf-8"), seen) for file in files]
    library = [_unseen("\n\n".join(_docstrings(file)), seen) for file in _library_files()]
    parts = {"manual": manual, "own texts": own, "docstrings": library}
    return Corpus(
        training=tuple(document for part in parts.values() for document in part if document),
        held_out=held_out,
        characters={name: sum(map(len, part)) for name, part in parts.items()},
        python=sys.version.split()[0],
    )


def _manual() -> Mapping[str, str]:
    from pydoc_data import topics

    manual: Mapping[str, str] = topics.topics
    return manual


def _bare(paragraph: str) -> str:
    return " ".join(paragraph.split())


def _unseen(document: str, seen: set[str]) -> str:
    """The paragraphs that no text before had; ``seen`` grows by them."""
    kept = []
    for paragraph in document.strip().split("\n\n"):
        bare = _bare(paragraph)
        if bare and bare not in seen:
            seen.add(bare)
            kept.append(paragraph.rstrip())
    return "\n\n".join(kept)


def _library_files() -> Iterator[Path]:
    """Python files of the standard library, in the order of their names; foreign packages are not in it."""
    top = Path(sysconfig.get_path("stdlib"))
    for name in sorted(sys.stdlib_module_names - _NOT_PROSE):
        yield from (file for file in (top / f"{name}.py",) if file.is_file())
        if (top / name).is_dir():
            inside = (file for file in sorted((top / name).rglob("*.py")))
            yield from (file for file in inside if not _NOT_PROSE & set(file.relative_to(top).parts))


def _docstrings(file: Path) -> Iterator[str]:
    with tokenize.open(file) as source, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the library's own escapes
        tree = ast.parse(source.read())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) >= _LEAST_DOCSTRING:
                yield text

"""The project's files work on any machine: no path, address or registry of the one they were written on."""

import re
from pathlib import Path

import pytest

TEXT_CEILING_BYTES = 2_000_000
# Written in pieces, so that this file does not match itself.
FORBIDDEN = {
    "a work folder": re.compile(r"(?<![\w.~-])/" + r"work/"),
    "a temporary folder": re.compile(r"(?<![\w.~-])/" + r"tmp/"),
    "a home folder": re.compile(r"(?<![\w.~-])/" + r"(root|home/\w+|Users/\w+)/"),
    "a local package folder": re.compile(r"file:/" + r"//\w|(?<![\w.~-])/" + r"opt/\w"),
    "a private package index": re.compile(r"--(extra-)?index-" + r"url|--find-" + r"links|PIP_INDEX" + r"_URL"),
    "a private registry": re.compile(
        r"(?i)\b(artifactory|nexus)[.:/]" + r"\w|https?://[\w.-]+\.(internal|corp|lan)" + r"\b"
    ),
    "an address in a private network": re.compile(
        r"(?<![\w.])(10|192\.168|172\.(1[6-9]|2\d|3[01]))(\.\d{1,3}){2,3}(:\d+)?/"
    ),
}


@pytest.fixture(scope="module")
def texts(repository, project_files) -> dict[str, str]:
    """The project's text files by their path; binary files are left out."""
    found = {}
    for file in project_files:
        if file.stat().st_size <= TEXT_CEILING_BYTES and (text := read_text(file)) is not None:
            found[file.relative_to(repository).as_posix()] = text
    return found


def read_text(file: Path) -> str | None:
    """The file as text, or `None` when it is not text."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


@pytest.mark.parametrize("kind", FORBIDDEN)
def test_no_project_file_holds_a_machine_of_its_own(texts, kind):
    """No file names something that exists only where it was written."""
    found = [
        f"{name}:{number}: {line.strip()[:80]}"
        for name, text in texts.items()
        for number, line in enumerate(text.splitlines(), start=1)
        if FORBIDDEN[kind].search(line)
    ]
    assert found == [], "\n".join(found)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("a work folder", "cd /" + "work/project"),
        ("a temporary folder", '"/' + 'tmp/out.txt"'),
        ("a home folder", "/" + "home/someone/models"),
        ("a local package folder", "pip install --no-index file:/" + "//wheels"),
        ("a private package index", "pip install --" + "index-url https://example.org/simple"),
        ("a private registry", "https://pypi.example." + "corp/simple"),
        ("an address in a private network", "http://10" + ".1.2.3:8081/simple"),
    ],
)
def test_such_a_line_would_be_found(kind, text):
    """Each pattern matches the kind of line it is for."""
    assert FORBIDDEN[kind].search(text)


@pytest.mark.parametrize(
    "text", ["frame" + "work/tools", "https://example.org/tmp" + "l/x", "~/.cache/tapwb", "v1.10.2.3/"]
)
def test_ordinary_text_is_not_taken_for_a_path(text):
    """Words and addresses that merely contain a pattern are left alone."""
    assert [kind for kind, pattern in FORBIDDEN.items() if pattern.search(text)] == []

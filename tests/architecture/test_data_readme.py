"""Every data file says where it comes from, under which licence, as of when, and is still what it was."""

import hashlib
import re
from typing import NamedTuple

import pytest

EDITED_HERE = "edited here"
NO_DATA = {"README.md"}


class Row(NamedTuple):
    """One row of the table in `data/README.md`."""

    pattern: str
    what: str
    source: str
    licence: str
    as_of: str
    sha256: str


@pytest.fixture(scope="module")
def rows(repository) -> list[Row]:
    """The rows of the table, without its head."""
    text = (repository / "data" / "README.md").read_text(encoding="utf-8")
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")
    ]
    return [Row(row[0].strip("`"), *row[1:]) for row in cells]


@pytest.fixture(scope="module")
def data_files(repository, project_files) -> list[str]:
    """Paths of the data files, relative to `data/`."""
    folder = repository / "data"
    names = [file.relative_to(folder).as_posix() for file in project_files if file.is_relative_to(folder)]
    return [name for name in names if name not in NO_DATA]


def matches(pattern: str, name: str) -> bool:
    """Whether a row's file name, in which `*` stands for a part without a slash, covers a file."""
    return re.fullmatch(re.escape(pattern).replace(r"\*", "[^/]+"), name) is not None


def test_every_data_file_is_listed_exactly_once(rows, data_files):
    """No file without a row, and none with two."""
    counts = {name: sum(matches(row.pattern, name) for row in rows) for name in data_files}
    assert {name: count for name, count in counts.items() if count != 1} == {}


def test_every_row_stands_for_a_file(rows, data_files):
    """A row whose file is gone is removed."""
    assert [row.pattern for row in rows if not any(matches(row.pattern, name) for name in data_files)] == []


def test_every_row_is_filled_in_and_dated(rows):
    """Source and licence are given, and the date is one."""
    assert rows
    assert [row.pattern for row in rows if not (row.what and row.source and row.licence)] == []
    assert [row.pattern for row in rows if not re.fullmatch(r"20\d\d-[01]\d-[0-3]\d", row.as_of)] == []


def test_every_file_is_still_what_it_was(repository, rows):
    """A file with a checksum has it; one without is marked as edited here."""
    for row in rows:
        if row.sha256 == EDITED_HERE:
            continue
        assert "*" not in row.pattern, f"{row.pattern} stands for several files and cannot have one checksum"
        content = (repository / "data" / row.pattern).read_bytes()
        assert row.sha256.strip("`") == hashlib.sha256(content).hexdigest(), row.pattern


def test_a_star_covers_one_folder_only():
    """Files of a deeper folder need a row of their own."""
    assert matches("results/*.jsonl", "results/kv.jsonl")
    assert not matches("results/*.jsonl", "results/old/kv.jsonl")
    assert not matches("results/*.jsonl", "results/kvxjsonl")

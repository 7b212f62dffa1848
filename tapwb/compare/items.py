"""The prompts of a comparison: what is asked, what a right answer looks like, and which items belong together.

Their fingerprint goes into the plan, so that a later run can show that it asked the same things.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tapwb.compare.fields import read_fields
from tapwb.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class PromptItem:
    """One thing that both systems are asked.

    Attributes:
        id: Unique name.
        prompt: What is asked.
        cluster: What it was taken from (a document, user or template); itself by default. Items of one cluster are not
            independent of each other.
        stratum: A slice to look at afterwards, such as the language.
        reference: A right answer, where there is one.
    """

    id: str
    prompt: str
    cluster: str = ""
    stratum: str = ""
    reference: str | None = None

    @property
    def cluster_id(self) -> str:
        """Its cluster, or itself."""
        return self.cluster or self.id


@dataclass(frozen=True, slots=True)
class PromptSet:
    """What identifies a set of prompts.

    Attributes:
        name: For reports.
        sha256: Of all items in a canonical form, in any order.
        n_items: Items.
        n_clusters: Independent groups of items.
    """

    name: str
    sha256: str
    n_items: int
    n_clusters: int


def read_items(path: Path) -> tuple[PromptItem, ...]:
    """Items of a file with one JSON object per line.

    Raises:
        UsageError: If the file cannot be read, a line is not an item, or two share an id.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as UTF-8 text: {error}. Give a file of JSON lines.") from error
    items = [_item(line, f"{path.name}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    return checked_items(items)


def checked_items(items: Iterable[PromptItem]) -> tuple[PromptItem, ...]:
    """The items, if each has an id of its own.

    Raises:
        UsageError: If there is none, or two share an id.
    """
    found: dict[str, PromptItem] = {}
    for item in items:
        if item.id in found:
            raise UsageError(f"two items are called {item.id!r}. Give every item an id of its own.")
        found[item.id] = item
    if not found:
        raise UsageError("there is no item, so nothing to compare. Give at least one prompt.")
    return tuple(found.values())


def fingerprint(name: str, items: Sequence[PromptItem]) -> PromptSet:
    """What identifies these items; their order does not.

    Raises:
        UsageError: If there is no item, or two share an id.
    """
    whole = sorted(checked_items(items), key=lambda item: item.id)
    text = json.dumps([asdict(item) for item in whole], sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()
    return PromptSet(name, digest, len(whole), len({item.cluster_id for item in whole}))


def _item(line: str, where: str) -> PromptItem:
    try:
        data: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where} is not JSON: {error}. Write one object per line.") from error
    return read_fields(PromptItem, data, where)

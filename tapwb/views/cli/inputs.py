"""Read what a command is given: texts, item files, and the quiet that libraries keep meanwhile."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from tapwb.core.errors import UsageError


def quiet_libraries() -> None:
    """Ask transformers and the hub to keep their advice to themselves; must run before they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def read_text(path: str) -> str:
    """The text of a file, or of standard input for ``-``.

    Raises:
        UsageError: If it is missing, a folder, or not UTF-8 text.
    """
    try:
        return sys.stdin.read() if path == "-" else Path(path).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path!r} cannot be read ({error.strerror}). Give the path of a text file.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path!r} is not UTF-8 text (byte {error.start}). Convert it first.") from error


def read_items(path: str) -> list[dict[str, Any]]:
    """Multiple-choice items of a JSON-lines file: ``{"ctx": ..., "endings": [...], "label": 0}`` on each line.

    Raises:
        UsageError: With the line, if one is not such an item.
    """
    items = [_checked_item(item, f"{path!r} line {number}") for number, item in _objects(path)]
    if not items:
        raise UsageError(f"{path!r} holds no item. Write one JSON object with ctx, endings and label a line.")
    return items


def read_lines(path: str) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, whatever their keys.

    Raises:
        UsageError: With the line, if one is not a JSON object, or if there is none.
    """
    lines = []
    for number, item in _objects(path):
        if not isinstance(item, dict):
            raise UsageError(f"{path!r} line {number} is not a JSON object. Write one item a line.")
        lines.append(item)
    if not lines:
        raise UsageError(f"{path!r} holds no item. Write one JSON object a line.")
    return lines


def _objects(path: str) -> list[tuple[int, Any]]:
    found = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            found.append((number, json.loads(line)))
        except json.JSONDecodeError as error:
            raise UsageError(f"{path!r} line {number} is not JSON: {error.msg}. Write one item a line.") from error
    return found


def _checked_item(item: Any, where: str) -> dict[str, Any]:
    shape = 'an item is {"ctx": text, "endings": [text, ...], "label": index of the right ending}'
    if not isinstance(item, dict) or not {"ctx", "endings", "label"} <= item.keys():
        raise UsageError(f"{where} lacks ctx, endings or label: {shape}.")
    endings, label = item["endings"], item["label"]
    if isinstance(label, str) and label.isdigit():  # HellaSwag's own files write the label as text
        label = int(label)
    texts_ok = isinstance(item["ctx"], str) and isinstance(endings, list) and all(isinstance(e, str) for e in endings)
    if not texts_ok or len(endings) < 2 or not isinstance(label, int) or not 0 <= label < len(endings):
        raise UsageError(f"{where} has ctx, endings or label of the wrong kind: {shape}.")
    return {**item, "label": label}

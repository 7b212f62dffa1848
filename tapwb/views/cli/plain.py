"""Results as plain JSON: one rule for every command.

Numbers are numbers and their keys carry the unit. A :class:`Reading` under the key ``energy_j`` becomes the number
itself, with ``energy_j_source`` (and ``_uncertainty``, ``_n``, ``_ci95`` where known) beside it, so that a script reads
a value without unpacking and a person still sees where it comes from. What could not be measured is
``{"unavailable": reason}``; NaN and infinity are not JSON and are reported that way too.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Set
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any

from tapwb.core.reading import Reading

_READING_KEYS = frozenset({"value", "unit", "source"})
_READING_EXTRAS = ("uncertainty", "n", "ci95")
# JSON escapes C0 controls only; C1 controls and direction marks would reach a terminal, lone surrogates break UTF-8.
_UNSAFE = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def to_plain(value: Any) -> Any:
    """``value`` in dicts, lists, strings, numbers, booleans and ``None`` only.

    Raises:
        TypeError: If something in it has no such form (a programming error).
    """
    if value is None or (isinstance(value, bool | int | str) and not isinstance(value, Enum)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"unavailable": "the computation gave no finite number"}
    if isinstance(value, Enum):
        return to_plain(value.value)
    if isinstance(value, Decimal | PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return _mapping(value)
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, Set):
        return sorted(to_plain(item) for item in value)
    for method in ("to_json", "tolist"):  # our records; torch and numpy arrays
        if hasattr(value, method):
            return to_plain(getattr(value, method)())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _mapping({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    raise TypeError(f"{type(value).__name__} has no plain form")


def dumps(value: Any) -> str:
    """``value`` as one line of JSON that is safe to print to a terminal."""
    text = json.dumps(to_plain(value), ensure_ascii=False, allow_nan=False)
    return _UNSAFE.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def _mapping(items: Mapping[Any, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in items.items():
        name = str(key)
        known = value.to_json() if isinstance(value, Reading) else value
        if (
            isinstance(known, Mapping)
            and known.keys() >= _READING_KEYS
            and set(known) <= {*_READING_KEYS, *_READING_EXTRAS}
        ):
            out[name] = to_plain(known["value"])
            out.setdefault(f"{name}_source", to_plain(known["source"]))
            out |= {f"{name}_{part}": to_plain(known[part]) for part in _READING_EXTRAS if part in known}
        else:
            out[name] = to_plain(value)
    return out

"""Records from parsed JSON or YAML, with errors that name the place, what came, and what is allowed."""

import difflib
import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from tapwb.core.errors import UsageError

Record = TypeVar("Record")


def read_fields(record: type[Record], data: Any, where: str) -> Record:
    """A frozen record from a mapping of its fields.

    Args:
        record: A dataclass whose fields are numbers, texts, words out of a list, or optional ones of these; other
            fields must have been built already.
        data: What a parser gave.
        where: The place, for errors.

    Raises:
        UsageError: If a field is unknown, missing or of the wrong kind.
    """
    if not isinstance(data, Mapping):
        raise UsageError(f"{where} is {_kind(data)}. Give a mapping of fields.")
    hints = get_type_hints(record)
    known = fields(record)  # type: ignore[arg-type]
    names = [field.name for field in known]
    for key in data:
        if key not in names:
            close = difflib.get_close_matches(str(key), names, 1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise UsageError(f"{where} has no field {key!r}.{hint} Allowed: {', '.join(names)}.")
    for field in known:
        if field.name not in data and field.default is MISSING and field.default_factory is MISSING:
            raise UsageError(f"{where} lacks {field.name!r}. Needed: {', '.join(_needed(known))}.")
    return record(**{key: _value(hints[key], value, f"{where}, {key}") for key, value in data.items()})


def _needed(known: tuple[Any, ...]) -> list[str]:
    return [field.name for field in known if field.default is MISSING and field.default_factory is MISSING]


def _value(hint: Any, value: Any, where: str) -> Any:
    """The value if its kind is allowed; whole numbers become floats where a float is meant."""
    origin = get_origin(hint)
    if origin is Literal:
        if value not in get_args(hint):
            raise UsageError(f"{where} is {value!r}. Allowed: {', '.join(map(str, get_args(hint)))}.")
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in get_args(hint):
            return None
        return _value(next(kind for kind in get_args(hint) if kind is not type(None)), value, where)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise UsageError(f"{where} is {value}. Give a finite number.")
        return float(value)
    if hint in (int, str, bool) and type(value) is not hint:
        raise UsageError(f"{where} is {_kind(value)}. Give {_PLAIN[hint]}.")
    if hint is float:
        raise UsageError(f"{where} is {_kind(value)}. Give a number.")
    return value


_PLAIN = {int: "a whole number", str: "a text", bool: "true or false"}


def _kind(value: Any) -> str:
    shown = repr(value)
    return f"{type(value).__name__} {shown if len(shown) <= 40 else shown[:37] + '...'}"

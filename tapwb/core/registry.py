"""Registries: dictionaries with good manners.

An extension point is one ``Registry``; adding an entry is one file with one decorator. A look-up that fails says what
was asked for, what it may have meant, and what there is. Entries may be given as ``"module:attribute"`` strings, which
are imported on first use, so that listing names costs no import.
"""

import difflib
import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from tapwb.core.errors import UnknownName

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    """One registered thing.

    Attributes:
        name: The name it is asked for by.
        target: The thing itself, or ``"module:attribute"``.
        summary: One line for lists and help texts.
        metadata: Whatever the registry's users need to know without loading the target.
    """

    name: str
    target: T | str
    summary: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> T:
        """The target, imported if it was given as a string."""
        if isinstance(self.target, str):
            module, _, attribute = self.target.partition(":")
            return getattr(importlib.import_module(module), attribute)  # type: ignore[no-any-return]
        return self.target


class Registry(Generic[T]):
    """A named collection of interchangeable parts.

    Args:
        kind: What the entries are, singular, for error messages: ``"quantizer"``.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry[T]] = {}

    def add(self, name: str, target: T | str, summary: str = "", **metadata: Any) -> None:
        """Register ``target`` under ``name``.

        Raises:
            ValueError: If the name is taken by another target (a programming error).
        """
        known = self._entries.get(name)
        if known is not None and known.target is not target and known.target != target:
            raise ValueError(f"{self.kind} {name!r} is registered twice")
        self._entries[name] = Entry(name, target, summary, metadata)

    def register(self, name: str, summary: str = "", **metadata: Any) -> Callable[[T], T]:
        """Decorator form of :meth:`add`."""

        def wrap(target: T) -> T:
            self.add(name, target, summary, **metadata)
            return target

        return wrap

    def entry(self, name: str) -> Entry[T]:
        """The entry called ``name``.

        Raises:
            UnknownName: With the nearest names and the full list.
        """
        try:
            return self._entries[name]
        except KeyError:
            near = difflib.get_close_matches(name, self._entries, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            known = ", ".join(self.names()) or "none"
            raise UnknownName(f"no {self.kind} {name!r}.{hint} Known: {known}.") from None

    def __getitem__(self, name: str) -> T:
        return self.entry(name).load()

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self._entries)

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._entries)

"""The dated file of accelerator cards: what each holds, how fast it reads, what it draws.

The figures are the vendors'; each carries its source, the day it was last looked up, and whether it was read there.
"""

import datetime
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tapwb.core.errors import PlanFileError, UnknownName
from tapwb.core.settings import data_dir

SCHEMA_VERSION = 1
_TEXTS = ("name", "vendor", "class", "source")
_NUMBERS = ("vram_gib", "bandwidth_gb_per_s", "tdp_w")
_CHECKED = ("read", "part")


@dataclass(frozen=True, slots=True)
class Card:
    """One accelerator card.

    Attributes:
        name: How people call it.
        vendor: ``"NVIDIA"`` or ``"AMD"``.
        market: ``"consumer"`` or ``"datacentre"``.
        vram_bytes: Memory on the card.
        bandwidth_bytes_per_s: Peak memory bandwidth.
        tdp_w: Board power.
        source: Where the figures can be read.
        retrieved: The day they were last compared with the source.
        checked: ``"read"`` if all were found there, ``"part"`` if the note says which were not.
        note: What else matters, or nothing.
    """

    name: str
    vendor: str
    market: str
    vram_bytes: int
    bandwidth_bytes_per_s: float
    tdp_w: float
    source: str
    retrieved: datetime.date
    checked: str
    note: str = ""


def load_cards(path: Path | None = None) -> tuple[Card, ...]:
    """Read and check the card file, by default ``data/devices/cards.yml``.

    Raises:
        PlanFileError: With file, card and field, if the file cannot be read or a value is missing or out of range.
    """
    path = path or data_dir() / "devices" / "cards.yml"
    document = read_yaml(path, SCHEMA_VERSION)
    entries = document.get("cards")
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise PlanFileError(f"{path.name}: 'cards' must be a list with at least one card.")
    cards = tuple(_card(entry, f"{path.name}: card {i + 1}") for i, entry in enumerate(entries))
    names = [card.name.lower() for card in cards]
    for name in names:
        if names.count(name) > 1:
            raise PlanFileError(f"{path.name}: card {name!r} is listed twice. Keep one of them.")
    return cards


def find_card(name: str, cards: Sequence[Card] | None = None) -> Card:
    """The card called ``name``, ignoring case, spaces and hyphens (``"rtx4090"`` finds ``"RTX 4090"``).

    Raises:
        UnknownName: With the nearest name and the whole list.
    """
    cards = load_cards() if cards is None else cards
    by_key = {_key(card.name): card for card in cards}
    if _key(name) in by_key:
        return by_key[_key(name)]
    near = difflib.get_close_matches(_key(name), by_key, n=1, cutoff=0.5)
    hint = f" Did you mean {by_key[near[0]].name!r}?" if near else ""
    raise UnknownName(f"no card {name!r}.{hint} Known: {', '.join(card.name for card in cards)}.")


def read_yaml(path: Path, schema_version: int) -> Mapping[str, Any]:
    """A YAML mapping of the given schema version.

    Raises:
        PlanFileError: If the file is missing, is not YAML, is no mapping or has another version.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanFileError(f"{path} cannot be read: {error.strerror}. Restore it from the repository.") from error
    except yaml.YAMLError as error:
        raise PlanFileError(f"{path} is not YAML: {str(error).splitlines()[0]}. Restore it or correct it.") from error
    if not isinstance(document, Mapping):
        raise PlanFileError(f"{path} must hold a mapping, not {type(document).__name__}.")
    found = document.get("schema_version")
    if found != schema_version:
        raise PlanFileError(f"{path} has schema_version {found!r}; this program reads {schema_version}.")
    return document


def _card(entry: object, where: str) -> Card:
    if not isinstance(entry, Mapping):
        raise PlanFileError(f"{where} must be a mapping, not {type(entry).__name__}.")
    for field in _TEXTS:
        if not isinstance(entry.get(field), str) or not entry[field].strip():
            raise PlanFileError(f"{where}: {field!r} is {entry.get(field)!r}; a text is needed.")
    where = f"{where} ({entry['name']})"
    for field in _NUMBERS:
        value = entry.get(field)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise PlanFileError(f"{where}: {field!r} is {value!r}; a number above 0 is needed.")
    retrieved = entry.get("retrieved")
    if not isinstance(retrieved, datetime.date):
        raise PlanFileError(f"{where}: 'retrieved' is {retrieved!r}; a date like 2026-11-20 is needed.")
    if entry.get("checked") not in _CHECKED:
        raise PlanFileError(f"{where}: 'checked' is {entry.get('checked')!r}; allowed are {', '.join(_CHECKED)}.")
    return Card(
        name=entry["name"],
        vendor=entry["vendor"],
        market=entry["class"],
        vram_bytes=round(entry["vram_gib"] * 2**30),
        bandwidth_bytes_per_s=entry["bandwidth_gb_per_s"] * 1e9,
        tdp_w=float(entry["tdp_w"]),
        source=entry["source"],
        retrieved=retrieved,
        checked=entry["checked"],
        note=str(entry.get("note", "")),
    )


def _key(name: str) -> str:
    return "".join(ch for ch in name.lower() if ch.isalnum())

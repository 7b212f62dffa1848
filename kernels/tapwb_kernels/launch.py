"""How a Triton kernel is launched: a rule that works everywhere, and what tuning found on particular cards.

``bench/tuned/<card>.json`` holds the winners of a tuning run on that card, and nothing else: a card without a file, a
damaged file or a shape that was not tuned gets the rule. A file says when, with which versions and from which
measurements it was made; the suite in ``kernels/bench`` writes it.
"""

import functools
import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

FORMAT = "tapwb-tuned-1"
TUNED = Path(__file__).resolve().parents[1] / "bench" / "tuned"
"""Beside the package in a checkout; absent from an installed one, where the rule is used."""

ROW_BUCKETS = (4, 16, 32, 64)
"""Numbers of rows that share a launch: up to 4 (decode), then one, two and four blocks of 16."""

_WAVES = 4
"""Programs per multiprocessor that the rule aims at: enough loads under way to hide their latency."""

_OF_NAME = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True, slots=True)
class Launch:
    """One way to launch a nested product.

    Attributes:
        block_n: Outputs of a program, a power of two from 16.
        unroll: Groups of columns whose loads are issued together.
        split_k: Programs that share the columns of one block of outputs.
        num_warps: Warps of a program: 1, 2, 4 or 8.
        num_stages: Depth of the compiler's pipeline of loads.
        unpack: Codes unpacked at once: 1, or 4 where planes have 4 bits and activations 16 (nested_linear/nibbles.py).
    """

    block_n: int = 64
    unroll: int = 2
    split_k: int = 1
    num_warps: int = 4
    num_stages: int = 3
    unpack: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{field.name} is {value!r}: give a whole number from 1")
        if self.block_n < 16 or self.block_n & (self.block_n - 1):
            raise ValueError(f"block_n is {self.block_n}: give a power of two from 16")
        if self.unpack not in (1, 4):
            raise ValueError(f"unpack is {self.unpack}: give 1 or 4")
        if self.num_warps not in (1, 2, 4, 8):
            raise ValueError(f"num_warps is {self.num_warps}: give 1, 2, 4 or 8")


def row_bucket(n_rows: int) -> int:
    """The bucket of ``ROW_BUCKETS`` that a number of rows falls into; the largest for all more."""
    return next((bucket for bucket in ROW_BUCKETS if n_rows <= bucket), ROW_BUCKETS[-1])


def rule(n_rows: int, n_out: int, n_groups: int, n_processors: int) -> Launch:
    """A launch for a shape that nobody tuned.

    Args:
        n_rows: Rows of activations.
        n_out: Rows of the weight.
        n_groups: Groups of columns of the weight.
        n_processors: Multiprocessors of the card.
    """
    block_n = 64 if n_out >= 64 else max(16, 1 << (max(1, n_out) - 1).bit_length())
    n_tiles = -(-n_out // block_n) * -(-n_rows // ROW_BUCKETS[-1])
    # A split smaller than four groups would spend its time on adding the parts up.
    split_k = max(1, min(-(-_WAVES * n_processors // max(1, n_tiles)), n_groups // 4))
    return Launch(block_n=block_n, split_k=split_k)


def shape_key(n_rows: int, n_out: int, n_cols: int, group_size: int, plane_bits: tuple[int, ...], bits: int) -> str:
    """The name of a tuned shape in its file, for example ``rows4 4096x11008 g128 4+4 at 4``."""
    planes = "+".join(map(str, plane_bits))
    return f"rows{row_bucket(n_rows)} {n_out}x{n_cols} g{group_size} {planes} at {bits}"


def file_name(card: str) -> str:
    """The file of a card: ``NVIDIA H200`` is ``nvidia-h200.json``."""
    return _OF_NAME.sub("-", card.lower()).strip("-") + ".json"


@functools.lru_cache(maxsize=8)
def tuned_launches(card: str, folder: Path = TUNED) -> dict[str, Launch]:
    """What was tuned on a card, by :func:`shape_key`; empty if there is no file.

    Args:
        card: Name that the driver gives the card.
        folder: Where the files lie.

    Raises:
        ValueError: If there is a file that cannot be used; the message says what is wrong with it.
    """
    path = folder / file_name(card)
    if not path.is_file():
        return {}
    try:
        return read_tuned(json.loads(path.read_text(encoding="utf-8")), card)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path.name} cannot be used: {error}. Tune again, or remove the file.") from error


def read_tuned(content: Any, card: str) -> dict[str, Launch]:
    """The launches of a file's content.

    Args:
        content: The parsed file.
        card: Name of the card it must be for.

    Raises:
        ValueError: If it has another format, is for another card, or an entry was not measured.
    """
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"the format is not {FORMAT}")
    if content["card"] != card:
        raise ValueError(f"it is for {content['card']}, not for {card}")
    found = {}
    for key, entry in content["entries"].items():
        if not float(entry["us"]) > 0 or not float(entry["rule_us"]) > 0:
            raise ValueError(f"{key} has no measured times")
        found[key] = Launch(**entry["launch"])
    return found


def write_tuned(
    path: Path, card: str, provenance: dict[str, Any], entries: dict[str, tuple[Launch, float, float]]
) -> None:
    """Write a card's file.

    Args:
        path: Where to.
        card: Name that the driver gives the card.
        provenance: When and with which versions it was measured.
        entries: By :func:`shape_key`: the best launch, its time and that of the rule, microseconds.

    Raises:
        ValueError: If an entry has no times.
    """
    listed = {
        key: {"launch": asdict(launch), "us": us, "rule_us": rule_us}
        for key, (launch, us, rule_us) in sorted(entries.items())
    }
    content = {"format": FORMAT, "card": card, "provenance": provenance, "entries": listed}
    read_tuned(content, card)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

"""From results to what widgets draw: bytes, fragments and display cells of tokens, and the fields of the token strip.

A tokenizer may cut inside a character, and a Thai vowel or an emoji is several characters that must stay together. So
tokens stay the data, and what is drawn are *cells*: a cell ends where a token and a grapheme end at the same byte.
"""

import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import regex


@dataclass(frozen=True, slots=True)
class TokenCell:
    """How one token is drawn.

    Attributes:
        token_bytes: Its bytes, as they join to the text.
        fragment: Its own text; bytes that are no character alone are written ``<0xE0>``.
        cell: Index of the display cell it belongs to.
        cell_text: Text of that cell.
    """

    token_bytes: bytes
    fragment: str
    cell: int
    cell_text: str


def token_cells(tokens: Sequence[bytes], special: Collection[int] = ()) -> list[TokenCell]:
    """Group tokens into display cells.

    Args:
        tokens: Bytes of each token, in order; joined they are the text.
        special: Indices of control tokens, which always stand alone.

    Returns:
        One entry per token.
    """
    out: list[TokenCell] = []
    cell, run = 0, list[bytes]()
    for index in range(len(tokens) + 1):
        at_end = index == len(tokens)
        if run and (at_end or index in special):
            made = _cells_of_run(run, cell)
            out += made
            cell, run = made[-1].cell + 1, []
        if not at_end:
            if index in special:
                text = readable(tokens[index])
                out.append(TokenCell(tokens[index], text, cell, text))
                cell += 1
            else:
                run.append(tokens[index])
    return out


def readable(raw: bytes) -> str:
    """Bytes as text; every byte that is part of no character is written ``<0xE0>``."""
    return "".join(text for text, _ in _characters(raw))


def token_bytes(tokenizer: Any, token_ids: Sequence[int]) -> list[bytes]:
    """The bytes each token stands for.

    Understands byte-level tokenizers (GPT-2 letters), sentence-piece style (``▁`` and ``<0xE0>``) and added tokens.

    Args:
        tokenizer: A Hugging Face tokenizer.
        token_ids: Ids, in order.
    """
    added = {int(index): str(token) for index, token in tokenizer.added_tokens_decoder.items()}
    byte_level = _is_byte_level(tokenizer)
    out = []
    for token_id, piece in zip(token_ids, tokenizer.convert_ids_to_tokens(list(token_ids)), strict=True):
        if token_id in added:
            out.append(added[token_id].encode())
        elif piece is None:
            out.append(f"<id {token_id}>".encode())
        elif byte_level:
            out.append(b"".join(_LETTER_BYTES.get(letter) or letter.encode() for letter in piece))
        else:
            out.append(_piece_bytes(piece))
    return out


def strip_fields(
    tokens: Sequence[bytes],
    *,
    token_ids: Sequence[int] = (),
    special: Collection[int] = (),
    scores: Sequence[float] = (),
    bits: Sequence[int] = (),
    kept: Sequence[str] = (),
    signal: str = "",
) -> dict[str, Any]:
    """Fields of the token strip widget, ready for either home and for its static form.

    Args:
        tokens: Bytes of each token.
        token_ids: Their ids.
        special: Indices of control tokens.
        scores: Importance of each token in [0, 1], if known.
        bits: Bits of each token, if planned.
        kept: For each token, why its bits are not those of its importance, or nothing.
        signal: Name of the signal behind the scores.
    """
    cells = token_cells(tokens, special)
    texts: list[str] = []
    for entry in cells:
        if entry.cell == len(texts):
            texts.append(entry.cell_text)
    return {
        "cells": texts,
        "cell_of_token": [entry.cell for entry in cells],
        "pieces": [entry.fragment for entry in cells],
        "token_ids": [int(token_id) for token_id in token_ids],
        "bytes_hex": [entry.token_bytes.hex(" ") for entry in cells],
        "special": sorted(int(index) for index in special),
        "scores": [round(float(score), 4) for score in scores],
        "bits": [int(value) for value in bits],
        "kept": list(kept),
        "signal": signal,
    }


def heat_columns(values: Sequence[Sequence[float]], limit: int) -> tuple[list[list[float]], int]:
    """Neighbouring columns averaged until at most ``limit`` are left, so that a long text stays quick to draw.

    Returns:
        The rows, and how many tokens each column stands for.
    """
    n_tokens = len(values[0]) if values else 0
    step = max(1, -(-n_tokens // limit))
    if step == 1:
        return [[float(v) for v in row] for row in values], 1
    return [[sum(row[i : i + step]) / len(row[i : i + step]) for i in range(0, n_tokens, step)] for row in values], step


def _cells_of_run(run: Sequence[bytes], first_cell: int) -> list[TokenCell]:
    raw = b"".join(run)
    ends = _grapheme_ends(raw)
    out: list[TokenCell] = []
    cell, members, place, start = first_cell, list[bytes](), 0, 0
    for index, token in enumerate(run):
        members.append(token)
        place += len(token)
        # A token without bytes that follows a finished cell is a cell of its own, so every cell has a token.
        if place in ends or place == start or index == len(run) - 1:
            text = readable(raw[start:place])
            out += [TokenCell(member, readable(member), cell, text) for member in members]
            cell, members, start = cell + 1, [], place
    return out


def _grapheme_ends(raw: bytes) -> set[int]:
    """Byte positions where a grapheme (Unicode Annex 29), or a byte that is no character, ends."""
    ends: set[int] = set()
    place, text = 0, ""
    for sign, width in [*_characters(raw), ("", -1)]:
        if width > 0:
            text += sign
            continue
        for grapheme in regex.findall(r"\X", text):
            place += len(grapheme.encode())
            ends.add(place)
        text = ""
        if width == 0:
            place += 1
            ends.add(place)
    return ends


def _characters(raw: bytes) -> list[tuple[str, int]]:
    """Characters with their width in bytes; a byte that is no character comes as ``<0xE0>`` with width 0."""
    out: list[tuple[str, int]] = []
    place = 0
    while place < len(raw):
        try:
            text = raw[place:].decode()
            out += [(sign, len(sign.encode())) for sign in text]
            break
        except UnicodeDecodeError as error:
            good = raw[place : place + error.start].decode()
            out += [(sign, len(sign.encode())) for sign in good]
            bad = raw[place + error.start : place + error.end]
            out += [(f"<0x{byte:02X}>", 0) for byte in bad]
            place += error.end
    return out


def _is_byte_level(tokenizer: Any) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return hasattr(tokenizer, "byte_decoder")
    return "ByteLevel" in repr(backend.decoder)


def _piece_bytes(piece: str) -> bytes:
    if regex.fullmatch(r"<0x[0-9A-Fa-f]{2}>", piece):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("▁", " ").encode()


def _letter_bytes() -> dict[str, bytes]:
    """Byte behind each letter of a byte-level vocabulary (Radford 2019, GPT-2's ``bytes_to_unicode``)."""
    visible = [b for b in range(256) if unicodedata.category(chr(b)) not in ("Cc", "Zs", "Cf")]
    letters = {chr(byte): bytes([byte]) for byte in visible}
    hidden = [byte for byte in range(256) if byte not in visible]
    return letters | {chr(256 + index): bytes([byte]) for index, byte in enumerate(hidden)}


_LETTER_BYTES = _letter_bytes()

"""Display cells: tokens keep their bytes, and what is drawn never tears a character apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapwb.models.tokenizer_bytes import byte_tokenizer
from tapwb.views.payloads import heat_columns, readable, strip_fields, token_bytes, token_cells

FAMILY = "👩\u200d👩\u200d👧"
HOSTILE = "<img src=x onerror=alert(1)>"


def cut(text: str, width: int) -> list[bytes]:
    """A text as tokens of ``width`` bytes."""
    raw = text.encode()
    return [raw[start : start + width] for start in range(0, len(raw), width)]


@pytest.mark.parametrize("width", [1, 2, 5])
def test_thai_vowels_stay_on_their_consonant(width: int) -> None:
    """However the bytes are cut, cells are whole graphemes: a tone mark or a SARA AM never stands alone."""
    cells = token_cells(cut("สวัสดีกำน้ำ", width))
    drawn = list(dict.fromkeys((c.cell, c.cell_text) for c in cells))
    assert "".join(text for _, text in drawn) == "สวัสดีกำน้ำ"
    if width == 1:
        assert [text for _, text in drawn] == ["ส", "วั", "ส", "ดี", "กำ", "น้ำ"]


def test_a_joined_emoji_is_one_cell_of_several_tokens() -> None:
    """A family of three joined by zero-width joiners is drawn once, with one underline for each token."""
    cells = token_cells(cut(FAMILY, 4))
    assert {c.cell for c in cells} == {0}
    assert cells[0].cell_text == FAMILY
    assert len(cells) == 5


def test_bytes_that_are_no_character_are_shown_as_bytes() -> None:
    """A lone lead byte is ``<0xE0>``, not a replacement character, even at the end of a cut-off answer."""
    cells = token_cells([b"ok", b"\xe0\xb8", b"\xff", b"!"])
    assert [c.fragment for c in cells] == ["ok", "<0xE0><0xB8>", "<0xFF>", "!"]
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(c.cell_text for c in cells)


def test_markup_stays_text() -> None:
    """A token that looks like markup is one plain cell."""
    assert token_cells([HOSTILE.encode()])[0].cell_text == HOSTILE


def test_special_tokens_stand_alone() -> None:
    """A control token never joins a grapheme, even in front of a combining mark."""
    cells = token_cells(["ก".encode(), b"<|end|>", "ิ".encode()], special=[1])
    assert [c.cell for c in cells] == [0, 1, 2]


@given(st.lists(st.binary(max_size=6), max_size=12), st.sets(st.integers(0, 11)))
def test_cells_cover_every_token_once_and_in_order(tokens: list[bytes], special: set[int]) -> None:
    """For any bytes: one entry per token, cells numbered without a gap, bytes unchanged."""
    cells = token_cells(tokens, special)
    assert [c.token_bytes for c in cells] == tokens
    numbers = [c.cell for c in cells]
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(len(set(numbers))))


@given(st.text(max_size=30))
def test_valid_text_reads_back(text: str) -> None:
    """Text that is UTF-8 comes back letter by letter."""
    raw = text.encode("utf-8", "ignore")
    assert readable(raw) == raw.decode()


def test_byte_level_tokens_join_to_the_text() -> None:
    """The letters of a byte-level vocabulary are turned back into the bytes they stand for."""
    tokenizer = byte_tokenizer()
    text = f"a สวัสดี\n{FAMILY}"
    assert b"".join(token_bytes(tokenizer, tokenizer(text).input_ids)).decode() == text


def test_strip_fields_have_one_entry_per_token() -> None:
    """Every list of the strip covers the tokens; cells are fewer."""
    fields = strip_fields(cut("ดี", 1), scores=[0.5] * 6, bits=[4] * 6, token_ids=range(6))
    assert len(fields["cell_of_token"]) == len(fields["bytes_hex"]) == len(fields["pieces"]) == 6
    assert fields["cells"] == ["ดี"]


def test_long_maps_are_averaged_to_the_screen() -> None:
    """Neighbouring columns are averaged; the last group may be shorter."""
    rows, step = heat_columns([[1.0, 3.0, 5.0, 7.0, 10.0]], limit=3)
    assert (rows, step) == ([[2.0, 6.0, 10.0]], 2)

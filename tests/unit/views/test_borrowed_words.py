"""What lower stages say in English reaches a Thai reader in Thai; names stay names."""

import dataclasses
import re

import pytest

from tapwb.core.activation_spec import parse_activations
from tapwb.core.precision import parse_precision
from tapwb.engine.notes import notes_for
from tapwb.views.borrowed_words import format_words, note_words, role_words, source_words
from tapwb.views.i18n import translator
from tapwb.views.panel_app.names import signal_names

EN, TH = translator("en"), translator("th")
THAI = re.compile("[\u0e01-\u0e5b]")


@pytest.mark.parametrize(
    "source",
    [
        "measured:wall-clock",
        "measured:trace of the run",
        "measured: tensor storage",
        "estimated:bytes-and-ops, against a timed 16-bit run",
        "estimated:3.5 times per bit, tokens by their score",
        "estimated:measured damage of the layers, tokens by their score",
    ],
)
def test_sources_are_told_in_the_readers_language(source: str) -> None:
    """Every part of a source is Thai in Thai, and English stays readable English."""
    said = source_words(source, TH)
    assert all(THAI.search(part) for part in re.split("[:,]", said)), said
    assert source_words(source, EN).startswith(source.split(":")[0])


def test_an_instrument_without_words_keeps_its_name() -> None:
    """The counter of a graphics card is called the same everywhere."""
    assert source_words("measured:nvml-total-energy", TH).endswith(": nvml-total-energy")
    assert source_words("", TH) == ""


def test_roles_and_formats_are_told_in_thai() -> None:
    """Query and head are words, MLP and Q4_1 are names."""
    assert THAI.search(role_words("head", TH))
    assert THAI.search(role_words("attention.query", TH))
    assert role_words("mlp.gate", TH).startswith("mlp.")
    assert role_words("attention.query", EN) == "attention.query"
    assert format_words("Q4_1 group 32", TH).startswith("Q4_1 ")
    assert "group" not in format_words("Q4_1 group 32", TH)
    assert format_words("Q8_0", TH) == "Q8_0"


def test_the_notes_of_the_engine_are_known_here() -> None:
    """A note that the engine words anew would be English on a Thai page; this says so."""

    @dataclasses.dataclass
    class Scores:
        signal: str = "entropy"
        causal: bool = False

    request = parse_precision("adaptive:8", levels=(4, 8, 16))
    notes = notes_for(request, Scores(), parse_activations("16"))
    assert len(notes) == 2
    for note in notes:
        assert THAI.search(note_words(note, signal_names(TH), TH)), note
    assert note_words("Something new.", {}, TH) == "Something new."

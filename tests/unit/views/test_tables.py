"""Tables escape, align and name the source of what they show."""

import pytest

from tapwb.core.reading import Reading, Unavailable
from tapwb.models.anatomy import anatomy_of_model
from tapwb.models.published_shapes import PUBLISHED_SHAPES
from tapwb.models.tiny import tiny_model
from tapwb.plan.capacity import fit_rows
from tapwb.views import tables
from tapwb.views.charts import bits_histogram, layer_token_map
from tapwb.views.i18n import translator

EN, TH = translator("en"), translator("th")
ANATOMY = PUBLISHED_SHAPES[0].anatomy()


def test_cells_are_escaped() -> None:
    """A hostile name is text in heading, caption and cell."""
    page = tables.Table(["<b>"], [["<img onerror=x>"]], "<i>").to_html()
    assert "<b>" not in page
    assert "<img" not in page
    assert "<i>" not in page


def test_every_precision_has_a_source() -> None:
    """Counted bytes say measured, computed ones say estimated."""
    table = tables.bytes_table(ANATOMY, 5.5, Reading(1e9, "byte", "measured:tensor storage"), EN)
    sources = [row[3] for row in table.rows]
    assert all(source.startswith(("measured", "estimated")) for source in sources)
    assert sum(source.startswith("measured") for source in sources) == 1


def test_fewer_bits_never_weigh_more() -> None:
    """Shares of the 16-bit weights fall from row to row."""
    rows = tables.bytes_table(ANATOMY, 5.5, None, EN).rows[:5]
    shares = [float(row[2].rstrip("×")) for row in rows]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1.0


def test_the_numbers_of_a_tied_head_are_counted_once() -> None:
    """The shares of all parts add up to one model."""
    tied = anatomy_of_model(tiny_model("llama").model)
    rows = tables.parts_table(tied, EN).rows
    assert {row[0]: row[3] for row in rows}["head"] == "the token embedding's"
    assert sum(float(row[4].rstrip("%")) for row in rows if row[4]) == pytest.approx(100, abs=0.5)


def test_fit_table_has_one_line_per_card() -> None:
    """Each card once, with a sign and the longest text for each format."""
    rows = fit_rows(ANATOMY, context_tokens=777, formats=("bf16", "tap4"))
    table = tables.fit_table(rows, ("bf16", "tap4"), TH)
    assert len(table.rows) == len(rows) // 2
    assert all(len(row) == len(table.columns) for row in table.rows)


def test_missing_readings_say_why() -> None:
    """Nothing is shown as zero that was not measured."""
    assert tables.as_text(Unavailable("no counter")) == ("–", "no counter")
    assert tables.as_text({"unavailable": "no counter"}) == ("–", "no counter")
    assert tables.as_text(Reading(1234.5, "token/s", "measured:clock")) == ("1,234 token/s", "measured:clock")


def test_figures_have_a_value_for_every_square_and_bar() -> None:
    """Charts carry what they were given, in order."""
    words = {"title": "t", "token": "token", "layer": "layer", "value": "v"}
    heat = layer_token_map([[1.0, 2.0, 3.0]] * 5, ["a", "b", "c"], words, step=4, dark=True)
    assert heat["data"][0]["x"] == [0, 4, 8]
    assert len(heat["data"][0]["z"]) == 5
    bars = bits_histogram({8: 1, 4: 6}, {"title": "t", "bits": "bits", "tokens": "n"})
    assert bars["data"][0]["y"] == [6, 1]

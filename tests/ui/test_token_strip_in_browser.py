"""The strip's script on its own: what it draws from pieces and from cells, and how fast."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tapwb.views.payloads import strip_fields
from tapwb_widgets.schema import STATIC, TOKEN_STRIP, defaults
from tapwb_widgets.static_html import static_html
from tapwb_widgets.styles import widget_css

pytestmark = pytest.mark.ui

#: The least a host must offer: what anywidget promises and Panel imitates.
HOST = """
const values = VALUES; const listeners = {};
window.model = {
  get: (name) => values[name],
  set: (name, value) => { values[name] = value; (listeners[`change:${name}`] || []).forEach((call) => call()); },
  save_changes: () => {},
  on: (name, call) => { (listeners[name] ||= []).push(call); },
  off: (name, call) => { listeners[name] = (listeners[name] || []).filter((other) => other !== call); },
};
const url = URL.createObjectURL(new Blob([SCRIPT], { type: "text/javascript" }));
window.drawn = import(url).then((module) => module.default.render({ model: window.model, el: document.body }));
"""


def tokens_of(text: str, width: int) -> list[bytes]:
    """A text as tokens of ``width`` bytes."""
    raw = text.encode()
    return [raw[start : start + width] for start in range(0, len(raw), width)]


@pytest.fixture
def draw(chromium: Any, tmp_path: Path) -> Any:
    """Draws a strip from fields on an empty page and returns the page."""
    pages = []

    def go(**fields: Any) -> Any:
        page = chromium.new_page(viewport={"width": 900, "height": 500})
        pages.append(page)
        page.set_content(f"<!doctype html><style>{widget_css('token_strip')}</style><body></body>")
        values = json.dumps({**defaults(TOKEN_STRIP), **fields})
        script = json.dumps((STATIC / "token_strip.js").read_text())
        page.evaluate(HOST.replace("VALUES", values).replace("SCRIPT", script))
        page.evaluate("() => window.drawn.then(() => true)")
        return page

    yield go
    for page in pages:
        page.close()


@pytest.mark.parametrize("text", ["plain words\nand lines", "สวัสดี กำน้ำ", "👩\u200d👩\u200d👧 ok\u202e", "<b>&amp;</b>"])
@pytest.mark.parametrize("width", [1, 3, 7])
def test_script_and_static_form_draw_the_same_text(draw: Any, text: str, width: int) -> None:
    """A reader of a report sees the same cells and numbers as a user of the live strip."""
    tokens = tokens_of(text, width)
    fields = strip_fields(tokens, scores=[0.25] * len(tokens), bits=[5] * len(tokens))
    live = draw(**fields)
    seen = [cell.text_content() for cell in live.locator(".tapwb-cell").all()]
    classes = [cell.get_attribute("class").split()[:2] for cell in live.locator(".tapwb-cell").all()]
    live.set_content(static_html(fields))
    assert seen == [cell.text_content() for cell in live.locator(".tapwb-cell").all()]
    assert classes == [cell.get_attribute("class").split()[:2] for cell in live.locator(".tapwb-cell").all()]


def test_the_browser_cuts_the_same_cells_as_python(draw: Any) -> None:
    """Pieces without cells are grouped by the browser's own segmenter, with the same result."""
    pieces = ["ก", "ำ", " ", "👩", "\u200d", "👧", "x"]
    page = draw(pieces=pieces)
    own = [cell.text_content() for cell in page.locator(".tapwb-text").all()]
    page = draw(**strip_fields([piece.encode() for piece in pieces]))
    assert own == [cell.text_content() for cell in page.locator(".tapwb-text").all()] == ["กำ", "␣", "👩\u200d👧", "x"]


def test_words_and_lines_are_selected_as_one(draw: Any) -> None:
    """By word, a click takes the whole Thai word, found without spaces; by line, the line."""
    tokens = [sign.encode() for sign in "ฉันชอบ\nx"]
    page = draw(**strip_fields(tokens), granularity="word")
    page.get_by_role("option").first.click()
    assert page.evaluate("window.model.get('span')") == [0, 2]
    page.evaluate("window.model.set('granularity', 'line')")
    page.get_by_role("option").first.click()
    assert page.evaluate("window.model.get('span')") == [0, 6]


def test_every_token_is_named_for_screen_readers(draw: Any) -> None:
    """Options carry token, importance and bits as words; the list says which one is active."""
    page = draw(**strip_fields([b"a", b" b"], scores=[0.1, 0.9], bits=[4, 8], token_ids=[7, 9], signal="entropy"))
    option = page.get_by_role("option").nth(1)
    assert option.get_attribute("aria-label") == (
        "token 1: ␣b, id: 9, bytes: 20 62, importance (entropy): 0.90, rank: 1 / 2, bits: 8"
    )
    page.get_by_role("listbox").focus()
    page.keyboard.press("End")
    assert page.get_by_role("listbox").get_attribute("aria-activedescendant") == option.get_attribute("id")


@pytest.mark.parametrize(("n_tokens", "limit_s"), [(512, 0.3), (4096, 1.0)])
def test_new_bits_are_drawn_quickly(draw: Any, n_tokens: int, limit_s: float) -> None:
    """Changing all bits and scores redraws within the limit (best of three, layout included)."""
    page = draw(**strip_fields([b" word"] * n_tokens, scores=[0.5] * n_tokens, bits=[4] * n_tokens))
    best_s = 60.0
    for bits in (5, 6, 8):
        started_s = time.monotonic()
        page.evaluate(
            "([n, bits]) => { model.set('bits', Array(n).fill(bits)); model.set('scores', Array(n).fill(bits / 10));"
            " return Promise.resolve().then(() => document.body.offsetHeight); }",
            [n_tokens, bits],
        )
        best_s = min(best_s, time.monotonic() - started_s)
        assert page.locator(".tapwb-bits").last.text_content() == str(bits)
    assert best_s < limit_s

"""One field table, three forms: notebook class, dashboard class, static HTML; and colours that everybody can read."""

import re

import pytest
import torch

import tapwb_widgets.token_strip as notebook
import tapwb_widgets.token_strip_panel as dashboard
from tapwb.plan.precision_plan import Floor, PrecisionPlan
from tapwb.views.i18n import translator
from tapwb.views.panel_app.names import kept_reasons
from tapwb_widgets.fonts import FAMILY, font_face_css
from tapwb_widgets.palette import contrast, luminance, ramp, step_of
from tapwb_widgets.schema import ANSWER_DIFF, DATA_TABLE, RESERVED, STATIC, TOKEN_STRIP, defaults
from tapwb_widgets.static_html import static_diff_html, static_html, static_table_html, visible

WIDGETS = [
    ("TokenStrip", TOKEN_STRIP, "token_strip"),
    ("AnswerDiff", ANSWER_DIFF, "answer_diff"),
    ("DataTable", DATA_TABLE, "data_table"),
]
HOSTILE = '<img src=x onerror="alert(1)">'
#: Brettel, Viénot, Mollon 1997, in the linear form of Viénot 1999: what a protanope and a deuteranope see.
BLINDNESS = {
    "protanope": ((0.11238, 0.88762, 0.0), (0.11238, 0.88762, 0.0), (0.00401, -0.00401, 1.0)),
    "deuteranope": ((0.29275, 0.70725, 0.0), (0.29275, 0.70725, 0.0), (-0.02234, 0.02234, 1.0)),
}


@pytest.mark.parametrize(("name", "fields", "module"), WIDGETS)
def test_both_homes_have_the_fields_of_the_table(name: str, fields: tuple, module: str) -> None:
    """Names, defaults and the ES module are the same in the notebook and in the dashboard."""
    traits, params = getattr(notebook, name), getattr(dashboard, name)
    for field in fields:
        assert traits.class_traits()[field.name].default_value in (field.default, None) or field.kind in (list, dict)
        assert params.param[field.name].default == field.default
        assert field.name not in RESERVED
    assert params._esm == STATIC / f"{module}.js"
    assert notebook.STATIC / f"{module}.js" == STATIC / f"{module}.js"


@pytest.mark.parametrize("module", ["token_strip", "answer_diff", "data_table"])
def test_scripts_never_write_markup_nor_ask_the_network(module: str) -> None:
    """No innerHTML, no import, no address in the ES modules and their style sheets."""
    text = (STATIC / f"{module}.js").read_text() + (STATIC / f"{module}.css").read_text()
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "import ", "http:", "https:", "eval("):
        assert forbidden not in text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_on_every_step(scheme: str) -> None:
    """Contrast of at least 4.5 (WCAG 2.2, level AA) on each of the 32 tints."""
    assert min(contrast(background, text) for background, text in ramp(scheme)) >= 4.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("blindness", BLINDNESS)
def test_steps_differ_in_lightness_for_colour_blind_readers(scheme: str, blindness: str) -> None:
    """Lightness falls (light page) or rises (dark page) with importance, also as a colour-blind reader sees it."""
    matrix = BLINDNESS[blindness]
    seen = []
    for background, _ in ramp(scheme)[::4]:
        linear = [(int(background[i : i + 2], 16) / 255) ** 2.2 for i in (1, 3, 5)]
        red, green, blue = (max(0.0, sum(m * c for m, c in zip(row, linear, strict=True))) for row in matrix)
        seen.append(0.2126 * red + 0.7152 * green + 0.0722 * blue)
    assert seen == sorted(seen, reverse=scheme == "light")
    assert luminance(ramp(scheme)[0][0]) != luminance(ramp(scheme)[-1][0])


def test_gamma_brings_out_small_scores() -> None:
    """Below 1 it lifts small scores; the ends stay."""
    assert (step_of(0.0), step_of(1.0), step_of(-3.0), step_of(7.0)) == (0, 31, 0, 31)
    assert step_of(0.1, gamma=0.5) > step_of(0.1)


def test_static_html_escapes_everything_it_is_given() -> None:
    """A hostile token, signal, label and state appear as text in all static forms."""
    strip = static_html({"pieces": [HOSTILE, "b"], "scores": [0.1, 0.9], "bits": [4, 8], "labels": {"Tokens": HOSTILE}})
    diff = static_diff_html(
        {"candidate": f"a{HOSTILE}", "baseline": "ab", "candidate_title": HOSTILE, "baseline_title": "x"}
    )
    table = static_table_html({"columns": [HOSTILE], "rows": [[HOSTILE]], "label": HOSTILE})
    nothing = static_table_html({"columns": ["a"], "empty": HOSTILE})
    for page in (strip, diff, table, nothing):
        assert "<img" not in page
        assert "&lt;img" in page
        assert "<script" not in page
        assert not re.search(r"https?://", page)


def test_static_html_shows_bits_as_numbers_and_blanks_as_signs() -> None:
    """Bits are readable without colour, and a line end is seen."""
    page = static_html({"pieces": ["a b", "\n"], "bits": [5, 8]})
    assert '<sub class="tapwb-bits">5</sub>' in page
    assert "a␣b" in page
    assert "↵" in page


def test_invisible_and_reordering_characters_are_named() -> None:
    """A right-to-left override could disguise a token; it is spelled out."""
    assert visible("\u202eevil\u200b") == "<U+202E>evil<U+200B>"


def test_notebook_bundle_carries_static_html() -> None:
    """Nbconvert and offline readers find the strip without a kernel."""
    data, _ = notebook.TokenStrip(pieces=["x"], scores=[1.0])._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert 'class="tapwb-cell' in data["text/html"]


def test_the_thai_font_travels_with_the_widgets() -> None:
    """Two small files with their licence, written into the page."""
    files = sorted((STATIC / "fonts").glob("*.woff2"))
    assert len(files) == 2
    assert sum(file.stat().st_size for file in files) < 100_000
    assert "SIL Open Font License" in (STATIC / "fonts" / "OFL.txt").read_text()
    assert font_face_css().count(f"font-family:'{FAMILY}'") == 2


def test_defaults_are_not_shared() -> None:
    """Two strips never write into the same list."""
    assert defaults(TOKEN_STRIP)["bits"] is not defaults(TOKEN_STRIP)["bits"]


def test_kept_bits_are_marked_in_the_static_form() -> None:
    """A corner, the reason in the tooltip, and a legend; without a reason none of them."""
    page = static_html({"pieces": ["a", "b"], "bits": [8, 4], "kept": ["kept at 8 bits: first token", ""]})
    assert page.count('<span class="tapwb-cell tapwb-kept"') == 1
    assert 'title="token 0: a, bits: 8, kept at 8 bits: first token"' in page
    assert "bits kept, whatever the importance" in page
    assert "whatever the importance" not in static_html({"pieces": ["a"], "bits": [8], "kept": [""]})


def test_a_floor_below_the_bits_keeps_nothing() -> None:
    """Only a token that stands on its floor, or was set by hand, is said to be kept."""
    plan = PrecisionPlan(
        torch.tensor([[8, 6, 8, 4]], dtype=torch.uint8),
        (4, 6, 8),
        "adaptive",
        floors=(Floor("first token", (0,), 8), Floor("first tokens", (1, 2), 6)),
        overrides=(3,),
    )
    assert kept_reasons(plan, translator("en")) == [
        "kept at 8 bits: first token", "kept at 6 bits: first tokens", "", "kept at 4 bits: set by hand",
    ]  # fmt: skip

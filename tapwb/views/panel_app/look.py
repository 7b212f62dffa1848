"""Colours, type and small building blocks that every page shares."""

import html
from collections.abc import Callable
from typing import Any, BinaryIO

import panel as pn
import panel_material_ui as pmui

from tapwb.views.panel_app.plain_text import PlainText
from tapwb.views.tables import TABLE_CSS, Table
from tapwb_widgets.fonts import FAMILY, font_face_css

_FONTS = f"'{FAMILY}', system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', Arial, sans-serif"

#: One accent in two strengths; both keep a contrast of 4.5 with their page.
THEME: dict[str, dict[str, Any]] = {
    "light": {
        "palette": {
            "primary": {"main": "#0b57b0"},
            "text": {"secondary": "#5a5e66"},
            "background": {"default": "#f6f7f9", "paper": "#ffffff"},
        }
    },
    "dark": {
        "palette": {
            "primary": {"main": "#8ec5ff"},
            "text": {"secondary": "#b0b5bd"},
            "background": {"default": "#16181d", "paper": "#1f2228"},
        }
    },
}
for _scheme, _bar in ((THEME["light"], "#0b57b0"), (THEME["dark"], "#143a66")):
    _surface = {"backgroundColor": _bar, "backgroundImage": "none", "color": "#ffffff"}
    _scheme["components"] = {"MuiAppBar": {"styleOverrides": {"root": _surface}}}
    _scheme["typography"] = {"fontFamily": _FONTS, "button": {"textTransform": "none"}}

#: Style of the whole document: the fonts must be declared here, a shadow root ignores them.
PAGE_CSS = f"""{font_face_css()}
body {{ font-family: {_FONTS}; }}
/* The sign of waiting leaves what is drawn already readable and within reach of the mouse. */
#loader:not(.error) {{ background: none; pointer-events: none; }}
"""


#: The signs for more and less of a number field, which would be black on a dark page.
STEPPER = {"& .MuiIconButton-root, & .MuiButtonBase-root": {"color": "text.secondary"}}


def text(words: str, *, tone: str = "", role: str = "", dark: bool = False, **params: Any) -> PlainText:
    """A paragraph of plain text."""
    return PlainText(
        text=words,
        tone=tone,
        role=role,
        css_classes=["dark"] if dark else [],
        **{"sizing_mode": "stretch_width", "margin": (4, 10), **params},
    )


def table_pane(table: Table | None = None, *, dark: bool = False) -> pn.pane.HTML:
    """A pane for tables; set ``object`` to ``table.to_html()`` to change it."""
    content = "" if table is None else table.to_html(dark=dark)
    return pn.pane.HTML(content, stylesheets=[TABLE_CSS], sizing_mode="stretch_width", margin=(4, 10))


def section(title: str, *children: Any, level: int = 2) -> pmui.Column:
    """A titled part of a page."""
    # The title is a constant of the program, never a user's text: this pane parses markup.
    heading = pn.pane.HTML(
        f"<h{level}>{html.escape(title)}</h{level}>",
        stylesheets=[f"h{level} {{ font-size: 17px; font-weight: 600; margin: 6px 0 2px; }}"],
        sizing_mode="stretch_width",
        margin=(8, 10, 0, 10),
    )
    return pmui.Column(heading, *children, sizing_mode="stretch_width")


def empty(words: str, *, dark: bool) -> pmui.Paper:
    """What stands where there is nothing to see yet: a sentence that says what to do."""
    return pmui.Paper(
        text(words, tone="quiet", role="note", dark=dark, margin=(18, 16)),
        variant="outlined",
        margin=10,
        sizing_mode="stretch_width",
    )


def download(label: str, filename: str, content: Callable[[], BinaryIO]) -> pmui.FileDownload:
    """A button that hands a file to the browser; ``content`` is asked when it is pressed."""
    button = pmui.FileDownload(
        callback=content, filename=filename, label=label, icon="download", size="small", margin=(6, 6)
    )
    # Set afterwards: the constructor of panel-material-ui 0.16 sets older names of both as well, and warns of them.
    button.param.update(color="primary", variant="outlined")
    return button

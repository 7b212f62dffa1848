"""Style sheets of the widgets as text, ready for a shadow root, a notebook cell or a report."""

import functools

from tapwb_widgets.fonts import font_face_css
from tapwb_widgets.palette import ramp_css
from tapwb_widgets.schema import STATIC


@functools.cache
def widget_css(name: str, *, with_font: bool = True) -> str:
    """The style sheet of one widget.

    Args:
        name: ``"token_strip"``, ``"answer_diff"`` or ``"data_table"``.
        with_font: Whether to write the Thai font into it. A shadow root ignores ``@font-face``, so the dashboard
            declares the font once for the whole page instead.
    """
    own = (STATIC / f"{name}.css").read_text(encoding="utf-8")
    tint = ramp_css() if name == "token_strip" else ""
    return "\n".join(part for part in (font_face_css() if with_font else "", own, tint) if part)

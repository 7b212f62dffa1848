"""The Thai font that travels with the widgets.

A machine without a Thai font shows empty boxes. Noto Sans Thai (SIL Open Font License 1.1, text beside the files) is
small enough to be written into the page itself, so that neither a report nor a screenshot asks the network for it.
"""

import base64
import functools

from tapwb_widgets.schema import STATIC

FAMILY = "TAPWB Thai"
_FILES = {400: "noto-sans-thai-400.woff2", 600: "noto-sans-thai-600.woff2"}
# Thai only, so that the family can stand first in every list: behind a system font, Chromium draws that font's empty
# boxes instead of looking further.
_RANGE = "U+0E01-0E5B"


@functools.cache
def font_face_css() -> str:
    """``@font-face`` rules with the font files inside; about 30 kB."""
    return "\n".join(_face(weight, name) for weight, name in _FILES.items())


def _face(weight: int, name: str) -> str:
    data = base64.b64encode((STATIC / "fonts" / name).read_bytes()).decode("ascii")
    return (
        f"@font-face{{font-family:'{FAMILY}';font-style:normal;font-weight:{weight};font-display:block;"
        f"src:url(data:font/woff2;base64,{data}) format('woff2');unicode-range:{_RANGE}}}"
    )

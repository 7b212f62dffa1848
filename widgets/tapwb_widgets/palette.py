"""The tint of importance: a ramp that colour-blind readers see, with text that stays readable on every step.

The colours are those of cividis (Nuñez, Anderton, Renslow, "Optimizing colormaps with consideration for color vision
deficiency", PLoS ONE 13(7), 2018), whose lightness rises evenly for every kind of colour vision. The page's own
background stands for "not important": a light page runs from near white to dark blue, a dark page from near black to
yellow. Text is black or white, whichever has the higher contrast (WCAG 2.2, 1.4.3).
"""

N_STEPS = 32

_CIVIDIS = (
    "#00224e",
    "#123570",
    "#3b496c",
    "#575d6d",
    "#707173",
    "#8a8678",
    "#a59c74",
    "#c3b369",
    "#e1cc55",
    "#fee838",
)
_LIGHT = ("#fffdf0", "#fbeea0", *reversed(_CIVIDIS[:9]))
_DARK = ("#16181d", *_CIVIDIS)


def luminance(colour: str) -> float:
    """Relative luminance of ``#rrggbb`` in [0, 1] (WCAG 2.2)."""
    channels = [value / 255 for value in _rgb(colour)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2.2)."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def ramp(scheme: str) -> list[tuple[str, str]]:
    """Background and text colour of every step, from unimportant to important.

    Args:
        scheme: ``"light"`` or ``"dark"``.
    """
    stops = {"light": _LIGHT, "dark": _DARK}[scheme]
    backgrounds = sorted(
        (_between(stops, step / (N_STEPS - 1)) for step in range(N_STEPS)),
        key=luminance,
        reverse=scheme == "light",
    )
    return [(colour, max("#000000", "#ffffff", key=lambda text: contrast(text, colour))) for colour in backgrounds]


def step_of(score: float, gamma: float = 1.0) -> int:
    """The step that tints ``score`` in [0, 1]."""
    clipped = min(1.0, max(0.0, score))
    # Half up, as JavaScript rounds; Python's round would send .5 to the even neighbour.
    return int((N_STEPS - 1) * clipped**gamma + 0.5)


def ramp_css() -> str:
    """Style rules ``.tapwb-i0`` ... for both schemes; ``auto`` follows the system."""
    light, dark = _rules("light", ""), _rules("dark", '[data-scheme="dark"] ')
    auto = _rules("dark", '[data-scheme="auto"] ')
    return f"{light}\n{dark}\n@media (prefers-color-scheme: dark) {{\n{auto}\n}}\n"


def _rules(scheme: str, prefix: str) -> str:
    return "\n".join(
        f"{prefix}.tapwb-i{step}{{background:{background};color:{text}}}"
        for step, (background, text) in enumerate(ramp(scheme))
    )


def _between(stops: tuple[str, ...], position: float) -> str:
    place = position * (len(stops) - 1)
    left = min(int(place), len(stops) - 2)
    share = place - left
    mixed = (a + (b - a) * share for a, b in zip(_rgb(stops[left]), _rgb(stops[left + 1]), strict=True))
    return "#" + "".join(f"{round(value):02x}" for value in mixed)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)

"""Figures of the dashboard as plain plotly JSON: no plotting library is imported, the browser draws."""

from collections.abc import Sequence
from typing import Any

#: Cividis (Nuñez et al. 2018): its lightness rises evenly for every kind of colour vision.
CIVIDIS = [
    [0.0, "#00224e"], [0.125, "#123570"], [0.25, "#3b496c"], [0.375, "#575d6d"], [0.5, "#707173"],
    [0.625, "#8a8678"], [0.75, "#a59c74"], [0.875, "#c3b369"], [1.0, "#fee838"],
]  # fmt: skip
_INK = {"light": "#1a1c20", "dark": "#e8eaed"}
_GRID = {"light": "#d4d7dd", "dark": "#454b55"}


def layer_token_map(
    values: Sequence[Sequence[float]],
    tokens: Sequence[str],
    words: dict[str, str],
    *,
    step: int = 1,
    dark: bool = False,
) -> dict[str, Any]:
    """One square per layer and token.

    Args:
        values: One row per layer, one column per token (or per ``step`` tokens).
        tokens: Text under each column.
        words: Titles in the reader's language: ``title``, ``token``, ``layer``, ``value``.
        step: Tokens per column.
        dark: Whether the page is dark.
    """
    columns = [index * step for index in range(len(values[0]))]
    heat = {
        "type": "heatmap",
        "z": [[round(value, 4) for value in row] for row in values],
        "x": columns,
        "y": list(range(len(values))),
        "customdata": [list(tokens)] * len(values),
        "colorscale": CIVIDIS,
        "colorbar": {"title": {"text": words["value"], "side": "right"}, "thickness": 14},
        "hovertemplate": (
            f"{words['token']} %{{x}}: %{{customdata}}<br>{words['layer']} %{{y}}<br>"
            f"{words['value']}: %{{z:.2f}}<extra></extra>"
        ),
    }
    layout = figure_layout(words["title"], words["token"], words["layer"], dark)
    return {"data": [heat], "layout": layout}


def bits_histogram(counts: dict[int, int], words: dict[str, str], *, dark: bool = False) -> dict[str, Any]:
    """How many tokens get each bit-width.

    Args:
        counts: Tokens by bits.
        words: ``title``, ``bits``, ``tokens``.
        dark: Whether the page is dark.
    """
    bars = {
        "type": "bar",
        "x": [f"{bits} {words['bits']}" for bits in sorted(counts)],
        "y": [counts[bits] for bits in sorted(counts)],
        "text": [str(counts[bits]) for bits in sorted(counts)],
        "textposition": "auto",
        "marker": {"color": "#8ec5ff" if dark else "#0b57b0"},
    }
    return {"data": [bars], "layout": figure_layout(words["title"], "", words["tokens"], dark, height=240)}


def figure_layout(title: str, x: str, y: str, dark: bool, height: int = 380) -> dict[str, Any]:
    """Colours, type and margins that all figures of the dashboard share."""
    scheme = "dark" if dark else "light"
    axis = {"gridcolor": _GRID[scheme], "zeroline": False, "automargin": True}
    return {
        "title": {"text": title, "font": {"size": 15}, "x": 0, "xanchor": "left", "xref": "container"},
        "xaxis": {"title": {"text": x}, **axis},
        "yaxis": {"title": {"text": y}, **axis},
        "font": {"color": _INK[scheme], "size": 13, "family": "'TAPWB Thai', system-ui, Roboto, Arial, sans-serif"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"t": 44, "l": 10, "r": 10, "b": 10},
        "height": height,
        "autosize": True,
    }

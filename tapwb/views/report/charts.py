"""Figures of reports and notebooks, as plotly figures in plain JSON: drawing them is the reader's or the report's work.

Colours are the colour-blind safe set of Okabe and Ito; every series also has its own symbol or text.
"""

from collections.abc import Mapping, Sequence
from typing import Any

_INK, _BLUE, _ORANGE, _GREEN, _GREY = "#222222", "#0072B2", "#D55E00", "#009E73", "#999999"
_STYLE = {
    "uniform": (_GREY, "circle"),
    "adaptive": (_BLUE, "diamond"),
    "oracle": (_GREEN, "star"),
    "random": (_ORANGE, "x"),
    "shuffled": (_ORANGE, "cross"),
}


def kind_of(precision: str) -> str:
    """``"uniform"`` for a plain number of bits, else the word before the colon."""
    return "uniform" if precision.isdigit() else precision.partition(":")[0]


def quality_chart(
    results: Sequence[Mapping[str, Any]], quantity: str = "kl_mean", title: str = "KL divergence, nats"
) -> dict[str, Any]:
    """Damage against mean bits, one point a precision, controls in their own colours and symbols.

    Args:
        results: Rows of an evaluation: ``precision``, ``mean_bits`` and ``quantity``; others are left out.
        quantity: Key of the value.
        title: What it is, with its unit.
    """
    rows = [row for row in results if isinstance(row[quantity], int | float) and str(row["precision"]) != "16"]
    traces: list[dict[str, Any]] = []
    for kind in dict.fromkeys(kind_of(str(row["precision"])) for row in rows):
        points = sorted((r for r in rows if kind_of(str(r["precision"])) == kind), key=lambda r: r["mean_bits"])
        colour, symbol = _STYLE.get(kind, (_INK, "square"))
        traces.append(
            {
                "type": "scatter",
                "name": kind,
                "mode": "lines+markers" if kind == "uniform" else "markers",
                "x": [row["mean_bits"] for row in points],
                "y": [row[quantity] for row in points],
                "text": [str(row["precision"]) for row in points],
                "hovertemplate": "%{text}<br>%{x:.2f} bits<br>%{y:.4g}<extra></extra>",
                "line": {"color": colour, "dash": "dot"},
                "marker": {"color": colour, "symbol": symbol, "size": 12},
            }
        )
    layout = figure_layout("What each bit-width costs, beside its controls", "mean bits of the weights", title)
    layout["yaxis"]["type"] = "log"
    return {"data": traces, "layout": layout}


def correlation_chart(correlation: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Rank correlation of signals as a labelled square map, zero in white."""
    names = list(correlation)
    values = [[1.0 if a == b else correlation[a][b] for b in names] for a in names]
    heat = {
        "type": "heatmap",
        "x": names,
        "y": names,
        "z": values,
        "zmin": -1,
        "zmax": 1,
        "colorscale": [[0, "#B35806"], [0.5, "#F7F7F7"], [1, "#542788"]],
        "text": [[f"{value:.2f}" for value in row] for row in values],
        "texttemplate": "%{text}",
        "colorbar": {"title": {"text": "rank correlation"}},
    }
    layout = figure_layout("How far the signals agree", "", "")
    layout["yaxis"]["autorange"] = "reversed"
    return {"data": [heat], "layout": layout}


def histogram_chart(histogram: Mapping[str, int]) -> dict[str, Any]:
    """How many tokens ran at each bit-width."""
    bars = {
        "type": "bar",
        "x": [f"{bits} bits" for bits in histogram],
        "y": list(histogram.values()),
        "marker": {"color": _BLUE},
    }
    return {"data": [bars], "layout": figure_layout("Tokens at each bit-width", "", "tokens")}


def figure_layout(title: str, x: str, y: str) -> dict[str, Any]:
    """Paper, axes and title that the figures of reports share.

    Args:
        title: Above the figure.
        x: Under the horizontal axis, with its unit.
        y: Beside the vertical axis, with its unit.
    """
    return {
        "title": {"text": title},
        "xaxis": {"title": {"text": x}, "automargin": True},
        "yaxis": {"title": {"text": y}, "automargin": True},
        "template": None,
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "font": {"color": _INK, "size": 14},
        "height": 420,
        "margin": {"t": 60},
    }

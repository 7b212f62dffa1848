"""Figures of long documents: seconds against length with the fitted curves, perplexity against position.

Plain plotly JSON, as in :mod:`.study_charts`. Beyond the measured lengths a curve is dashed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tapwb.views.report.charts import figure_layout

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#332288")
_SYMBOLS = ("circle", "diamond", "square", "x", "triangle-up", "star")


def growth_chart(rows: Sequence[Mapping[str, Any]], curves: Mapping[str, Any], title: str) -> dict[str, Any]:
    """Measured times as points, fitted curves as lines, both on logarithmic axes.

    Args:
        rows: As in ``LongdocTable.to_json()["rows"]``; only readings are drawn.
        curves: As in ``LongdocTable.to_json()["curves"]``.
        title: Above the figure.
    """
    traces: list[dict[str, Any]] = []
    for index, name in enumerate(curves):
        colour = _COLOURS[index % len(_COLOURS)]
        measured = [row for row in rows if row["kind"] == "reading" and row["model"] == name and "seconds" in row]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": [row["n_tokens"] for row in measured],
                "y": [row["seconds"] for row in measured],
                "marker": {"color": colour, "symbol": _SYMBOLS[index % len(_SYMBOLS)], "size": 9},
            }
        )
        points = curves[name].get("points", [])
        for is_measured, dash, note in ((True, "solid", "fitted"), (False, "dash", "extrapolated")):
            part = [point for point in points if point["is_measured"] == is_measured]
            if not is_measured and part:  # begins where the solid part ends
                part = [*[point for point in points if point["is_measured"]][-1:], *part]
            if part:
                traces.append(_line(f"{name}, {note}", part, colour, dash))
    layout = figure_layout(title, "tokens of the document", "seconds to read it")
    layout["xaxis"]["type"] = layout["yaxis"]["type"] = "log"
    return {"data": traces, "layout": layout}


def position_chart(rows: Sequence[Mapping[str, Any]], title: str) -> dict[str, Any]:
    """Perplexity of each stretch of the document, at its end.

    Args:
        rows: As in ``LongdocTable.to_json()["rows"]``; only stretches are drawn.
        title: Above the figure.
    """
    stretches = [row for row in rows if row["kind"] == "position"]
    traces = []
    for index, name in enumerate(dict.fromkeys(row["model"] for row in stretches)):
        mine = [row for row in stretches if row["model"] == name]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": name,
                "x": [row["to_token"] for row in mine],
                "y": [row["perplexity"] for row in mine],
                "line": {"color": _COLOURS[index % len(_COLOURS)]},
                "marker": {"symbol": _SYMBOLS[index % len(_SYMBOLS)], "size": 9},
            }
        )
    layout = figure_layout(title, "position in the document, tokens", "perplexity of the stretch that ends there")
    layout["xaxis"]["type"] = layout["yaxis"]["type"] = "log"
    return {"data": traces, "layout": layout}


def _line(name: str, points: Sequence[Mapping[str, Any]], colour: str, dash: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [point["n_tokens"] for point in points],
        "y": [point["seconds"] for point in points],
        "line": {"color": colour, "dash": dash},
    }

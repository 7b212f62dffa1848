"""Figures of the studies: quality against mean bits with controls, gains with intervals, caches, parts.

Plain plotly JSON, as in :mod:`.charts`. Every family has its own symbol beside its colour (Okabe and Ito's set).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tapwb.views.report.charts import figure_layout

_FAMILIES = {
    "uniform": ("#999999", "circle"),
    "adaptive": ("#0072B2", "diamond"),
    "layers": ("#CC79A7", "square"),
    "layers+tokens": ("#882255", "hexagon"),
    "router": ("#332288", "hexagram"),
    "shuffled router": ("#AA4499", "cross-thin-open"),
    "oracle": ("#009E73", "star"),
    "random": ("#D55E00", "x"),
    "shuffled": ("#E69F00", "cross"),
    "reference": ("#222222", "circle-open"),
    "floors": ("#000000", "square-open"),
    "control": ("#D55E00", "x"),
    "peer": ("#E69F00", "triangle-up"),
}
_OTHER = ("#222222", "pentagon")
_BARS = ("#0072B2", "#56B4E9", "#E69F00", "#D55E00", "#CC79A7", "#009E73", "#999999", "#222222")


def pareto_chart(points: Sequence[Mapping[str, Any]], title: str) -> dict[str, Any]:
    """Damage against mean bits: the uniform widths as a line, every other family as points of its own symbol.

    Args:
        points: As in ``ParetoTable.to_json()["points"]``.
        title: Above the figure; says which text.
    """
    traces = []
    for family in dict.fromkeys(str(point["family"]) for point in points):
        rows = sorted((p for p in points if p["family"] == family), key=lambda p: p["mean_bits"])
        traces.append(
            _points(
                family,
                [row["mean_bits"] for row in rows],
                [row["kl_mean"] for row in rows],
                [str(row["precision"]) for row in rows],
                is_line=family == "uniform",
            )
        )
    layout = figure_layout(title, "mean bits of the weights", "KL divergence, nats per token")
    layout["yaxis"]["type"] = "log"
    return {"data": traces, "layout": layout}


def gain_chart(points: Sequence[Mapping[str, Any]], title: str) -> dict[str, Any]:
    """Adaptivity gain of every plan with its interval; what could not be placed is left out.

    Args:
        points: As in ``ParetoTable.to_json()["points"]``.
        title: Above the figure.
    """
    rows = [point for point in points if "value" in point.get("adaptivity_gain_bits", {})]
    traces = []
    for family in dict.fromkeys(str(row["family"]) for row in rows):
        mine = [row for row in rows if row["family"] == family]
        gains = [row["adaptivity_gain_bits"] for row in mine]
        trace = _points(family, [g["value"] for g in gains], [str(r["precision"]) for r in mine], None, is_line=False)
        traces.append(trace | {"error_x": _whiskers(gains)})
    layout = figure_layout(title, "adaptivity gain, bits (right of 0: better than uniform)", "")
    layout["xaxis"] |= {"zeroline": True, "zerolinecolor": "#222222", "zerolinewidth": 2}
    layout["yaxis"] |= {"type": "category", "autorange": "reversed"}
    layout["height"] = 160 + 28 * len(rows)
    return {"data": traces, "layout": layout}


def cache_chart(rows: Sequence[Mapping[str, Any]], title: str) -> dict[str, Any]:
    """Damage of caches against their bytes; the 16-bit cache has none and is the right edge.

    Args:
        rows: As in ``KvTable.to_json()["rows"]``; those without numbers are left out.
        title: Above the figure.
    """
    known = [row for row in rows if "unavailable" not in row and row["kl_mean"] > 0]
    traces = []
    for kind in dict.fromkeys(str(row["kind"]) for row in known):
        mine = sorted((row for row in known if row["kind"] == kind), key=lambda row: row["bytes_ratio"])
        traces.append(
            _points(
                kind,
                [row["bytes_ratio"] for row in mine],
                [row["kl_mean"] for row in mine],
                [str(row["name"]) for row in mine],
                is_line=False,
            )
            | {"mode": "markers+text", "textposition": "top center"}
        )
    layout = figure_layout(title, "bytes of the cache, as a share of 16 bits", "KL divergence, nats per token")
    layout["yaxis"]["type"] = "log"
    return {"data": traces, "layout": layout}


def page_chart(bits: Sequence[Sequence[int]], title: str) -> dict[str, Any]:
    """Bits of every cached token in every layer, light to dark.

    Args:
        bits: One row a layer, one number a token.
        title: Above the figure.
    """
    levels = sorted({level for row in bits for level in row})
    heat = {
        "type": "heatmap",
        "z": [[levels.index(level) for level in row] for row in bits],
        "zmin": -0.5,
        "zmax": len(levels) - 0.5,
        "colorscale": _steps(len(levels)),
        "colorbar": {
            "title": {"text": "bits"},
            "tickvals": list(range(len(levels))),
            "ticktext": list(map(str, levels)),
        },
        "hovertemplate": "token %{x}, layer %{y}<extra></extra>",
    }
    return {"data": [heat], "layout": figure_layout(title, "token, oldest first", "layer")}


def bars_chart(
    groups: Sequence[str], series: Mapping[str, Sequence[Mapping[str, Any]]], title: str, y: str
) -> dict[str, Any]:
    """Bars side by side with intervals; a value that is missing leaves its place empty.

    Args:
        groups: Under the bars.
        series: For each name one reading (as JSON) per group.
        title: Above the figure.
        y: What the values are, with the unit.
    """
    traces = []
    for (name, readings), colour in zip(series.items(), _BARS * (1 + len(series) // len(_BARS)), strict=False):
        values = [reading.get("value") for reading in readings]
        traces.append(
            {
                "type": "bar",
                "name": name,
                "x": list(groups),
                "y": values,
                "marker": {"color": colour},
                "error_y": _whiskers(readings),
            }
        )
    layout = figure_layout(title, "", y)
    return {"data": traces, "layout": layout | {"barmode": "group"}}


def _points(
    family: str, x: Sequence[Any], y: Sequence[Any], text: Sequence[str] | None, *, is_line: bool
) -> dict[str, Any]:
    colour, symbol = _FAMILIES.get(family, _OTHER)
    trace = {
        "type": "scatter",
        "name": family,
        "mode": "lines+markers" if is_line else "markers",
        "x": list(x),
        "y": list(y),
        "line": {"color": colour, "dash": "dot"},
        "marker": {"color": colour, "symbol": symbol, "size": 12},
    }
    return trace if text is None else trace | {"text": list(text)}


def _whiskers(readings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    ends = [reading.get("ci95") or [reading.get("value"), reading.get("value")] for reading in readings]
    values = [reading.get("value") for reading in readings]
    return {
        "type": "data",
        "symmetric": False,
        "array": [None if v is None else high - v for v, (_, high) in zip(values, ends, strict=True)],
        "arrayminus": [None if v is None else v - low for v, (low, _) in zip(values, ends, strict=True)],
    }


def _steps(n: int) -> list[list[Any]]:
    """A scale of ``n`` flat steps out of Cividis."""
    shades = ("#fee838", "#c3b369", "#8a8678", "#575d6d", "#123570", "#00224e")
    chosen = [shades[round(i * (len(shades) - 1) / max(1, n - 1))] for i in range(n)]
    return [[edge, colour] for i, colour in enumerate(chosen) for edge in (i / n, (i + 1) / n)]

"""Figures of the page Plan as plain plotly JSON: quality against mean bits, and planned bits of layers and tokens."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tapwb.core.reading import Reading
from tapwb.evals.pareto_runs import AtBudget, ShownPoint
from tapwb.views.charts import CIVIDIS, figure_layout

#: Where a clicked point keeps its name.
CLICKED = 3

#: Okabe and Ito's colours (2008), told apart by every kind of colour vision; black is the page's ink.
_COLOURS = {
    "light": ("#0072b2", "#d55e00", "#007a5a", "#a05084", "#8a6d00", "#2b8ac6"),
    "dark": ("#56b4e9", "#ff9146", "#2fd0a0", "#e39cc8", "#f0e442", "#9ad5ff"),
}
_QUIET = {"light": "#6d7178", "dark": "#a3a8b0"}
_INK = {"light": "#1a1c20", "dark": "#e8eaed"}
#: Marker and line of each family: shape tells them apart where colour does not.
_LOOKS = {
    "uniform": ("circle", "solid"),
    "floors": ("diamond-tall", "dashdot"),
    "adaptive": ("square", "solid"),
    "layers": ("triangle-up", "solid"),
    "layers+tokens": ("star", "solid"),
    "shuffled": ("square-open", "dot"),
    "random": ("x-thin-open", "dot"),
    "oracle": ("diamond-open", "dash"),
    "router": ("hexagram", "solid"),
    "shuffled router": ("hexagram-open", "dot"),
}
_CONTROLS = ("shuffled", "shuffled router", "random", "oracle", "floors")


def quality_chart(
    points: Sequence[ShownPoint],
    names: Mapping[tuple[str, str | None], str],
    words: Mapping[str, str],
    *,
    budget: float,
    here: AtBudget | None,
    chosen: str = "",
    dark: bool = False,
) -> dict[str, Any]:
    """KL divergence against mean bits, one line a family and signal, intervals as bars, a marker for the budget.

    Args:
        points: Every point; its ``precision`` travels along, so that a click names it.
        names: Words for each curve, in the order of the legend.
        words: ``title``, ``bits``, ``kl``, ``interval``, ``budget``, in the reader's language.
        budget: The present budget, mean bits.
        here: What the curve of the present planner promises there.
        chosen: Precision of the point that is looked at.
        dark: Whether the page is dark.
    """
    scheme = "dark" if dark else "light"
    colour_of = _colours(names, scheme)
    data = [
        _curve(curve, [p for p in points if (p.family, p.signal) == curve], name, colour_of[curve], words)
        for curve, name in names.items()
    ]
    data.append(_ring([p for p in points if p.precision == chosen], scheme))
    data.append(_budget_marker(budget, here, words, scheme))
    layout = figure_layout(words["title"], words["bits"], words["kl"], dark, height=460)
    layout["yaxis"] |= {"type": "log", **_ticks([value for point in points for value in _ends(point)])}
    layout["hovermode"] = "closest"
    layout["legend"] = {"orientation": "h", "y": -0.18, "yanchor": "top"}
    line = {"color": _INK[scheme], "width": 1.5, "dash": "dash"}
    layout["shapes"] = [
        {"type": "line", "x0": budget, "x1": budget, "xref": "x", "y0": 0, "y1": 1, "yref": "paper", "line": line}
    ]
    return {"data": data, "layout": layout}


def planned_map(
    rows: Sequence[Sequence[float]],
    groups: Sequence[str],
    tokens: Sequence[str],
    words: Mapping[str, str],
    *,
    step: int,
    levels: Sequence[int],
    dark: bool = False,
) -> dict[str, Any]:
    """Planned bits, one row a layer group and one column a token (or ``step`` tokens, averaged).

    Args:
        rows: Bits.
        groups: Name of each row.
        tokens: Text under each column; escaped already.
        words: ``title``, ``token``, ``layer``, ``bits``.
        step: Tokens per column.
        levels: Levels that the colours span.
        dark: Whether the page is dark.
    """
    heat = {
        "type": "heatmap",
        "z": [[round(value, 3) for value in row] for row in rows],
        "x": [index * step for index in range(len(rows[0]))],
        "y": list(groups),
        "customdata": [list(tokens)] * len(rows),
        "colorscale": CIVIDIS,
        "zmin": min(levels),
        "zmax": max(levels),
        "colorbar": {
            "title": {"text": words["bits"], "side": "right"}, "thickness": 14,
            "tickvals": list(levels), "ticktext": [str(level) for level in levels],
        },
        "hovertemplate": (
            f"{words['token']} %{{x}}: %{{customdata}}<br>%{{y}}<br>{words['bits']}: %{{z:.2~f}}<extra></extra>"
        ),
    }  # fmt: skip
    height = 190 if len(rows) == 1 else min(620, 150 + 16 * len(rows))
    layout = figure_layout(words["title"], words["token"], "", dark, height=height)
    layout["yaxis"] |= {"type": "category", "autorange": "reversed", "tickfont": {"size": 11}}
    return {"data": [heat], "layout": layout}


def _colours(names: Mapping[tuple[str, str | None], str], scheme: str) -> dict[tuple[str, str | None], str]:
    """Ink for uniform, quiet for controls, and one colour each for what a user would deploy."""
    palette, used, found = _COLOURS[scheme], 0, {}
    for family, signal in names:
        if family == "uniform":
            colour = _INK[scheme]
        elif family in _CONTROLS:
            colour = _QUIET[scheme]
        else:
            colour, used = palette[used % len(palette)], used + 1
        found[family, signal] = colour
    return found


def _ends(point: ShownPoint) -> tuple[float, float]:
    """The interval of a point, or the point twice where there is none."""
    return point.kl.ci95 or (point.kl.value, point.kl.value)


def _ticks(values: Sequence[float]) -> dict[str, Any]:
    """1, 2 and 5 of every decade that holds values, written out: plotly's own shorten 0.05 to 5."""
    positive = [value for value in values if value > 0]
    if not positive:
        return {}
    decades = range(math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive))) + 1)
    ticks = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    return {"tickvals": ticks, "ticktext": [f"{tick:.6f}".rstrip("0").rstrip(".") for tick in ticks]}


def _curve(
    curve: tuple[str, str | None], points: Sequence[ShownPoint], name: str, colour: str, words: Mapping[str, str]
) -> dict[str, Any]:
    symbol, dash = _LOOKS.get(curve[0], ("circle", "solid"))
    ordered = sorted(points, key=lambda point: point.mean_bits)
    ends = [_ends(point) for point in ordered]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": html.escape(name),
        "x": [round(point.mean_bits, 4) for point in ordered],
        "y": [point.kl.value for point in ordered],
        # The name twice: escaped for the label, where plotly reads markup, and as it is for whoever is clicked.
        "customdata": [
            [html.escape(point.precision), *pair, point.precision] for point, pair in zip(ordered, ends, strict=True)
        ],
        "error_y": {
            "type": "data", "symmetric": False, "thickness": 1, "width": 3, "color": colour,
            "array": [high - p.kl.value for p, (_, high) in zip(ordered, ends, strict=True)],
            "arrayminus": [p.kl.value - low for p, (low, _) in zip(ordered, ends, strict=True)],
        },
        "line": {"color": colour, "dash": dash, "width": 1.5},
        "marker": {"color": colour, "symbol": symbol, "size": 11, "line": {"color": colour, "width": 1.5}},
        "hovertemplate": (
            f"%{{customdata[0]}}<br>%{{x:.2f}} {words['bits']}<br>%{{y:.4f}} nat · {words['interval']} "
            "%{customdata[1]:.4f} – %{customdata[2]:.4f}<extra></extra>"
        ),
    }  # fmt: skip


def _ring(points: Sequence[ShownPoint], scheme: str) -> dict[str, Any]:
    """A ring around the point that is looked at."""
    return {
        "type": "scatter", "mode": "markers", "showlegend": False, "hoverinfo": "skip",
        "x": [point.mean_bits for point in points], "y": [point.kl.value for point in points],
        "marker": {"symbol": "circle-open", "size": 24, "color": _INK[scheme], "line": {"width": 2}},
    }  # fmt: skip


def _budget_marker(budget: float, here: AtBudget | None, words: Mapping[str, str], scheme: str) -> dict[str, Any]:
    kl = here.kl.value if here is not None and isinstance(here.kl, Reading) else None
    return {
        "type": "scatter", "mode": "markers", "name": words["budget"], "hoverinfo": "skip",
        "x": [] if kl is None else [budget], "y": [] if kl is None else [kl],
        "marker": {"symbol": "cross", "size": 15, "color": _INK[scheme]},
    }  # fmt: skip

"""The notebook dial and the figures of the studies: they draw what they are given, live and static."""

import json

from tapwb.views.dial import Dial
from tapwb.views.report.study_charts import bars_chart, cache_chart, gain_chart, page_chart, pareto_chart
from tapwb.views.shown import show_table, show_text

POINTS = [
    {"family": "uniform", "precision": "5", "mean_bits": 5.0, "kl_mean": 0.1},
    {"family": "uniform", "precision": "4", "mean_bits": 4.0, "kl_mean": 0.35},
    {
        "family": "adaptive", "precision": "adaptive:4.5:entropy", "mean_bits": 4.5, "kl_mean": 0.16,
        "adaptivity_gain_bits": {"value": 0.2, "ci95": [0.15, 0.3]},
    },
    {
        "family": "layers", "precision": "layers:4.5", "mean_bits": 4.5, "kl_mean": 0.08,
        "adaptivity_gain_bits": {"unavailable": "out of the curve"},
    },
]  # fmt: skip


def test_a_dial_shows_its_start_and_follows_the_slider():
    """Turning it swaps the page; nothing else happens."""
    pages = [("4.5", show_table(["a"], [["four"]])), ("6", show_table(["a"], [["six"]]))]
    dial = Dial("mean bits", pages, "6")
    slider, page = dial.widget.children
    assert "six" in page.value
    slider.value = "4.5"
    assert "four" in page.value
    assert "six" not in page.value


def test_a_dial_reads_without_a_kernel():
    """Every stop is in the static page and in the plain text; only the start is open; a model's text stays text."""
    pages = [("4", show_text("<img src=x onerror=alert(1)>")), ("<5>", show_text("five"))]
    bundle = Dial("bits", pages)._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    page = bundle["text/html"]
    assert page.count("<details") == 2
    assert page.count("<details open>") == 1
    assert "<img" not in page
    assert "<5>" not in page
    assert "five" in bundle["text/plain"]


def test_families_are_told_apart_by_symbol_and_uniform_is_a_line():
    """One trace a family, sorted by bits, on a logarithmic axis with units."""
    figure = pareto_chart(POINTS, "a title")
    by_name = {trace["name"]: trace for trace in figure["data"]}
    assert by_name["uniform"]["x"] == [4.0, 5.0]
    assert by_name["uniform"]["mode"] == "lines+markers"
    assert len({trace["marker"]["symbol"] for trace in figure["data"]}) == 3
    assert figure["layout"]["yaxis"]["type"] == "log"
    assert "nats" in figure["layout"]["yaxis"]["title"]["text"]
    json.dumps(figure)


def test_gains_have_whiskers_and_gaps_stay_out():
    """Ends of the interval on both sides; a plan that could not be placed is not drawn at zero."""
    (trace,) = gain_chart(POINTS, "gains")["data"]
    assert trace["y"] == ["adaptive:4.5:entropy"]
    assert abs(trace["error_x"]["array"][0] - 0.1) < 1e-9
    assert abs(trace["error_x"]["arrayminus"][0] - 0.05) < 1e-9


def test_caches_without_numbers_are_left_out():
    """The 16-bit cache has no damage and a peer that is missing has no place."""
    rows = [
        {"name": "16", "kind": "reference", "bytes_ratio": 1.0, "kl_mean": 0.0},
        {"name": "4", "kind": "uniform", "bytes_ratio": 0.3, "kl_mean": 0.001},
        {"name": "hqq:4", "kind": "peer", "unavailable": "not installed"},
    ]
    assert [trace["text"] for trace in cache_chart(rows, "caches")["data"]] == [["4"]]


def test_pages_are_coloured_by_level_not_by_number():
    """3, 8 and 16 bits are three steps of one scale, named beside it."""
    (heat,) = page_chart([[16, 3, 8], [16, 3, 3]], "pages")["data"]
    assert heat["z"] == [[2, 0, 1], [2, 0, 0]]
    assert heat["colorbar"]["ticktext"] == ["3", "8", "16"]
    assert len(heat["colorscale"]) == 6


def test_bars_leave_a_place_for_what_is_missing():
    """No bar of height zero where there is no number."""
    figure = bars_chart(
        ["4 bits", "3 bits"], {"a": [{"value": 0.5, "ci95": [0.4, 0.7]}, {"unavailable": "x"}]}, "t", "y"
    )
    (bars,) = figure["data"]
    assert bars["y"] == [0.5, None]
    assert bars["error_y"]["array"][1] is None

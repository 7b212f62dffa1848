"""A saved run as a notebook that already has its outputs: no kernel and no model are started."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import nbformat
from nbformat import NotebookNode

from tapwb.views.report import charts
from tapwb.views.report.figures import PLOTLY_MIME
from tapwb.views.report.provenance import provenance_bundle, provenance_cells
from tapwb.views.run_facts import run_facts
from tapwb.views.shown import Shown, show_table, show_text
from tapwb_widgets.static_html import static_html

if TYPE_CHECKING:
    from tapwb.store import RunRecord

Cells = list[NotebookNode]


def notebook_from_run(record: "RunRecord") -> NotebookNode:
    """The report of a run; kinds without a page of their own get their results as a table."""
    title = f"{_TITLES.get(record.kind, record.kind.capitalize())}: {record.settings.get('model', record.run_id)}"
    cells = [
        _text(f"# {_plain(title)}\n\nRun `{record.run_id}`, {record.created_utc[:19]} UTC."),
        _text("## What was asked"),
    ]
    cells.append(_shown(Shown(provenance_bundle(record.settings))))
    cells += _PAGES.get(record.kind, _any_page)(record.results)
    facts = {**record.provenance, "run_id": record.run_id}
    cells += provenance_cells(facts)
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata |= {"title": title, "tap": facts}
    return notebook


def _run_page(results: Mapping[str, Any]) -> Cells:
    metrics = results["metrics"]
    cells = [_text("## What came out"), _shown(show_text(results["text"])), _text("## What it took")]
    cells.append(_shown(Shown(provenance_bundle(run_facts(metrics)))))
    if histogram := metrics.get("precision", {}).get("bits_histogram"):
        cells.append(_figure(charts.histogram_chart(histogram)))
    return [*cells, _text("## Every reading"), _shown(Shown(provenance_bundle(metrics)))]


def _perplexity_page(results: Mapping[str, Any]) -> Cells:
    rows = results["results"]
    columns = ("precision", "mean bits", "perplexity", "ratio", "95 % interval", "KL (nats)", "same top-1")
    keys = ("precision", "mean_bits", "perplexity", "perplexity_ratio", "ci95", "kl_mean", "top1_agreement")
    table = show_table(columns, [[_value(row.get(key)) for key in keys] for row in rows])
    return [_text("## Quality at each precision"), _shown(table), _figure(charts.quality_chart(rows))]


def _choices_page(results: Mapping[str, Any]) -> Cells:
    keys = ("precision", "acc", "acc_norm", "stderr", "n")
    columns = ("precision", "accuracy", "length-normalised", "standard error", "n")
    rows = [[_value(row.get(key)) for key in keys] for row in results["results"]]
    return [_text("## Accuracy at each precision"), _shown(show_table(columns, rows))]


def _tokens_page(results: Mapping[str, Any]) -> Cells:
    tokens: Sequence[Mapping[str, Any]] = results["tokens"]
    signals = list(tokens[0]["scores"]) if tokens else []
    rows = [
        [
            token["index"],
            token["id"],
            token["text"],
            *(_value(token["scores"][name]) for name in signals),
            token["bits"],
        ]
        for token in tokens
    ]
    counts: dict[str, int] = {}
    for token in sorted(tokens, key=lambda one: one["bits"]):
        counts[f"{token['bits']:g}"] = counts.get(f"{token['bits']:g}", 0) + 1
    strip = {
        "pieces": [token["text"] for token in tokens],
        "token_ids": [token["id"] for token in tokens],
        "scores": [token["scores"][signals[0]] for token in tokens] if signals else [],
        "bits": [round(token["bits"]) for token in tokens],
        "signal": signals[0] if signals else "",
    }
    drawn = Shown({"text/html": static_html(strip), "text/plain": "".join(strip["pieces"])})
    table = show_table(("#", "id", "token", *signals, "bits"), rows)
    return [_text("## Tokens"), _shown(drawn), _figure(charts.histogram_chart(counts)), _shown(table)]


def _any_page(results: Mapping[str, Any]) -> Cells:
    return [_text("## Results"), _shown(Shown(provenance_bundle(results)))]


_TITLES = {
    "run": "Generated text",
    "tokens": "Which tokens matter",
    "eval-perplexity": "Perplexity",
    "eval-choices": "Multiple choice",
}
_PAGES: dict[str, Callable[[Mapping[str, Any]], Cells]] = {
    "run": _run_page,
    "tokens": _tokens_page,
    "eval-perplexity": _perplexity_page,
    "eval-choices": _choices_page,
}


def _text(source: str) -> NotebookNode:
    return nbformat.v4.new_markdown_cell(source)


def _shown(shown: Shown) -> NotebookNode:
    return nbformat.v4.new_code_cell("", outputs=[nbformat.v4.new_output("display_data", data=shown.bundle)])


def _figure(figure: dict[str, Any]) -> NotebookNode:
    return _shown(Shown({PLOTLY_MIME: figure, "text/plain": figure["layout"]["title"]["text"]}))


def _value(value: Any) -> Any:
    """A cell: intervals and reasons as text, numbers as they are."""
    if isinstance(value, Mapping):
        return f"unavailable ({value['unavailable']})" if "unavailable" in value else str(dict(value))
    if isinstance(value, list):
        return f"{value[0]:.4g} to {value[1]:.4g}"
    return value


def _plain(text: str) -> str:
    """Text in a heading: a model's name is a user's text and must not be read as markup."""
    return "".join(f"\\{character}" if character in "\\`*_{}[]()#+-.!<>|~" else character for character in text)

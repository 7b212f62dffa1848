"""Tables for the screen: plain HTML, every cell escaped, numbers right, units and sources beside them.

A table says nothing that another stage did not compute; it formats.
"""

import html
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tapwb.core.reading import Reading, Unavailable
from tapwb.core.units import format_bytes, format_count, format_joules, format_seconds
from tapwb.importance.analyzer import TokenImportance, rank_correlation
from tapwb.models.anatomy_records import ModelAnatomy
from tapwb.plan.capacity import FitRow
from tapwb.views.borrowed_words import role_words, source_words
from tapwb.views.i18n import Translate

TABLE_CSS = """
.tapwb-table-frame { overflow-x: auto; }
.tapwb-table { border-collapse: collapse; font-size: 14px; line-height: 1.4; width: 100%; }
.tapwb-table caption { text-align: left; font-weight: 600; padding: 0 0 6px; }
.tapwb-table th, .tapwb-table td {
  padding: 5px 10px; border-bottom: 1px solid #d4d7dd; text-align: left; vertical-align: top;
}
.tapwb-table thead th { font-weight: 600; vertical-align: bottom; }
.tapwb-table td:first-child { white-space: nowrap; }
.tapwb-table .number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.tapwb-table .quiet { color: #5a5e66; font-size: 12.5px; }
.tapwb-dark .tapwb-table, .tapwb-dark .tapwb-table caption { color: #e8eaed; }
.tapwb-dark .tapwb-table th, .tapwb-dark .tapwb-table td { border-color: #454b55; }
.tapwb-dark .tapwb-table .quiet { color: #b0b5bd; }
"""


@dataclass(frozen=True, slots=True)
class Table:
    """A table as values.

    Attributes:
        columns: Headings.
        rows: Cells, already text.
        caption: Title, read aloud with the table.
        numbers: Indices of the columns that hold numbers.
        quiet: Indices of the columns that hold sources and remarks.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    numbers: frozenset[int] = field(default_factory=frozenset)
    quiet: frozenset[int] = field(default_factory=frozenset)

    def to_html(self, *, dark: bool = False) -> str:
        """The table as HTML with every text escaped."""

        def kind(index: int) -> str:
            name = "number" if index in self.numbers else "quiet" if index in self.quiet else ""
            return f' class="{name}"' if name else ""

        head = "".join(f'<th scope="col"{kind(i)}>{html.escape(c)}</th>' for i, c in enumerate(self.columns))
        body = "".join(
            "<tr>" + "".join(f"<td{kind(i)}>{html.escape(cell)}</td>" for i, cell in enumerate(row)) + "</tr>"
            for row in self.rows
        )
        caption = f"<caption>{html.escape(self.caption)}</caption>" if self.caption else ""
        frame = "tapwb-table-frame tapwb-dark" if dark else "tapwb-table-frame"
        return (
            f'<div class="{frame}"><table class="tapwb-table">{caption}<thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )


def bytes_table(anatomy: ModelAnatomy, mean_bits: float, measured: Reading | None, _: Translate) -> Table:
    """Weights and cache of a model at each precision.

    Args:
        anatomy: The model.
        mean_bits: Mean bits of the adaptive plan.
        measured: Resident bytes of the loaded nested weights, if it is loaded.
        _: Translation.
    """
    full = anatomy.weights_bytes(16)
    source = _("estimated: from the model's shapes")
    rows = []
    for bits in (16, 8, 6, 5, 4):
        weights = anatomy.weights_bytes(bits)
        rows.append((f"{bits} {_('bits')}", format_bytes(weights), f"{weights / full:.2f}×", source))
    resident = measured.value if measured else float(anatomy.weights_bytes(8))
    note = _("measured: tensor storage") if measured else source
    rows.append((_("adaptive, stored"), format_bytes(resident), f"{resident / full:.2f}×", note))
    read = anatomy.weights_bytes(mean_bits)
    label = _("adaptive, read per token at {bits} bits").format(bits=f"{mean_bits:g}")
    rows.append((label, format_bytes(read), f"{read / full:.2f}×", source))
    columns = (_("Precision"), _("Weights"), _("of 16 bits"), _("Source"))
    return Table(columns, rows, _("Bytes of the weights"), frozenset((1, 2)), frozenset((3,)))


def parts_table(anatomy: ModelAnatomy, _: Translate) -> Table:
    """Every kind of matrix, cache and state of a model."""
    full = max(1, anatomy.n_parameters)
    # A tied head is the embedding's own tensor: its numbers are counted once, in the row of the embedding.
    rows = [
        (role_words(spec.role, _), f"{spec.out_features} × {spec.in_features}", str(spec.count),
         *((_("the token embedding's"), "") if anatomy.shares_embedding(spec)
           else (format_count(spec.n_parameters), f"{spec.n_parameters / full:.1%}")))
        for spec in anatomy.linears
    ]  # fmt: skip
    rows.append(
        (_("token embedding"), f"{anatomy.vocab_size} × {anatomy.hidden_size}", "1",
         format_count(anatomy.embedding_parameters), f"{anatomy.embedding_parameters / full:.1%}")
    )  # fmt: skip
    rows.append((_("norms, biases and the rest"), "", "", format_count(anatomy.other_parameters),
                 f"{anatomy.other_parameters / full:.1%}"))  # fmt: skip
    columns = (_("Part"), _("Shape"), _("How many"), _("Parameters"), _("Share"))
    return Table(columns, rows, _("Matrices"), frozenset((1, 2, 3, 4)))


def memory_table(anatomy: ModelAnatomy, n_tokens: int, _: Translate) -> Table:
    """Attention caches and recurrent states, grouped by kind."""
    rows = []
    layers = Counter((c.kind, c.kv_heads, c.key_dim, c.value_dim, c.window or 0) for c in anatomy.caches)
    for (kind, heads, key_dim, value_dim, window), n_layers in sorted(layers.items()):
        name = _("{kind} attention").format(kind=_(kind)) + (f" ({window})" if window else "")
        rows.append((name, str(n_layers), f"{heads} × ({key_dim} + {value_dim})"))
    for state in sorted({(s.kind, s.shape) for s in anatomy.states}):
        rows.append((state[0], str(sum(1 for s in anatomy.states if (s.kind, s.shape) == state)),
                     " × ".join(map(str, state[1]))))  # fmt: skip
    for bits in (16, 8, 4):
        label = _("cache of {n} tokens at {bits} bits").format(n=f"{n_tokens:,}", bits=bits)
        rows.append((label, "", format_bytes(anatomy.kv_bytes(n_tokens, bits))))
    if anatomy.states:
        rows.append((_("recurrent states, whatever the length"), "", format_bytes(anatomy.state_bytes())))
    columns = (_("Memory of past tokens"), _("Layers"), _("Heads × (key + value), or bytes"))
    return Table(columns, rows, _("Caches and states"), frozenset((1, 2)))


def fit_table(rows: Sequence[FitRow], formats: Sequence[str], _: Translate) -> Table:
    """Which cards hold the model, one line a card, one pair of columns a format."""
    cards = list(dict.fromkeys(row.gpu for row in rows))
    by_place = {(row.gpu, row.format): row for row in rows}
    cells = []
    for card in cards:
        line = [card, format_bytes(by_place[card, formats[0]].vram_bytes)]
        for name in formats:
            row = by_place[card, name]
            limit = row.max_context_tokens
            longest = "–" if isinstance(limit, Unavailable) else f"{limit:,}"
            line += [f"{'✓' if row.fits else '✗'} {format_bytes(row.needed_bytes)}", longest]
        cells.append(line)
    columns = [_("Card"), _("Memory")]
    for name in formats:
        columns += [_("{format}: needs").format(format=name), _("longest text, tokens")]
    return Table(columns, cells, _("Which cards hold it"), frozenset(range(1, len(columns))))


def correlation_table(importance: TokenImportance, names: dict[str, str], _: Translate) -> Table:
    """Spearman's rank correlation between the signals."""
    signals = list(importance.parts)
    rows = []
    for one in signals:
        row = [names.get(one, one)]
        for other in signals:
            value = rank_correlation(importance.parts[one], importance.parts[other])
            row.append("–" if isinstance(value, Unavailable) else f"{value:+.2f}")
        rows.append(row)
    columns = ["", *(names.get(name, name) for name in signals)]
    caption = _("How far the signals agree (rank correlation, −1 to 1)")
    return Table(columns, rows, caption, frozenset(range(1, len(columns))))


def run_table(
    candidate: dict[str, Any] | None, baseline: dict[str, Any] | None, titles: tuple[str, str], _: Translate
) -> Table:
    """What a run cost, beside the 16-bit run; every number with its source.

    Args:
        candidate: Metrics of the run, if it has ended.
        baseline: Metrics of the 16-bit run, if it has ended.
        titles: Headings of the two.
        _: Translation.
    """
    rows = []
    for label, read in _RUN_ROWS:
        values = [read(m) if m else ("…", "") for m in (candidate, baseline)]
        source = values[0][1] or values[1][1]
        rows.append((_(label), values[0][0], values[1][0], source_words(source, _)))
    return Table((_("Reading"), *titles, _("Source")), rows, "", frozenset((1, 2)), frozenset((3,)))


def as_text(value: Any) -> tuple[str, str]:
    """A number as people read it, and where it comes from."""
    if isinstance(value, dict) and "unavailable" in value:
        return "–", str(value["unavailable"])
    if isinstance(value, Unavailable):
        return "–", value.reason
    if isinstance(value, dict):
        value = Reading(value["value"], value["unit"], value["source"], value.get("uncertainty"))
    formats = {"J": format_joules, "s": format_seconds, "byte": format_bytes}
    if value.unit in formats:
        spread = f" ± {formats[value.unit](value.uncertainty)}" if value.uncertainty else ""
        return formats[value.unit](value.value) + spread, value.source
    return f"{_plain_number(value.value)} {value.unit}", value.source


def _plain_number(value: float) -> str:
    """Three digits, and never an exponent that people must decode."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _saved(metrics: dict[str, Any]) -> tuple[str, str]:
    return as_text(metrics["precision"]["energy_saved_pct"])


def _bits_used(metrics: dict[str, Any]) -> tuple[str, str]:
    return f"{metrics['precision']['mean_bits']:.2f}", "measured:trace of the run"


def _measured_bytes(group: str, key: str) -> Any:
    return lambda metrics: (format_bytes(metrics[group][key]), str(metrics[group]["source"]))


#: Rows of the run table: English label, and where to find the value.
_RUN_ROWS: tuple[tuple[str, Any], ...] = (
    ("mean bits", _bits_used),
    ("speed of writing", lambda m: as_text(m["speed"]["decode_tok_per_s"])),
    ("time to the first token", lambda m: (format_seconds(m["speed"]["ttft_s"]), str(m["speed"]["source"]))),
    ("weights in memory", _measured_bytes("memory", "weights_bytes")),
    ("attention cache", _measured_bytes("memory", "kv_bytes")),
    ("weight bytes read", lambda m: (format_bytes(m["speed"]["weight_bytes_read"]), "estimated:bits of every token")),
    ("energy", lambda m: as_text(m["energy"].get("total_j", m["energy"]))),
    ("energy saved", _saved),
)

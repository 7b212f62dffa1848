"""Tables of the page Plan: what a plan costs, what was set by hand, and the points of a measurement as values."""

from collections.abc import Mapping, Sequence
from typing import Any

from tapwb.core.reading import Measured, Reading, Unavailable
from tapwb.core.units import format_bytes
from tapwb.evals.pareto_runs import AtBudget, Measurement
from tapwb.plan.outlook import PlanOutlook
from tapwb.plan.overrides import LayerSizes, PlanEdit
from tapwb.views.borrowed_words import source_words
from tapwb.views.i18n import Translate
from tapwb.views.panel_app.names import curve_name, rule_names
from tapwb.views.tables import Table

Rows = list[list[str]]
#: Names of groups and tokens that are listed before "and n more".
_LISTED = 4


def outlook_table(outlooks: Sequence[PlanOutlook], titles: Sequence[str], _: Translate) -> Table:
    """What one or more plans of the same prompt are expected to cost, side by side, with sources.

    Args:
        outlooks: One a plan.
        titles: Its heading.
        _: Translation.
    """
    rows = [
        [_("mean bits"), *(f"{one.mean_bits:.2f}" for one in outlooks), _("computed from the plan")],
        [
            _("weight bytes read per token"),
            *(format_bytes(one.bytes_per_token.value) for one in outlooks),
            source_words(outlooks[0].bytes_per_token.source, _),
        ],
        [
            _("expected damage, uniform at the same mean = 1"),
            *(_number(one.relative_damage, ".2f") for one in outlooks),
            _source(outlooks[0].relative_damage, _),
        ],
    ]
    numbers = frozenset(range(1, len(outlooks) + 1))
    return Table((_("Reading"), *titles, _("Source")), rows, "", numbers, frozenset((len(outlooks) + 1,)))


def budget_table(rows: Sequence[AtBudget], mean_bits: float, _: Translate) -> Table:
    """What each measured curve promises at the present budget.

    Args:
        rows: From ``Measurement.at``.
        mean_bits: The budget.
        _: Translation.
    """
    cells = [
        [
            curve_name(row.family, row.signal, _),
            _number(row.kl, ".4f"),
            _number(row.relative, ".2f"),
            _source(row.kl, _),
        ]
        for row in rows
    ]
    columns = (_("Curve"), _("KL divergence, nat"), _("uniform = 1"), _("Source"))
    caption = _("At {bits} mean bits").format(bits=f"{mean_bits:g}")
    return Table(columns, cells, caption, frozenset((1, 2)), frozenset((3,)))


def edit_rows(edits: Sequence[PlanEdit], sizes: LayerSizes, pieces: Sequence[str], _: Translate) -> Rows:
    """What was set by hand, oldest first: what, how, bits.

    Args:
        edits: What was set.
        sizes: Names of the layer groups.
        pieces: Text of each token, made visible.
        _: Translation.
    """
    rows = []
    for edit in edits:
        if edit.axis == "tokens":
            names = [f"{index} “{pieces[index]}”" if index < len(pieces) else str(index) for index in edit.where]
            what = _("tokens {names}").format(names=_listed(names, _))
        else:
            what = _listed([sizes.names[index] for index in edit.where], _)
        rows.append([what, rule_names(_)[edit.rule], str(edit.bits)])
    return rows


def point_columns(_: Translate) -> list[str]:
    """Headings of :func:`point_rows`."""
    return [
        _("Precision"), _("mean bits"), _("KL divergence, nat"), _("95 % interval"), _("perplexity ratio"),
        _("gain, bits"), _("95 % interval of the gain"), _("windows"), _("of the oracle's gain"),
    ]  # fmt: skip


def point_rows(measurement: Measurement, _: Translate) -> Rows:
    """Every point with its interval, its adaptivity gain and its share of what the oracle gains."""
    rows = []
    for point in measurement.points:
        rows.append(
            [
                point.precision,
                f"{point.mean_bits:.2f}",
                f"{point.kl.value:.4f}",
                _interval(point.kl, ".4f"),
                f"{point.perplexity_ratio:.4f}",
                _number(point.gain, "+.3f"),
                _interval(point.gain, "+.3f"),
                str(point.kl.n or "–"),
                _number(point.share, ".0%"),
            ]
        )
    return rows


def record_table(values: Mapping[str, Any], caption: str, _: Translate) -> Table:
    """Named values of a saved run as they are; nested ones are written out.

    Args:
        values: Plain JSON.
        caption: Title.
        _: Translation.
    """
    rows = []
    for name, value in values.items():
        if isinstance(value, Mapping) and ("value" in value or "unavailable" in value):
            rows.append([name, _reading(value, _)])
        elif isinstance(value, Mapping):
            rows += [[f"{name}: {part}", _plain(inner)] for part, inner in value.items()]
        else:
            rows.append([name, _plain(value)])
    return Table((_("Name"), _("Value")), rows, caption)


def window_table(windows: Mapping[str, Sequence[float]], _: Translate) -> Table:
    """Numbers of each window of a point."""
    rows = [
        [str(index), f"{bits:.3f}", f"{kl:.5f}", f"{excess:+.5f}"]
        for index, (bits, kl, excess) in enumerate(
            zip(windows["mean_bits"], windows["kl"], windows["excess_nll"], strict=True)
        )
    ]
    columns = (_("Window"), _("mean bits"), _("KL divergence, nat"), _("excess loss, nat"))
    return Table(columns, rows, _("Every window (measured)"), frozenset(range(4)))


def _listed(names: Sequence[str], _: Translate) -> str:
    shown = ", ".join(names[:_LISTED])
    return shown if len(names) <= _LISTED else _("{names} and {n} more").format(names=shown, n=len(names) - _LISTED)


def _number(measured: Measured, spec: str) -> str:
    return "–" if isinstance(measured, Unavailable) else format(measured.value, spec)


def _interval(measured: Measured, spec: str) -> str:
    if not isinstance(measured, Reading) or measured.ci95 is None:
        return "–"
    low, high = measured.ci95
    return f"{low:{spec}} … {high:{spec}}"


def _source(measured: Measured, _: Translate) -> str:
    return measured.reason if isinstance(measured, Unavailable) else source_words(measured.source, _)


def _reading(data: Mapping[str, Any], _: Translate) -> str:
    """A reading in one line: number, unit, interval, windows, source."""
    if "unavailable" in data:
        return f"– ({data['unavailable']})"
    said = f"{_plain(data['value'])} {data['unit']}"
    if data.get("ci95"):
        said += f" ({_('95 % interval')}: {_plain(data['ci95'][0])} … {_plain(data['ci95'][1])}, n = {data.get('n')})"
    return f"{said} – {source_words(str(data['source']), _)}"


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(_plain(part) for part in value)
    return "–" if value is None else str(value)

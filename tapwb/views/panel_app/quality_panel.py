"""Quality against mean bits: what to measure, the chart, the points, and the run behind each of them."""

import io
import json
from typing import Any

import panel as pn
import panel_material_ui as pmui

from tapwb.core.errors import TapError
from tapwb.evals.pareto import ParetoSettings
from tapwb.evals.pareto_runs import Measurement, has_settings, n_passes
from tapwb.importance.signal import signals as known_signals
from tapwb.views import plan_charts
from tapwb.views.panel_app.look import STEPPER, download, empty, section, table_pane, text
from tapwb.views.panel_app.names import curve_name, signal_short_names
from tapwb.views.panel_app.plan_tables import budget_table, point_columns, point_rows, record_table, window_table
from tapwb.views.panel_app.scope import Scope
from tapwb_widgets.token_strip_panel import DataTable

_LONGEST_TEXT = 2_000_000


class QualityPanel:
    """Part of the page Plan on one screen.

    Args:
        scope: The screen.
    """

    def __init__(self, scope: Scope) -> None:
        _, dark = scope.translate, scope.is_dark
        self._scope = scope
        self._drawn: tuple[Any, ...] = ()
        self._sought: tuple[Any, ...] = ()
        self._make_inputs()
        self.status = text("", tone="quiet", role="status", dark=dark)
        self.empty = empty(
            _("Nothing was measured on this model and text yet. Press Measure, or open a measurement."), dark=dark
        )
        self.chart = pn.pane.Plotly(None, sizing_mode="stretch_width", height=460, config={"displaylogo": False})
        self.budget = table_pane(dark=dark)
        self.points: Any = DataTable(
            columns=point_columns(_), numbers=[1, 2, 4, 5, 7, 8], label=_("Points of the chart"),
            color_scheme="dark" if dark else "light", sizing_mode="stretch_width", margin=(4, 10),
        )  # fmt: skip
        self.save = download(_("Save measurement"), "quality.json", self._saved)
        self.opening = text("", role="status", dark=dark)
        self.asked, self.found, self.windows, self.from_where = (table_pane(dark=dark) for _i in range(4))
        self.use = pmui.Button(
            label=_("Run this precision on the prompt"), icon="play_arrow", variant="contained", size="small",
            margin=(6, 10), on_click=self._use,
        )  # fmt: skip
        record = section(
            _("The run behind this point"), self.opening, self.use, self.found, self.windows, self.asked,
            self.from_where, level=3,
        )  # fmt: skip
        self.record = pmui.Paper(record, variant="outlined", margin=10, sizing_mode="stretch_width", visible=False)
        hint = _("Click a point, or choose a row of the table, to open the run that produced it.")
        self.details = pmui.Column(
            self.chart, text(hint, tone="quiet", dark=dark), self.budget, self.record, self.points, self.save,
            visible=False, sizing_mode="stretch_width",
        )  # fmt: skip
        self.view = section(_("Quality against mean bits"), self.inputs, self.status, self.empty, self.details)
        self._listen()
        scope.refresh_on(["card", "prompt", "measure_text", "measure_settings"], self.find, now=False)
        scope.refresh_on(["measurement", "mean_bits", "planner", "signal", "point"], self.refresh, now=False)
        scope.refresh_on(["job_tick", "job", "card"], self.enable)
        if scope.workbench.measurement is None:
            self.find()
        self.refresh()

    # --- inputs ---

    def _make_inputs(self) -> None:
        _, workbench = self._scope.translate, self._scope.workbench
        settings = workbench.chosen_settings()
        small: dict[str, Any] = {"size": "small", "margin": (6, 6)}
        names = signal_short_names(_)
        offered = [n for n in known_signals.names() if n not in ("oracle", "random", "uniform")]
        self.means = pmui.TextInput(label=_("Means, bits"), value=_joined(settings.means), width=150, **small)
        self.signals = pmui.MultiChoice(
            label=_("Signals"), options={names.get(n, n): n for n in offered}, value=list(settings.signals),
            width=260, visual_size="small", margin=(6, 6),
        )  # fmt: skip
        self.n_windows = pmui.IntInput(
            label=_("Windows"), start=1, end=64, value=settings.windows, width=100, sx=STEPPER, **small
        )
        self.context = pmui.IntInput(
            label=_("Tokens per window"), start=8, end=2048, step=8, value=settings.context, width=140, sx=STEPPER,
            **small,
        )  # fmt: skip
        self.layers = pmui.Checkbox(label=_("layers, too"), value=settings.with_layers, **small)
        self.file = pmui.FileInput(
            label=_("Measure on a text file"), accept=".txt,.md", variant="outlined",
            max_file_size=_LONGEST_TEXT, **small,
        )  # fmt: skip
        self.prompt = pmui.Button(
            label=_("Measure on the prompt"), variant="outlined", on_click=self._take_prompt, visible=False, **small
        )
        self.measure = pmui.Button(
            label=_("Measure"), icon="query_stats", variant="contained",
            on_click=lambda _event: workbench.measure(), **small,
        )  # fmt: skip
        self.open = pmui.FileInput(label=_("Open a measurement"), accept=".json", variant="outlined", **small)
        self.cost = text("", tone="quiet", dark=self._scope.is_dark)
        row: dict[str, Any] = {"sizing_mode": "stretch_width", "align": "end"}
        self.inputs = pmui.Column(
            pmui.FlexBox(self.means, self.signals, self.n_windows, self.context, self.layers, **row),
            pmui.FlexBox(self.measure, self.file, self.prompt, self.open, **row),
            self.cost, sizing_mode="stretch_width",
        )  # fmt: skip

    def enable(self) -> None:
        """Offer to measure when something can be."""
        workbench = self._scope.workbench
        self.measure.disabled = workbench.is_busy or workbench.card is None

    def find(self) -> None:
        """Look for an earlier measurement of this model and text."""
        workbench = self._scope.workbench
        self.prompt.visible = bool(workbench.measure_text)
        sought = (workbench.subject(), workbench.chosen_settings())
        # A new plan touches the card as well; only another text, model or setting is a reason to look again.
        if sought != self._sought:
            self._sought = sought
            workbench.find_measurement()
        self._say_cost()

    # --- drawing ---

    def refresh(self) -> None:
        """Draw the measurement at the present budget; nothing is measured for it."""
        workbench = self._scope.workbench
        measurement: Measurement | None = workbench.measurement
        self.empty.visible, self.details.visible = measurement is None, measurement is not None
        self._say_status(measurement)
        if measurement is None:
            return
        _ = self._scope.translate
        if not self._drawn or self._drawn[0] is not measurement:
            self.points.param.update(rows=point_rows(measurement, _), selected=-1)
        self._drawn = (measurement,)
        at = measurement.at(workbench.mean_bits)
        wanted = (workbench.planner, workbench.signal)
        here = next((row for row in at if (row.family, row.signal or wanted[1]) == wanted), None)
        self.chart.object = plan_charts.quality_chart(
            measurement.points,
            {curve: curve_name(curve[0], curve[1], _) for curve in measurement.curves},
            self._words(),
            budget=workbench.mean_bits,
            here=here or next((row for row in at if row.family == "uniform"), None),
            chosen=workbench.point,
            dark=self._scope.is_dark,
        )
        self.budget.object = budget_table(at, workbench.mean_bits, _).to_html(dark=self._scope.is_dark)
        self._show_record()

    def _words(self) -> dict[str, str]:
        _ = self._scope.translate
        return {
            "title": _("What each mean costs on this text, beside its controls (measured)"),
            "bits": _("mean bits of the weights"), "kl": _("KL divergence, nat per token"),
            "interval": _("95 % interval"), "budget": _("present budget"),
        }  # fmt: skip

    def _say_status(self, measurement: Measurement | None) -> None:
        _, workbench = self._scope.translate, self._scope.workbench
        if measurement is None:
            self.status.text = ""
            return
        subject, setup = measurement.subject, measurement.table.setup
        said = _("{model} on {text}: {windows} windows of up to {context} tokens, measured {utc} UTC (tapwb {version})")
        parts = [
            said.format(
                model=subject.model_id if subject else measurement.table.provenance.get("model_id"),
                text=subject.text_name if subject else _("a text that the file does not name"),
                windows=setup.get("windows"), context=setup.get("context"),
                utc=measurement.saved_utc[:19].replace("T", " "),
                version=measurement.table.provenance.get("tapwb"),
            )
        ]  # fmt: skip
        if measurement.source not in ("measured", "cache"):
            parts.append(_("opened from {name}").format(name=measurement.source))
        elif not has_settings(measurement, workbench.chosen_settings()):
            parts.append(_("with other settings than those above"))
        if setup.get("windows") == 1:
            parts.append(_("one window gives no interval: choose a longer text"))
        self.status.text = " · ".join(parts)

    def _say_cost(self) -> None:
        _, workbench = self._scope.translate, self._scope.workbench
        settings = workbench.chosen_settings()
        name = workbench.measure_name if workbench.measure_text else _("the prompt")
        words = _(
            "Text: {name}. At most {n} passes over {context} tokens, and one a layer group where none is known yet."
        )
        n = f"{n_passes(settings, settings.windows):,}"
        self.cost.text = words.format(name=name, n=n, context=settings.context)

    def _show_record(self) -> None:
        """Open the run of the chosen point, or say why it cannot be."""
        _, workbench, dark = self._scope.translate, self._scope.workbench, self._scope.is_dark
        self.record.visible = bool(workbench.point)
        try:
            record = workbench.point_record()
        except TapError as error:
            self.opening.text = f"{workbench.point} – {error}"
            for pane in (self.asked, self.found, self.windows, self.from_where):
                pane.object = ""
            return
        if record is None:
            return
        saved = workbench.measurement.point(workbench.point).run_id
        where = (
            _("saved run {id}").format(id=saved) if saved else _("kept in the file of the measurement, not as a run")
        )
        self.opening.text = f"{workbench.point} – {where}"
        results = {name: value for name, value in record.results.items() if name != "windows"}
        self.found.object = record_table(results, _("What came out (measured)"), _).to_html(dark=dark)
        self.windows.object = window_table(record.results["windows"], _).to_html(dark=dark)
        self.asked.object = record_table(record.settings, _("What was asked for"), _).to_html(dark=dark)
        self.from_where.object = record_table(record.provenance, _("Where it was measured"), _).to_html(dark=dark)

    # --- what the user does ---

    def _listen(self) -> None:
        scope = self._scope
        for widget in (self.means, self.signals, self.n_windows, self.context, self.layers):
            scope.watch(widget, ["value"], lambda _event: self._take_settings())
        scope.watch(self.chart, ["click_data"], self._click)
        scope.watch(self.points, ["selected"], self._select)
        scope.watch(self.file, ["value"], self._take_file)
        scope.watch(self.open, ["value"], self._open)

    def _take_settings(self) -> None:
        _, workbench = self._scope.translate, self._scope.workbench
        try:
            means = tuple(sorted({float(part) for part in self.means.value.split(",") if part.strip()}))
        except ValueError:
            means = ()
        if not means or not all(4 <= mean <= 8 for mean in means) or not self.signals.value:
            workbench.error = _("Give means between 4 and 8 bits, joined by commas (4.5, 5, 5.5), and a signal.")
            return
        before = workbench.chosen_settings()
        workbench.measure_settings = ParetoSettings(
            means=means,
            signals=tuple(self.signals.value),
            windows=self.n_windows.value or before.windows,
            context=self.context.value or before.context,
            with_layers=bool(self.layers.value),
        )

    def _click(self, event: Any) -> None:
        points = (event.new or {}).get("points") or []
        data = points[0].get("customdata") if points else None
        if data:
            self._scope.workbench.point = str(data[plan_charts.CLICKED])
            # The same point clicked again must be a change again.
            self.chart.click_data = None

    def _select(self, event: Any) -> None:
        measurement = self._scope.workbench.measurement
        if measurement is not None and 0 <= event.new < len(measurement.points):
            self._scope.workbench.point = measurement.points[event.new].precision

    def _take_file(self, event: Any) -> None:
        if not event.new:
            return
        try:
            content = bytes(event.new).decode("utf-8")
        except UnicodeDecodeError:
            _ = self._scope.translate
            self._scope.workbench.error = _("The text file is not UTF-8. Save it as UTF-8 first.")
            return
        self._scope.workbench.param.update(measure_text=content, measure_name=str(self.file.filename or "text"))

    def _take_prompt(self, _event: object) -> None:
        self._scope.workbench.param.update(measure_text="", measure_name="")

    def _open(self, event: Any) -> None:
        if event.new:
            content, name = bytes(event.new).decode("utf-8", errors="replace"), str(self.open.filename or "file")
            self._scope.workbench.open_measurement(content, name)

    def _saved(self) -> io.BytesIO:
        measurement = self._scope.workbench.measurement
        return io.BytesIO(b"" if measurement is None else json.dumps(measurement.to_json()).encode())

    def _use(self, _event: object) -> None:
        workbench = self._scope.workbench
        workbench.use_point(workbench.point)
        if not workbench.error:
            workbench.page = "run"
            workbench.run()


def _joined(means: tuple[float, ...]) -> str:
    return ", ".join(f"{mean:g}" for mean in means)

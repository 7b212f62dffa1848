"""Page "Plan": what does a budget buy? Bits of every token and layer, live; quality as measured; bits set by hand."""

import html
from typing import Any

import panel as pn
import panel_material_ui as pmui

from tapwb.plan.explain import explain
from tapwb.views import charts, plan_charts
from tapwb.views.panel_app.hand_panel import HandPanel
from tapwb.views.panel_app.look import empty, section, table_pane, text
from tapwb.views.panel_app.names import kept_reasons, signal_names
from tapwb.views.panel_app.pages.tokens import explanation_sentence
from tapwb.views.panel_app.plan_tables import outlook_table
from tapwb.views.panel_app.quality_panel import QualityPanel
from tapwb.views.panel_app.scope import Scope
from tapwb.views.panel_app.stale import StaleNote
from tapwb.views.payloads import heat_columns, strip_fields, token_bytes
from tapwb_widgets.schema import TOKEN_STRIP_LABELS
from tapwb_widgets.token_strip_panel import TokenStrip

_MAP_COLUMNS = 256
_CHARTS_LATER_S = 0.2


class PlanPage:
    """The page of one screen.

    Args:
        scope: The screen.
    """

    def __init__(self, scope: Scope) -> None:
        _, dark = scope.translate, scope.is_dark
        self._scope = scope
        self._drawn: tuple[Any, ...] = ()
        self.empty = empty(_("Load a model and score the prompt to plan its bits."), dark=dark)
        self.dial = pmui.FloatSlider(
            label=_("Budget: mean bits"), start=4, end=8, step=0.1, value=scope.workbench.mean_bits,
            sizing_mode="stretch_width", margin=(10, 24), size="medium",
        )  # fmt: skip
        self.summary = text("", role="status", dark=dark)
        self.costs = table_pane(dark=dark)
        self.strip: Any = TokenStrip(
            labels={english: _(english) for english in TOKEN_STRIP_LABELS},
            color_scheme="dark" if dark else "light", sizing_mode="stretch_width", margin=(4, 10),
        )  # fmt: skip
        self.explanation = text("", role="status", dark=dark)
        self.histogram = pn.pane.Plotly(None, sizing_mode="stretch_width", height=240, config={"displaylogo": False})
        self.map = pn.pane.Plotly(None, sizing_mode="stretch_width", config={"displaylogo": False})
        self.hand = HandPanel(scope, self.strip)
        self.quality = QualityPanel(scope)
        self.details = pmui.Column(
            section(_("What this budget buys"), self.dial, self.summary, self.costs),
            section(_("Bits of every token"), self.strip, self.explanation),
            visible=False, sizing_mode="stretch_width",
        )  # fmt: skip
        self.more = pmui.Column(
            section(_("By hand"), self.hand.view),
            section(_("Bits handed out"), self.histogram, self.map),
            visible=False, sizing_mode="stretch_width",
        )  # fmt: skip
        # Forms and charts take the browser seconds on a busy machine; dial and tokens are there before them.
        self.rest = pmui.Column(empty(_("Drawing the charts …"), dark=dark), sizing_mode="stretch_width")
        self.stale = StaleNote(scope, self.details)
        self.view = pmui.Column(self.empty, self.stale.view, self.details, self.rest, sizing_mode="stretch_width")
        scope.after(_CHARTS_LATER_S, self._draw_rest)
        scope.watch(self.dial, ["value"], lambda _event: scope.paced(self._take_budget))
        scope.watch(self.strip, ["focused"], lambda _event: self._explain())
        scope.watch(self.map, ["click_data"], self._choose_group)
        scope.refresh_on(["mean_bits", "planner", "scored", "plan", "planned", "signal"], self.refresh)

    def refresh(self) -> None:
        """Draw the present plan; a plan that is drawn already is left alone."""
        workbench = self._scope.workbench
        scored, plan, planned = workbench.scored, workbench.plan, workbench.planned
        known = scored is not None and plan is not None and workbench.card is not None
        self.empty.visible, self.details.visible, self.more.visible = not known, known, known
        self.dial.disabled = workbench.planner == "threshold"
        if self.dial.value != workbench.mean_bits:
            self.dial.value = workbench.mean_bits
        if not known or self._drawn == (scored, plan, planned):
            return
        self._draw_strip(scored, plan)
        self._draw_costs(plan, planned)
        self._draw_bits(plan)
        self._drawn = (scored, plan, planned)
        self.hand.refresh()
        self._explain()

    def _draw_rest(self) -> None:
        self.rest.objects = [self.more, self.quality.view]

    def _take_budget(self) -> None:
        """The dial was moved: plan at once from what is known, or in a job."""
        workbench = self._scope.workbench
        mean = round(float(self.dial.value), 3)
        if workbench.mean_bits == mean:
            return
        workbench.mean_bits = mean
        if not workbench.replan() and not workbench.is_busy:
            workbench.make_plan()

    def _draw_strip(self, scored: Any, plan: Any) -> None:
        _, workbench = self._scope.translate, self._scope.workbench
        ids = scored.scored.token_ids[0].tolist()
        special = [index for index, token_id in enumerate(ids) if token_id in scored.scored.facts.special_ids]
        parts = scored.scored.importance.parts
        signal = plan.signal if plan.signal in parts else workbench.signal
        scores = parts[signal][0].tolist() if signal in parts else []
        fields = strip_fields(
            token_bytes(workbench.card.tokenizer, ids), token_ids=ids, special=special, scores=scores,
            bits=plan.rounded_token_bits(), kept=kept_reasons(plan, _), signal=signal_names(_).get(signal, signal),
        )  # fmt: skip
        changed = {name: value for name, value in fields.items() if getattr(self.strip, name) != value}
        if "pieces" in changed:
            changed |= {"focused": -1, "span": [], "pinned": -1}
        self.strip.param.update(**changed)

    def _draw_costs(self, plan: Any, planned: Any) -> None:
        _, workbench = self._scope.translate, self._scope.workbench
        words = _("{n} tokens · asked for {asked} · planned {mean} mean bits · levels {levels}")
        self.summary.text = words.format(
            n=plan.n_tokens, asked=workbench.precision, mean=f"{planned.mean_bits:.2f}",
            levels=", ".join(map(str, planned.levels)),
        )  # fmt: skip
        shown = [planned] if plan is planned else [planned, plan]
        outlooks = [one for one in map(workbench.outlook, shown) if one is not None]
        titles = (_("the planner's plan"), _("with what was set by hand"))[: len(outlooks)]
        table = outlook_table(outlooks, titles, _).to_html(dark=self._scope.is_dark) if outlooks else ""
        self.costs.object = table

    def _draw_bits(self, plan: Any) -> None:
        _, dark = self._scope.translate, self._scope.is_dark
        words = {"title": _("Cells (layer group × token) at each bit-width"), "bits": _("bits"), "tokens": _("cells")}
        self.histogram.object = charts.bits_histogram(plan.histogram(), words, dark=dark)
        rows, step = heat_columns(plan.bits.tolist(), _MAP_COLUMNS)
        sizes = self._scope.workbench.card.sizes
        groups = sizes.names if len(rows) == len(sizes.names) else [_("all layers")]
        words = {
            "title": _("Planned bits, layer by token (click a row to choose it)"), "token": _("token"),
            "layer": _("layer"), "bits": _("bits"),
        }  # fmt: skip
        tokens = [html.escape(piece) for piece in self.strip.pieces[::step]]
        self.map.object = plan_charts.planned_map(rows, groups, tokens, words, step=step, levels=plan.levels, dark=dark)

    def _explain(self) -> None:
        _, workbench = self._scope.translate, self._scope.workbench
        token, plan, planned, scored = self.strip.focused, workbench.plan, workbench.planned, workbench.scored
        if plan is None or scored is None or not 0 <= token < plan.n_tokens:
            self.explanation.text = _("Choose a token to read why it got its bits.")
            return
        why = explain(planned, scored.scored.importance, token, self.strip.pieces[token])
        said = [explanation_sentence(why, _)]
        before, after = planned.token_mean_bits(token), plan.token_mean_bits(token)
        if token in plan.overrides:
            said.append(_("Overridden by you: {after} bits instead of {before}.").format(**_bits(before, after)))
        elif abs(after - before) > 1e-9:
            said.append(
                _("What you set elsewhere leaves it {after} bits instead of {before}.").format(**_bits(before, after))
            )
        self.explanation.text = " ".join(said)

    def _choose_group(self, event: Any) -> None:
        points = (event.new or {}).get("points") or []
        if points:
            self.hand.choose_group(str(points[0].get("y")))


def _bits(before: float, after: float) -> dict[str, str]:
    return {"before": f"{before:.3g}", "after": f"{after:.3g}"}

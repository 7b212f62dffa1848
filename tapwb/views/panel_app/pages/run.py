"""Page "Run": what comes out at the chosen bits, beside the 16-bit text, and what it cost."""

from collections.abc import Callable

import panel_material_ui as pmui

from tapwb.views import tables
from tapwb.views.panel_app.look import empty, section, table_pane, text
from tapwb.views.panel_app.scope import Scope
from tapwb.workbench import RunResult
from tapwb_widgets.token_strip_panel import AnswerDiff


class RunPage:
    """The page of one screen.

    Args:
        scope: The screen.
    """

    def __init__(self, scope: Scope) -> None:
        _, dark = scope.translate, scope.is_dark
        self._scope = scope
        self.empty = empty(
            _("Press Run to see what the model writes at the chosen bits, and what that costs."), dark=dark
        )
        self.diff = AnswerDiff(
            difference_label=_("first difference"), color_scheme="dark" if dark else "light",
            sizing_mode="stretch_width", margin=(4, 10),
        )  # fmt: skip
        self.prompt = text("", tone="quiet", dark=dark)
        self.verdict = text("", role="status", dark=dark)
        self.table = table_pane(dark=dark)
        self.notes = text("", tone="quiet", dark=dark)
        self.details = pmui.Column(
            section(_("What comes out"), self.prompt, self.diff, self.verdict),
            section(_("At what cost"), self.table, self.notes),
            visible=False, sizing_mode="stretch_width",
        )  # fmt: skip
        self.view = pmui.Column(self.empty, self.details, sizing_mode="stretch_width")
        scope.refresh_on(["run_text", "reference_text", "writing"], self.refresh_texts)
        scope.refresh_on(["run_result", "reference_result"], self.refresh_costs)

    def refresh_texts(self) -> None:
        """Draw the texts as far as they are written."""
        _, workbench = self._scope.translate, self._scope.workbench
        started = bool(workbench.run_text or workbench.writing or workbench.run_result)
        self.empty.visible, self.details.visible = not started, started
        result = workbench.run_result
        self.prompt.text = _("Prompt: {text}").format(text=result.prompt if result else workbench.prompt)
        self.diff.param.update(
            candidate=workbench.run_text,
            baseline=workbench.reference_text,
            candidate_title=result.precision if result else workbench.precision,
            baseline_title=_("16 bits (reference)") if self._has_baseline() else "",
            candidate_state=_("writing …") if workbench.writing == "candidate" else _finish(result, _),
            baseline_state=self._baseline_state(),
            compare=result is not None,
        )

    def refresh_costs(self) -> None:
        """Draw the numbers of the runs that have ended."""
        _, workbench = self._scope.translate, self._scope.workbench
        result, baseline = workbench.run_result, workbench.reference_result
        self.refresh_texts()
        metrics = [one.metrics if one else None for one in (result, baseline)]
        titles = (result.precision if result else workbench.precision, _("16 bits"))
        self.table.object = tables.run_table(metrics[0], metrics[1], titles, _).to_html(dark=self._scope.is_dark)
        self.verdict.text = _verdict(result, baseline, _) if result and baseline else ""
        self.notes.text = "\n".join(result.metrics["notes"]) if result else ""

    def _has_baseline(self) -> bool:
        workbench = self._scope.workbench
        return bool(workbench.with_reference or workbench.reference_result)

    def _baseline_state(self) -> str:
        _, workbench = self._scope.translate, self._scope.workbench
        if workbench.writing == "baseline":
            return _("writing …")
        if workbench.writing == "candidate":
            return _("comes afterwards")
        return _finish(workbench.reference_result, _)


def _finish(result: RunResult | None, _: Callable[[str], str]) -> str:
    if result is None:
        return ""
    reasons = {"stop": _("ended by itself"), "length": _("ended at the length limit"), "cancelled": _("cancelled")}
    reason = str(result.metrics["finish_reason"])
    return reasons.get(reason, reason)


def _verdict(result: RunResult, baseline: RunResult, _: Callable[[str], str]) -> str:
    if result.text == baseline.text:
        return _("Both answers are the same, letter by letter.")
    shared = next(
        (i for i, (a, b) in enumerate(zip(result.text, baseline.text, strict=False)) if a != b),
        min(len(result.text), len(baseline.text)),
    )
    return _("The answers are the same for {n} characters, then they differ (marked).").format(n=shared)

"""Page "Run": what comes out at the chosen bits, beside the 16-bit text, and what it cost."""

from collections.abc import Callable

import panel_material_ui as pmui

from tapwb.views import tables
from tapwb.views.borrowed_words import note_words
from tapwb.views.guess_words import guess_words
from tapwb.views.loss_words import loss_words
from tapwb.views.panel_app.look import empty, section, table_pane, text
from tapwb.views.panel_app.names import signal_names
from tapwb.views.panel_app.scope import Scope
from tapwb.views.quality_words import verdict_words
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
            _(
                "Nothing was run yet. Press Run: the model continues the prompt at the chosen bits and, beside it, at "
                "16 bits, with the first difference marked; below stands what each answer took."
            ),
            dark=dark,
        )
        self.speculate = pmui.Select(
            label=_("Speculation"),
            options={
                _("off: one token after the other"): "off",
                _("the low bits of the same weights guess"): "self",
                _("the text itself is looked up (n-grams)"): "ngram",
            },
            value=scope.workbench.speculate,
            size="small",
            margin=(14, 10, 4, 10),
        )
        self.one_level = text("", tone="quiet", role="note", dark=dark)
        self.guesses = text("", role="status", dark=dark)
        self.diff = AnswerDiff(
            difference_label=_("first difference"), color_scheme="dark" if dark else "light",
            sizing_mode="stretch_width", margin=(4, 10),
        )  # fmt: skip
        self.prompt = text("", tone="quiet", dark=dark)
        self.verdict = text("", role="status", dark=dark)
        self.table = table_pane(dark=dark)
        self.loss = text("", role="status", dark=dark)
        self.notes = text("", tone="quiet", dark=dark)
        self.quality = text("", role="status", dark=dark)
        self.check = pmui.Button(
            label=_("Check quality"),
            variant="outlined",
            size="small",
            margin=(4, 10),
            on_click=lambda _event: scope.workbench.check_quality(),
        )
        self.guard = pmui.Checkbox(
            label=_("after every run"), value=scope.workbench.with_guard, size="small", margin=(4, 10)
        )
        self.details = pmui.Column(
            section(_("What comes out"), self.prompt, self.diff, self.guesses, self.verdict),
            section(_("Is it still as good?"), self.quality, pmui.Row(self.check, self.guard)),
            section(_("At what cost"), self.table, self.loss, self.notes),
            visible=False, sizing_mode="stretch_width",
        )  # fmt: skip
        self.view = pmui.Column(self.speculate, self.one_level, self.empty, self.details, sizing_mode="stretch_width")
        scope.refresh_on(["run_text", "reference_text", "writing"], self.refresh_texts)
        scope.refresh_on(["run_result", "reference_result"], self.refresh_costs)
        scope.refresh_on(["guesses", "run_result", "speculate", "planner", "edited"], self.refresh_guesses)
        scope.refresh_on(["quality", "job_tick", "with_guard"], self.refresh_quality)
        scope.watch(self.speculate, ["value"], lambda event: setattr(scope.workbench, "speculate", event.new))
        scope.watch(self.guard, ["value"], lambda event: setattr(scope.workbench, "with_guard", event.new))

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
            candidate_state=self._candidate_state(),
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
        self.loss.text = self._loss(result, baseline)
        self.verdict.text = _verdict(result, baseline, _) if result and baseline else ""
        notes = [note_words(note, signal_names(_), _) for note in result.metrics["notes"]] if result else []
        if result is not None and result.n_edits:
            notes.insert(0, _("Run with {n} change(s) set by hand on the page Plan.").format(n=result.n_edits))
        self.notes.text = "\n".join(notes)

    def refresh_guesses(self) -> None:
        """Draw how many guesses stood so far and, at the end, what that brought."""
        _, workbench = self._scope.translate, self._scope.workbench
        self.speculate.value = workbench.speculate
        gives_way = workbench.speculate != "off" and (workbench.edited is not None or workbench.planner != "uniform")
        said = _("Guesses are checked at one level: the answer is written at 8 bits, not with the plan.")
        self.one_level.text = said if gives_way else ""
        self.guesses.text = guess_words(workbench.guesses, workbench.run_result, _)

    def refresh_quality(self) -> None:
        """Draw the verdict of the quality check, or what to press for one."""
        _, workbench = self._scope.translate, self._scope.workbench
        checking = workbench.is_busy and workbench.quality is None
        self.check.disabled = workbench.is_busy or workbench.run_result is None
        self.guard.value = workbench.with_guard
        if workbench.quality is not None:
            self.quality.text = verdict_words(workbench.quality, _)
        elif checking:
            self.quality.text = ""
        else:
            self.quality.text = _("Compare the chosen bits with 16 bits on this text: half a minute.")

    def _has_baseline(self) -> bool:
        workbench = self._scope.workbench
        return bool(workbench.with_reference or workbench.reference_result)

    def _loss(self, result: RunResult | None, baseline: RunResult | None) -> str:
        """Why a run needed more energy than 16 bits; empty when it did not."""
        card = self._scope.workbench.card
        if result is None or baseline is None or card is None:
            return ""
        return loss_words(result.metrics, baseline.metrics, card.device, self._scope.translate)

    def _candidate_state(self) -> str:
        _, workbench = self._scope.translate, self._scope.workbench
        if workbench.writing == "candidate":
            return _("writing …") if workbench.run_text else _("reading the prompt …")
        return _finish(workbench.run_result, _)

    def _baseline_state(self) -> str:
        _, workbench = self._scope.translate, self._scope.workbench
        if workbench.writing == "baseline":
            return _("writing …") if workbench.reference_text else _("reading the prompt …")
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

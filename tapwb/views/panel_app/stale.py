"""What is said and done about tokens that belong to an earlier prompt or to another model."""

from typing import Any

import panel_material_ui as pmui

from tapwb.core.units import format_seconds
from tapwb.views.i18n import Translate
from tapwb.views.panel_app.look import text
from tapwb.views.panel_app.scope import Scope
from tapwb.workbench import Workbench

# Both name the same property: what is left out of a later style keeps its earlier value in the browser.
_DIMMED, _BRIGHT = {"opacity": "0.45"}, {"opacity": "1"}
#: Shorter waits are over before an estimate of them is read.
_WORTH_SAYING_S = 2.0


def stale_words(workbench: Workbench, _: Translate) -> str:
    """Why the tokens on the screen are not those of the inputs; empty when they are."""
    if not workbench.is_stale:
        return ""
    if workbench.names_another:
        return _("Another model is named: load it.")
    return " ".join(filter(None, (_("The prompt has changed: score it again."), time_words(workbench, _))))


def time_words(workbench: Workbench, _: Translate) -> str:
    """How long scoring may take; empty when nothing was timed yet, or when it is soon over."""
    outlook = workbench.scoring_outlook()
    if outlook is None or outlook.time.value < _WORTH_SAYING_S:
        return ""
    words = _("About {time} for {n} tokens (estimated: {pace} tokens/s, measured on {timed} tokens).")
    return words.format(
        time=format_seconds(outlook.time.value), n=f"{outlook.n_tokens:,}", timed=f"{outlook.n_timed:,}",
        pace=f"{outlook.tokens_per_s:,.0f}" if outlook.tokens_per_s >= 100 else f"{outlook.tokens_per_s:.3g}",
    )  # fmt: skip


class StaleNote:
    """A line above results of other inputs, with the button that brings the right ones; the results are dimmed.

    Args:
        scope: The screen.
        results: What is dimmed while it is stale.
    """

    def __init__(self, scope: Scope, results: Any) -> None:
        self._scope, self._results = scope, results
        self.words = text("", role="status", dark=scope.is_dark, margin=(8, 10))
        self.again = pmui.Button(
            label="", icon="insights", variant="outlined", size="small", margin=(4, 10), on_click=self._again
        )
        self.view = pmui.Row(self.words, self.again, sizing_mode="stretch_width", visible=False)
        scope.refresh_on(["scored", "prompt", "model_id", "card", "job", "job_tick"], self.refresh)

    def refresh(self) -> None:
        """Say what is stale, if anything is."""
        _, workbench = self._scope.translate, self._scope.workbench
        said = stale_words(workbench, _)
        self.view.visible = bool(said)
        styles = _DIMMED if said else _BRIGHT
        if self._results.styles != styles:
            self._results.styles = styles
        if not said:
            return
        self.words.text = f"{_('These tokens are not those of the inputs.')} {said}"
        self.again.label = _("Load model") if workbench.names_another else _("Score again")
        self.again.disabled = workbench.is_busy or not workbench.has_prompt

    def _again(self, _event: object) -> None:
        workbench = self._scope.workbench
        (workbench.load if workbench.names_another else workbench.score)()

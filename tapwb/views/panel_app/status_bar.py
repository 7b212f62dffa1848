"""The bar at the bottom: what is being worked on, how far, how long still, what failed, and what the machine draws."""

import panel_material_ui as pmui

from tapwb.core.jobs import Job, JobState
from tapwb.core.units import format_seconds
from tapwb.views.panel_app import meters
from tapwb.views.panel_app.look import text
from tapwb.views.panel_app.names import job_name, stage_name, unit_name
from tapwb.views.panel_app.scope import Scope
from tapwb.workbench import tokens_per_s


class StatusBar:
    """Bottom bar of one screen.

    Args:
        scope: The screen.
    """

    def __init__(self, scope: Scope) -> None:
        _ = scope.translate
        self._scope = scope
        dark = scope.is_dark
        self.line = text("", role="status", dark=dark, margin=(8, 10))
        self.progress = pmui.LinearProgress(
            value=0, max=100, variant="determinate", width=160, margin=(14, 10), visible=False, label=_("progress")
        )
        self.cancel = pmui.Button(
            label=_("Cancel"), icon="stop", variant="outlined", size="small", color="error", visible=False,
            margin=(4, 8), on_click=lambda _event: scope.workbench.cancel(),
        )  # fmt: skip
        self.error = text("", tone="error", role="alert", dark=dark, margin=(6, 10))
        self.dismiss = pmui.Button(
            label=_("Dismiss"), variant="text", size="small", margin=(4, 8),
            on_click=lambda _event: scope.workbench.dismiss_error(),
        )  # fmt: skip
        self.meters = text("", tone="small", dark=dark, margin=(0, 10, 6, 10))
        self.error_row = pmui.Row(self.error, self.dismiss, sizing_mode="stretch_width", visible=False)
        self.view = pmui.Paper(
            self.error_row,
            pmui.Row(self.line, self.progress, self.cancel, sizing_mode="stretch_width"),
            self.meters,
            elevation=3, square=True, margin=0, sizing_mode="stretch_width",
            # On the host element: what is inside a shadow root cannot stick to the page.
            styles={"position": "sticky", "bottom": "0", "z-index": "5"},
        )  # fmt: skip
        scope.refresh_on(["job_tick", "error", "run_result", "reference_result"], self.refresh)

    def refresh(self) -> None:
        """Draw the present state."""
        _, workbench = self._scope.translate, self._scope.workbench
        job = workbench.busy_job()
        mine = job is not None and job is workbench.job
        self.line.text = self._words(job, mine) if job else self._rest()
        fraction = job.current.fraction if job and job.current else None
        self.progress.param.update(
            visible=job is not None,
            variant="determinate" if fraction is not None else "indeterminate",
            value=round(100 * (fraction or 0)),
        )
        self.cancel.visible = mine
        self.error_row.visible = bool(workbench.error)
        self.error.text = f"{_('Failed')}: {workbench.error}" if workbench.error else ""
        power, memory, speed = meters.POWER.read(), meters.memory(), tokens_per_s(workbench.run_result)
        read = ((_("power"), power, _("no counter")), (_("memory"), memory, ""), (_("speed"), speed, _("no run yet")))
        self.meters.text = " · ".join(f"{name}: {meters.show(one, _, missing)}" for name, one, missing in read)
        # The reasons are sentences of several instruments: they would cut the line off.
        self.meters.tip = "\n".join(f"{name}: {meters.source(one, _)}" for name, one, _missing in read)

    def _words(self, job: Job, mine: bool) -> str:
        _ = self._scope.translate
        name = job_name(job.name, _)
        if not mine:
            return _("Preparing in the background: {job}").format(job=name) + self._stage(job)
        if job.state is JobState.QUEUED:
            waiting = self._scope.workbench.queue_position()
            return _("{job}: waiting behind {n} other job(s)").format(job=name, n=waiting)
        return name + self._stage(job)

    def _stage(self, job: Job) -> str:
        _, stage = self._scope.translate, job.current
        if stage is None:
            return ""
        words = f" – {stage_name(stage.name, _)}"
        if stage.total and stage.unit != "byte":
            words += f" {stage.done}/{stage.total} {unit_name(stage.unit, _)}"
        if (eta_s := job.eta_s) is not None and eta_s >= 1:
            words += " · " + _("{time} left").format(time=format_seconds(eta_s))
        return words

    def _rest(self) -> str:
        _, job = self._scope.translate, self._scope.workbench.job
        if job is None:
            return _("Ready")
        name, took = job_name(job.name, _), format_seconds(job.elapsed_s)
        if job.state is JobState.CANCELLED:
            return _("Cancelled: {job}").format(job=name)
        if job.state is JobState.ERROR:
            return _("Failed: {job}").format(job=name)
        return _("Done: {job} in {time}").format(job=name, time=took)

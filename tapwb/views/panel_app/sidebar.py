"""The inputs that every page shares."""

import functools
from typing import Any

import panel_material_ui as pmui

from tapwb.engine.presets import preset_names as known_presets
from tapwb.models.catalog import catalog
from tapwb.views.panel_app.look import STEPPER, text
from tapwb.views.panel_app.model_field import ModelField
from tapwb.views.panel_app.names import planner_names, preset_names, signal_names
from tapwb.views.panel_app.scope import Scope
from tapwb.views.panel_app.stale import stale_words
from tapwb.workbench import ATTENTION_SIGNALS, PLANNERS, RECURRENT_SIGNALS


class Sidebar:
    """Left column of one screen.

    Args:
        scope: The screen.
    """

    def __init__(self, scope: Scope) -> None:
        _, workbench = scope.translate, scope.workbench
        self._scope = scope
        offered = dict.fromkeys((*ATTENTION_SIGNALS, *RECURRENT_SIGNALS, workbench.signal))
        signals = {signal_names(_).get(name, name): name for name in offered}
        planners = {planner_names(_)[name]: name for name in PLANNERS}
        wide: dict[str, Any] = {"sizing_mode": "stretch_width", "size": "small"}
        self.model = ModelField(
            label=_("Model"),
            options=catalog.names(),
            value=workbench.model_id,
            restrict=False,
            min_characters=0,
            **wide,
        )
        self.load = pmui.Button(label=_("Load model"), icon="download", variant="outlined", on_click=self._load, **wide)
        self.prompt = pmui.TextAreaInput.from_param(
            workbench.param.prompt,
            label=_("Prompt"),
            description="",
            rows=5,
            max_rows=12,
            auto_grow=True,
            max_length=20000,
            **wide,
        )
        starts = {_("my own settings"): ""} | {preset_names(_)[name]: name for name in known_presets()}
        self.preset = pmui.Select(label=_("Use case to start from"), options=starts, value="", **wide)
        self.signal = pmui.Select(label=_("Importance signal"), options=signals, value=workbench.signal, **wide)
        self.planner = pmui.Select(label=_("Planner"), options=planners, value=workbench.planner, **wide)
        self.budget = pmui.FloatSlider(
            label=_("Budget: mean bits"), start=4, end=8, step=0.1, value=workbench.mean_bits, **wide
        )
        self.length = pmui.IntInput(
            label=_("New tokens"), start=1, end=2048, value=workbench.max_new_tokens,
            sx=STEPPER, **wide,
        )  # fmt: skip
        self.reference = pmui.Checkbox(
            label=_("also write the 16-bit answer"), value=workbench.with_reference, size="small"
        )
        self.score = pmui.Button(
            label=_("Score tokens"),
            icon="insights",
            variant="outlined",
            on_click=lambda _event: workbench.score(),
            **wide,
        )
        self.run = pmui.Button(label=_("Run"), icon="play_arrow", variant="contained", on_click=self._run, **wide)
        self.back = pmui.Button(
            label="", icon="undo", variant="text", visible=False, on_click=lambda _event: workbench.go_back(), **wide
        )
        self.hint = text("", tone="quiet", role="note", dark=scope.is_dark)
        self.view = pmui.Column(
            self.model, self.load, self.back, self.prompt, self.preset, self.signal, self.planner, self.budget,
            self.length, self.reference, self.hint, self.score, self.run, sizing_mode="stretch_width", margin=(0, 6),
        )  # fmt: skip
        self._listen()
        scope.refresh_on(["job_tick", "job", "card", "scored", "prompt", "model_id", "planner"], self.refresh)

    def refresh(self) -> None:
        """Enable what can be done now."""
        _, workbench = self._scope.translate, self._scope.workbench
        busy, card, another = workbench.is_busy, workbench.card, workbench.names_another
        self.load.disabled = busy
        missing = self._missing()
        self.score.disabled = self.run.disabled = bool(busy or missing)
        self.signal.disabled = workbench.planner in ("uniform", "random", "oracle", "layers", "floors")
        self.budget.disabled = workbench.planner == "threshold"
        self.back.visible = another and not busy
        self.back.label = _("Back to {model}").format(model=card.info.id) if another and card is not None else ""
        if missing:
            self.hint.text = "" if busy else missing
        else:
            self.hint.text = stale_words(workbench, _)

    def _missing(self) -> str:
        """What must be there before anything can be scored or run; empty when nothing is missing."""
        _, workbench = self._scope.translate, self._scope.workbench
        if workbench.card is None:
            return _("Load a model first.")
        if workbench.names_another:
            return _("Another model is named: load it.")
        # What is typed counts before the field is left, so that the buttons never promise what would be refused.
        if not (self.prompt.value_input or "").strip():
            return _("The prompt is empty: write at least one word.")
        return ""

    def _listen(self) -> None:
        scope, workbench = self._scope, self._scope.workbench
        pairs = (
            (self.model, "value", "model_id"),
            (self.signal, "value", "signal"),
            (self.planner, "value", "planner"),
            (self.budget, "value_throttled", "mean_bits"),
            (self.length, "value", "max_new_tokens"),
            (self.reference, "value", "with_reference"),
        )
        scope.watch(self.preset, ["value"], self._start_from)
        scope.watch(self.prompt, ["value_input"], self._typed)
        for widget, source, field in pairs:
            scope.watch(widget, [source], functools.partial(self._taken, field))
        followed: dict[str, Any] = {"model_id": self.model, "mean_bits": self.budget}
        followed |= {"planner": self.planner, "with_reference": self.reference}
        for field, follower in followed.items():
            scope.watch(workbench, [field], functools.partial(_follow, follower))
        scope.watch(workbench, ["signal"], lambda _event: self._offer_signal())

    def _offer_signal(self) -> None:
        """Show the signal; one that came from a measurement is offered like the others."""
        signal = self._scope.workbench.signal
        if signal not in self.signal.options.values():
            names = signal_names(self._scope.translate)
            self.signal.options = {**self.signal.options, names.get(signal, signal): signal}
        self.signal.value = signal

    def _start_from(self, event: Any) -> None:
        if event.new:
            self._scope.workbench.apply_preset(event.new)

    def _typed(self, event: Any) -> None:
        if bool(event.new.strip()) != bool(event.old.strip()):
            self.refresh()

    def _taken(self, field: str, event: Any) -> None:
        self._take(field, event.new)

    def _take(self, field: str, value: Any) -> None:
        workbench = self._scope.workbench
        if value is None or getattr(workbench, field) == value:
            return
        if field == "model_id" and not value.strip():
            self.model.value = workbench.model_id  # an emptied field names nothing
            return
        setattr(workbench, field, value)
        if field in ("signal", "planner", "mean_bits") and not workbench.replan() and not workbench.is_busy:
            workbench.make_plan()

    def _load(self, _event: object) -> None:
        # What was typed but not yet committed counts as well.
        typed = self.model.value_input or self.model.value or ""
        self._scope.workbench.model_id = typed.strip() or self._scope.workbench.model_id
        self._scope.workbench.load()

    def _run(self, _event: object) -> None:
        self._scope.workbench.page = "run"
        self._scope.workbench.run()


def _follow(widget: Any, event: Any) -> None:
    """Show the value that something else gave to an input."""
    widget.param.update(value=event.new)

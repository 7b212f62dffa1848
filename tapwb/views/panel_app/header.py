"""The top bar: which model, what state, which language, light or dark, the link to share, and help."""

from collections.abc import Callable

import panel as pn
import panel_material_ui as pmui

from tapwb.core.units import format_bytes
from tapwb.views.i18n import LANGUAGES
from tapwb.views.panel_app.address import share_query
from tapwb.views.panel_app.look import text
from tapwb.views.panel_app.scope import Scope


class Header:
    """Top bar of one screen.

    Args:
        scope: The screen.
        base_url: Address of the page without its query, for the link to share.
    """

    def __init__(self, scope: Scope, base_url: str) -> None:
        _, workbench = scope.translate, scope.workbench
        self._scope, self._base_url = scope, base_url
        on_bar = {"sx": {"color": "inherit"}, "margin": (0, 4), "align": "center"}
        self.model = pmui.Chip(
            label="", icon="memory", variant="outlined", sx={"color": "inherit"}, margin=(0, 4, 0, 12), align="center"
        )
        self.state = pmui.Chip(
            label="", variant="outlined", sx={"color": "inherit"}, margin=(0, 4, 0, 12), align="center"
        )
        self.language = pmui.RadioButtonGroup(
            label="", options={words: code for code, words in LANGUAGES.items()}, value=workbench.lang,
            size="small", margin=(0, 8), align="center", sx={"& .MuiToggleButton-root, & button": {"color": "inherit"}},
        )  # fmt: skip
        self.theme = pmui.IconButton(
            icon="light_mode" if scope.is_dark else "dark_mode",
            description=_("Light colours") if scope.is_dark else _("Dark colours"),
            on_click=self._turn, **on_bar,
        )  # fmt: skip
        self.share = pmui.IconButton(
            icon="share", description=_("Link to this view"), on_click=self._open_share, **on_bar
        )
        self.help = pmui.IconButton(icon="help_outline", description=_("Help"), on_click=self._open_help, **on_bar)
        self.link = pmui.TextInput(label=_("Link"), value="", sizing_mode="stretch_width")
        self.share_dialog = pmui.Dialog(
            text(_("Whoever opens this link on this machine sees the same page and settings."), dark=scope.is_dark),
            self.link,
            title=_("Link to this view"), show_close_button=True, close_on_click=True, width_option="sm",
        )  # fmt: skip
        self.help_dialog = pmui.Dialog(
            *(text(words, dark=scope.is_dark) for words in _help(_, scope)),
            title=_("Help"), show_close_button=True, close_on_click=True, width_option="sm",
        )  # fmt: skip
        # One row: what is loaded on the left, the controls on the right.
        bar = (self.model, self.state, pn.layout.HSpacer(), self.language, self.theme, self.share, self.help)
        self.objects = [pmui.Row(*bar, sizing_mode="stretch_width", align="center")]
        #: Dialogs take room even while closed, so they live under the page and not in the bar.
        self.dialogs = [self.share_dialog, self.help_dialog]
        scope.watch(self.language, ["value"], lambda event: workbench.param.update(lang=event.new))
        scope.refresh_on(["card", "job_tick", "job"], self.refresh)

    def refresh(self) -> None:
        """Name the model and the state."""
        _, workbench = self._scope.translate, self._scope.workbench
        card = workbench.card
        if card is None:
            self.model.label = _("no model loaded")
        else:
            stored = _("nested, {low} to {high} bits").format(low=min(card.levels), high=max(card.levels))
            size = format_bytes(card.weights_bytes.value)
            self.model.label = f"{card.info.title} · {stored} · {size} · {card.device}"
        if workbench.busy_job() is None:
            self.state.label = _("idle")
        elif workbench.is_busy:
            self.state.label = _("working")
        else:
            self.state.label = _("preparing")

    def _turn(self, _event: object) -> None:
        workbench = self._scope.workbench
        workbench.theme = "light" if workbench.theme == "dark" else "dark"

    def _open_share(self, _event: object) -> None:
        self.link.value = self._base_url + share_query(self._scope.workbench)
        self.share_dialog.open = True

    def _open_help(self, _event: object) -> None:
        self.help_dialog.open = True


def _help(_: Callable[[str], str], scope: Scope) -> list[str]:
    del scope
    return [
        _("Every token of the prompt gets a score of importance, and bits by that score within the budget."),
        _("Tint: importance. Underline and small number: bits. A pale token costs less when it is read roughly."),
        _("Keys on the tokens: arrows move, Home and End jump, Shift extends, Enter pins the details, Escape clears."),
        _("Every number says whether it was measured or estimated; what cannot be measured here says why."),
        _("Cancel stops a job at its next step. Nothing you type leaves this machine."),
    ]

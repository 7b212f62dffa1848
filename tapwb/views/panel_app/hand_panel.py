"""Bits set by hand: for the selected tokens and for layers, with undo, redo, reset, export and import."""

import io
import json
from typing import Any

import panel_material_ui as pmui

from tapwb.plan.history import EditHistory
from tapwb.plan.overrides import RULES, PlanEdit
from tapwb.views.borrowed_words import role_words
from tapwb.views.panel_app.keys import UndoKeys
from tapwb.views.panel_app.look import download, text
from tapwb.views.panel_app.names import rule_names
from tapwb.views.panel_app.plan_tables import edit_rows
from tapwb.views.panel_app.scope import Scope
from tapwb_widgets.static_html import visible
from tapwb_widgets.token_strip_panel import DataTable

_ALL = -1


class HandPanel:
    """Controls of one screen.

    Args:
        scope: The screen.
        strip: The token strip whose selection is edited.
    """

    def __init__(self, scope: Scope, strip: Any) -> None:
        _, dark = scope.translate, scope.is_dark
        self._scope, self._strip = scope, strip
        small: dict[str, Any] = {"size": "small", "margin": (6, 6)}
        rules = {rule_names(_)[rule]: rule for rule in RULES}
        self.rule = pmui.Select(label=_("How"), options=rules, value="exactly", width=130, **small)
        self.bits = pmui.Select(label=_("Bits"), options=[8], value=8, width=90, **small)
        self.set_tokens = pmui.Button(
            label=_("Set the selected tokens"), variant="outlined", on_click=self._edit_tokens, **small
        )
        self.layer = pmui.Select(label=_("Layer"), options={_("all layers"): _ALL}, value=_ALL, width=140, **small)
        self.role = pmui.Select(label=_("Matrices"), options={_("all matrices"): ""}, value="", width=170, **small)
        self.set_layers = pmui.Button(
            label=_("Set these layers"), variant="outlined", on_click=self._edit_layers, **small
        )
        self.selection = text("", role="status", dark=dark)
        self.mean = pmui.RadioButtonGroup(
            label=_("Mean bits"), options={_("keep the mean"): True, _("let the mean move"): False},
            value=scope.workbench.keep_mean, sx={"& button": {"whiteSpace": "nowrap"}}, **small,
        )  # fmt: skip
        self.means = text("", tone="quiet", role="status", dark=dark)
        self.undo, self.redo, self.reset = (
            pmui.Button(label=label, icon=icon, variant="outlined", disabled=True, on_click=click, **small)
            for label, icon, click in (
                (_("Undo"), "undo", lambda _event: scope.workbench.undo()),
                (_("Redo"), "redo", lambda _event: scope.workbench.redo()),
                (_("Reset"), "restart_alt", lambda _event: scope.workbench.reset_edits()),
            )
        )
        self.export = download(_("Export plan"), "plan.json", self._exported)
        self.load = pmui.FileInput(label=_("Import plan"), accept=".json", variant="outlined", **small)
        self.list: Any = DataTable(
            columns=[_("What"), _("How"), _("Bits")], numbers=[2], label=_("Set by hand"),
            empty=_("Nothing was set by hand."), color_scheme="dark" if dark else "light",
            sizing_mode="stretch_width", margin=(4, 10),
        )  # fmt: skip
        self.keys = UndoKeys(active=False, width=0, height=0, margin=0)
        how_to = _(
            "Select tokens above (Shift extends), choose bits, and set them. Ctrl+Z takes back, Ctrl+Shift+Z repeats. "
            "tapwb run --precision plan:FILE runs an exported plan on the same prompt."
        )
        row: dict[str, Any] = {"sizing_mode": "stretch_width", "align": "end"}
        self.view = pmui.Column(
            text(how_to, tone="quiet", dark=dark),
            self.selection,
            pmui.FlexBox(self.rule, self.bits, self.set_tokens, self.layer, self.role, self.set_layers, **row),
            pmui.FlexBox(self.mean, self.undo, self.redo, self.reset, self.export, self.load, **row),
            self.means, self.list, self.keys, sizing_mode="stretch_width",
        )  # fmt: skip
        self._listen()
        scope.refresh_on(["card", "history", "imported", "keep_mean", "edited", "plan", "page"], self.refresh)

    def refresh(self) -> None:
        """Draw what can be set, and what was."""
        workbench = self._scope.workbench
        self.keys.active = workbench.page == "plan"
        if workbench.card is None or workbench.plan is None:
            return
        self._offer(workbench.card)
        history = workbench.history or EditHistory()
        self.undo.disabled, self.redo.disabled = not history.can_undo, not history.can_redo
        self.reset.disabled = not history.edits and workbench.imported is None
        self.mean.value = workbench.keep_mean
        _ = self._scope.translate
        pieces = [visible(piece) for piece in self._strip.pieces]
        self.list.param.update(rows=edit_rows(history.edits, workbench.card.sizes, pieces, _))
        self.show_selection()
        edited = workbench.edited
        if edited is None or not edited.edits:
            self.means.text = "" if workbench.imported is None else self._imported(workbench.imported[0])
            return
        words = _("planner's mean {base} bits · kept: {kept} · moving: {moved}")
        said = [words.format(**_means(edited)), *(note for note in edited.plan.notes if "cannot be kept" in note)]
        if workbench.imported is not None:
            said.insert(0, self._imported(workbench.imported[0]))
        self.means.text = "\n".join(said)

    def show_selection(self) -> None:
        """Say which tokens a click would set."""
        _, span = self._scope.translate, self._strip.span
        if not span:
            self.selection.text = _("No token is selected.")
        elif span[0] == span[1]:
            self.selection.text = _("Selected: token {index}").format(index=span[0])
        else:
            self.selection.text = _("Selected: tokens {first} to {last}").format(first=span[0], last=span[1])
        self.set_tokens.disabled = not span

    def choose_group(self, name: str) -> None:
        """Choose the layer and the matrices of one group, by its name."""
        sizes = self._scope.workbench.card.sizes
        if name in sizes.names:
            index = sizes.names.index(name)
            self.layer.value, self.role.value = sizes.layers[index], sizes.roles[index]

    def _imported(self, name: str) -> str:
        _ = self._scope.translate
        return _("This plan was read from {name}; a new budget or Reset goes back.").format(name=name)

    def _offer(self, card: Any) -> None:
        _ = self._scope.translate
        if list(self.bits.options) != list(card.levels):
            self.bits.param.update(options=list(card.levels), value=max(card.levels))
        layers = {_("all layers"): _ALL} | {_("layer {n}").format(n=n): n for n in sorted(set(card.sizes.layers))}
        if self.layer.options != layers:
            roles = {_("all matrices"): ""} | {role_words(role, _): role for role in sorted(set(card.sizes.roles))}
            self.layer.param.update(options=layers, value=_ALL)
            self.role.param.update(options=roles, value="")

    def _edit_tokens(self, _event: object) -> None:
        span = self._strip.span
        if span:
            tokens = tuple(range(span[0], span[1] + 1))
            self._scope.workbench.edit(PlanEdit("tokens", tokens, int(self.bits.value), self.rule.value))

    def _edit_layers(self, _event: object) -> None:
        workbench = self._scope.workbench
        if workbench.card is None:
            return
        layer = None if self.layer.value == _ALL else self.layer.value
        groups = workbench.card.sizes.where(layer, self.role.value or None)
        if groups:
            workbench.edit(PlanEdit("layers", groups, int(self.bits.value), self.rule.value))
        else:
            _ = self._scope.translate
            workbench.error = _("This layer has no such matrices. Choose others.")

    def _exported(self) -> io.BytesIO:
        plan = self._scope.workbench.plan
        return io.BytesIO(b"" if plan is None else json.dumps(plan.to_json(), ensure_ascii=False).encode())

    def _listen(self) -> None:
        scope = self._scope
        scope.watch(self._strip, ["span"], lambda _event: self.show_selection())
        scope.watch(self.mean, ["value"], self._take_mean)
        scope.watch(self.load, ["value"], self._import)
        scope.watch(self.keys, ["pressed"], self._press)

    def _take_mean(self, event: Any) -> None:
        if event.new != self._scope.workbench.keep_mean:
            self._scope.workbench.set_keep_mean(event.new)

    def _import(self, event: Any) -> None:
        if event.new:
            content, name = bytes(event.new).decode("utf-8", errors="replace"), str(self.load.filename or "plan.json")
            self._scope.workbench.import_plan(content, name)

    def _press(self, event: Any) -> None:
        workbench = self._scope.workbench
        if workbench.page == "plan":
            (workbench.undo if event.new.startswith("undo") else workbench.redo)()


def _means(edited: Any) -> dict[str, str]:
    return {
        "base": f"{edited.base.mean_bits:.2f}",
        "kept": f"{edited.kept.mean_bits:.2f}",
        "moved": f"{edited.moved.mean_bits:.2f}",
    }

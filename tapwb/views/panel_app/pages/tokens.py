"""Page "Tokens": which tokens matter, and how many bits does each one get."""

import html
from collections import Counter
from typing import Any

import panel as pn
import panel_material_ui as pmui

from tapwb.core.precision import NO_SIGNAL
from tapwb.plan.explain import TokenExplanation, explain
from tapwb.views import charts, tables
from tapwb.views.panel_app.look import empty, section, table_pane, text
from tapwb.views.panel_app.names import floor_name, kept_reasons, signal_names, signal_short_names
from tapwb.views.panel_app.scope import Scope
from tapwb.views.panel_app.stale import StaleNote
from tapwb.views.payloads import heat_columns, strip_fields, token_bytes
from tapwb_widgets.schema import TOKEN_STRIP_LABELS
from tapwb_widgets.static_html import visible
from tapwb_widgets.token_strip_panel import DataTable, TokenStrip

_TOP = 20
_HEAT_COLUMNS = 256


class TokensPage:
    """The page of one screen.

    Args:
        scope: The screen.
    """

    def __init__(self, scope: Scope) -> None:
        _, dark = scope.translate, scope.is_dark
        self._scope = scope
        self._drawn: tuple[Any, ...] = ()
        self.strip: Any = TokenStrip(
            labels={english: _(english) for english in TOKEN_STRIP_LABELS},
            color_scheme="dark" if dark else "light", sizing_mode="stretch_width", margin=(4, 10),
        )  # fmt: skip
        self.empty = empty(_("Load a model and score the prompt to see its tokens."), dark=dark)
        self.granularity = pmui.RadioButtonGroup(
            label=_("Show by"),
            options={_("token"): "token", _("word"): "word", _("line"): "line"},
            value="token",
            size="small",
            sx={"& button": {"whiteSpace": "nowrap"}},
        )
        self.gamma = pmui.FloatSlider(
            label=_("Strength of the tint"), start=0.3, end=3.0, step=0.1, value=1.0, width=220, size="small"
        )
        self.blanks = pmui.Checkbox(label=_("show blanks"), value=True, size="small")
        self.summary = text("", tone="quiet", dark=dark)
        self.explanation = text("", role="status", dark=dark)
        self.top: Any = DataTable(
            columns=[_("No. (from 0)"), _("Token"), _("Importance"), _("Bits"), _("Kept")], numbers=[0, 2, 3],
            label=_("Most important tokens"), color_scheme="dark" if dark else "light",
            sizing_mode="stretch_width", margin=(4, 10),
        )  # fmt: skip
        self.heat = pn.pane.Plotly(None, sizing_mode="stretch_width", height=380, config={"displaylogo": False})
        self.histogram = pn.pane.Plotly(None, sizing_mode="stretch_width", height=240, config={"displaylogo": False})
        self.correlation = table_pane(dark=dark)
        self.details = pmui.Column(
            section(
                _("Importance and bits of every token"),
                pmui.Row(self.granularity, self.gamma, self.blanks, sizing_mode="stretch_width"),
                self.strip, self.summary, self.explanation,
            ),
            pmui.Row(
                section(_("Most important tokens"), self.top),
                section(_("Bits handed out"), self.histogram),
                sizing_mode="stretch_width",
            ),
            section(_("Layer by layer"), self.heat),
            section(_("Signals side by side"), self.correlation),
            visible=False, sizing_mode="stretch_width",
        )  # fmt: skip
        self.stale = StaleNote(scope, self.details)
        self.view = pmui.Column(self.empty, self.stale.view, self.details, sizing_mode="stretch_width")
        self._listen()
        scope.refresh_on(["scored", "plan", "signal", "planner"], self.refresh)

    def refresh(self) -> None:
        """Draw the present scores and plan."""
        workbench = self._scope.workbench
        scored, plan = workbench.scored, workbench.plan
        if scored is None or workbench.card is None:
            self.empty.visible, self.details.visible = scored is None, scored is not None
            return
        signal = self._signal()
        fresh = not self._drawn or self._drawn[0] is not scored
        if fresh or self._drawn[1:] != (id(plan), signal):
            self._strip(scored, plan, signal)
            self._top()
        if fresh:
            self._heat(scored)
            self._correlation(scored)
        self._bits(plan)
        self._drawn = (scored, id(plan), signal)
        self._explain()
        self.empty.visible, self.details.visible = False, True

    def _signal(self) -> str:
        """The signal whose scores are shown: the one that decides, where one does."""
        workbench = self._scope.workbench
        wanted = "oracle" if workbench.planner == "oracle" else workbench.signal
        return wanted if wanted in workbench.scored.signals else workbench.scored.signals[0]

    def _strip(self, scored: Any, plan: Any, signal: str) -> None:
        _, card = self._scope.translate, self._scope.workbench.card
        ids = scored.scored.token_ids[0].tolist()
        special = [index for index, token_id in enumerate(ids) if token_id in scored.scored.facts.special_ids]
        is_planned = plan is not None and plan.n_tokens == len(ids)
        bits, kept = (plan.rounded_token_bits(), kept_reasons(plan, _)) if is_planned else ([], [])
        fields = strip_fields(
            token_bytes(card.tokenizer, ids), token_ids=ids, special=special, bits=bits, kept=kept,
            scores=scored.scored.importance.parts[signal][0].tolist(), signal=signal_names(_).get(signal, signal),
        )  # fmt: skip
        changed = {name: value for name, value in fields.items() if getattr(self.strip, name) != value}
        if "pieces" in changed:
            changed |= {"focused": -1, "span": [], "pinned": -1}
        self.strip.param.update(**changed)
        words = _("{n} tokens · mean {mean} bits (plan) · scored by {signal} in {time} s (measured: wall-clock)")
        self.summary.text = words.format(
            n=len(ids), mean=f"{plan.mean_bits:.2f}" if plan else "–", signal=signal_names(_).get(signal, signal),
            time=f"{scored.scored.elapsed_s:.2g}",
        )  # fmt: skip

    def _top(self) -> None:
        strip = self.strip
        order = sorted(range(len(strip.scores)), key=lambda token: -strip.scores[token])[:_TOP]
        bits = [str(strip.bits[token]) if strip.bits else "–" for token in order]
        kept = [strip.kept[token] if strip.kept else "" for token in order]
        self.top.rows = [
            [str(token), visible(strip.pieces[token]), f"{strip.scores[token]:.2f}", bits[place], kept[place]]
            for place, token in enumerate(order)
        ]
        self._mark_top()

    def _mark_top(self) -> None:
        """The row of the token that is chosen in the strip, if it has one."""
        places = [row[0] for row in self.top.rows]
        chosen = str(self.strip.focused)
        self.top.selected = places.index(chosen) if chosen in places else -1

    def _heat(self, scored: Any) -> None:
        _ = self._scope.translate
        norms = scored.scored.facts.hidden_norms
        if norms is None:
            self.heat.object = None
            return
        rows, step = heat_columns(norms[:, 0].clamp_min(1e-9).log10().tolist(), _HEAT_COLUMNS)
        words = {
            "title": _("Size of the hidden state, layer by token (log10 of the norm)"),
            "token": _("token"), "layer": _("layer"), "value": _("log10 of the norm"),
        }  # fmt: skip
        tokens = [html.escape(piece) for piece in self.strip.pieces[::step]]
        self.heat.object = charts.layer_token_map(rows, tokens, words, step=step, dark=self._scope.is_dark)

    def _correlation(self, scored: Any) -> None:
        _ = self._scope.translate
        table = tables.correlation_table(scored.scored.importance, signal_short_names(_), _)
        self.correlation.object = table.to_html(dark=self._scope.is_dark)

    def _bits(self, plan: Any) -> None:
        _ = self._scope.translate
        if plan is None:
            self.histogram.object = None
            return
        counts = Counter(plan.bits.flatten().tolist())
        words = {"title": _("Tokens at each bit-width"), "bits": _("bits"), "tokens": _("tokens")}
        self.histogram.object = charts.bits_histogram(counts, words, dark=self._scope.is_dark)

    def _explain(self) -> None:
        _, workbench = self._scope.translate, self._scope.workbench
        token, plan, scored = self.strip.focused, workbench.plan, workbench.scored
        if plan is None or scored is None or not 0 <= token < plan.n_tokens:
            self.explanation.text = _("Choose a token to read why it got its bits.")
            return
        why = explain(plan, scored.scored.importance, token, self.strip.pieces[token])
        self.explanation.text = explanation_sentence(why, _)

    def _listen(self) -> None:
        scope, strip = self._scope, self.strip
        scope.watch(self.granularity, ["value"], lambda event: strip.param.update(granularity=event.new))
        scope.watch(self.gamma, ["value_throttled"], lambda event: strip.param.update(gamma=event.new))
        scope.watch(self.blanks, ["value"], lambda event: strip.param.update(show_whitespace=event.new))
        scope.watch(strip, ["focused"], self._follow_strip)
        scope.watch(self.top, ["selected"], self._from_table)

    def _follow_strip(self, _event: Any) -> None:
        self._explain()
        self._mark_top()

    def _from_table(self, event: Any) -> None:
        if not 0 <= event.new < len(self.top.rows):
            return
        token = int(self.top.rows[event.new][0])
        if token != self.strip.focused:
            self.strip.param.update(focused=token, span=[token, token], pinned=token)


def _bits_words(bits: tuple[int, ...]) -> str:
    """Bits over the layer groups: each where there are few, else from the least to the most."""
    different = sorted(set(bits))
    return str(different[0]) if len(different) == 1 else f"{different[0]}–{different[-1]}"


def explanation_sentence(why: TokenExplanation, _: Any) -> str:
    """Why a token got its bits, in the reader's language."""
    values = {
        "index": why.index, "text": why.text, "bits": _bits_words(why.bits),
        "signal": signal_names(_).get(why.signal, why.signal), "rank": why.rank, "n": why.n_tokens,
        "score": "–" if why.score is None else f"{why.score:.2f}",
    }  # fmt: skip
    if why.signal == NO_SIGNAL:
        words = _("Token {index} “{text}” gets {bits} bits, like every token without a protection.")
    elif why.planner == "uniform":
        words = _("Token {index} “{text}” gets {bits} bits, like every token.")
    elif why.score is None:
        words = _("Token {index} “{text}” gets {bits} bits from a plan on “{signal}”, whose scores are not shown here.")
    else:
        words = _("Token {index} “{text}” gets {bits} bits: its score by “{signal}” is {score}, rank {rank} of {n}.")
    sentence = words.format(**values)
    if why.floor is not None:
        sentence += " " + _("It is protected ({reason}): at least {bits} bits.").format(
            reason=floor_name(why.floor[0], _), bits=why.floor[1]
        )
    if why.up is not None and why.up.damage_factor != 1:
        sentence += " " + _(
            "{bits} bits would cost {cost} mean bits and leave {left} of its expected damage (estimated)."
        ).format(bits=why.up.bits, cost=f"{why.up.mean_bits_change:+.3f}", left=f"{100 * why.up.damage_factor:.2g} %")
    return sentence

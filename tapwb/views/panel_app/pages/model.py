"""Page "Model": what is it made of, what does it weigh at each precision, and which cards hold it."""

import panel_material_ui as pmui

from tapwb.core.units import format_bytes, format_count
from tapwb.evals.decode_bench import kept_comparison
from tapwb.models.catalog import catalog
from tapwb.models.memory import free_memory_bytes
from tapwb.plan.capacity import fit_rows
from tapwb.views import tables
from tapwb.views.borrowed_words import format_words
from tapwb.views.panel_app.look import empty, section, table_pane, text
from tapwb.views.panel_app.scope import Scope
from tapwb.views.speed_table import speed_caption, speed_table
from tapwb.workbench import ModelCard

_FORMATS = ("bf16", "tap8", "tap4")
_CONTEXTS = (512, 2048, 8192, 32768, 131072)


class ModelPage:
    """The page of one screen.

    Args:
        scope: The screen.
    """

    def __init__(self, scope: Scope) -> None:
        _, dark = scope.translate, scope.is_dark
        self._scope = scope
        self.facts = text("", dark=dark)
        self.room = text("", tone="quiet", dark=dark)
        self.empty = empty(_("Load a model to see what it is made of and which cards hold it."), dark=dark)
        self.bytes, self.parts, self.memory, self.fit, self.speed = (table_pane(dark=dark) for _i in range(5))
        self.speed_note = text("", tone="quiet", dark=dark)
        self.beside = section(_("How fast beside other programs"), self.speed, self.speed_note)
        self.context = pmui.Select(
            label=_("Length of the text, tokens"),
            options={f"{n:,}": n for n in _CONTEXTS},
            value=2048,
            size="small",
            width=240,
        )
        self.fit_note = text(
            _("✓ the card holds it, ✗ it does not. tap8 and tap4 store nested weights with planes up to 8 or 4 bits."),
            tone="quiet", dark=dark,
        )  # fmt: skip
        self.details = pmui.Column(
            section(_("What it weighs"), self.bytes),
            section(_("What it is made of"), self.parts, self.memory),
            section(_("Does it fit?"), self.context, self.fit, self.fit_note),
            self.beside,
            visible=False, sizing_mode="stretch_width",
        )  # fmt: skip
        self.view = pmui.Column(
            self.facts, self.room, self.empty, self.details, sizing_mode="stretch_width", margin=(0, 10)
        )
        scope.watch(self.context, ["value"], lambda _event: self.refresh())
        scope.refresh_on(["card", "model_id", "mean_bits"], self.refresh)

    def refresh(self) -> None:
        """Draw the present model."""
        workbench = self._scope.workbench
        card = workbench.card
        self.empty.visible, self.details.visible = card is None, card is not None
        self.room.text = self._room(workbench.model_id)
        self.room.visible = card is None or card.info.id != workbench.model_id
        self.facts.text = "" if card is None else self._facts(card)
        if card is not None:
            self._tables(card, workbench.mean_bits)

    def _tables(self, card: ModelCard, mean_bits: float) -> None:
        _, dark = self._scope.translate, self._scope.is_dark
        n_tokens = self.context.value
        self.bytes.object = tables.bytes_table(card.anatomy, mean_bits, card.weights_bytes, _).to_html(dark=dark)
        self.parts.object = tables.parts_table(card.anatomy, _).to_html(dark=dark)
        self.memory.object = tables.memory_table(card.anatomy, n_tokens, _).to_html(dark=dark)
        rows = fit_rows(card.anatomy, context_tokens=n_tokens, formats=_FORMATS)
        self.fit.object = tables.fit_table(rows, _FORMATS, _).to_html(dark=dark)
        compared = kept_comparison(card.info.checksum_sha256)
        self.beside.visible = compared is not None
        if compared is not None:
            self.speed.object = speed_table(compared, _).to_html(dark=dark)
            self.speed_note.text = speed_caption(compared, _)

    def _facts(self, card: ModelCard) -> str:
        _, anatomy, info = self._scope.translate, card.anatomy, card.info
        parts = [
            info.title,
            _("{n} parameters").format(n=format_count(anatomy.n_parameters)),
            _("{n} layers, {width} wide").format(n=anatomy.n_layers, width=anatomy.hidden_size),
            _("vocabulary of {n}").format(n=f"{anatomy.vocab_size:,}"),
            _("context of {n} tokens").format(n=f"{anatomy.context_length:,}")
            if anatomy.context_length
            else _("no context limit"),
            _("licence {name}").format(name=info.licence),
            _("weights from {source}, revision {revision}").format(source=info.source, revision=info.revision),
        ]
        if info.quantized_before:
            parts.append(
                _("these weights were already quantized once ({format})").format(
                    format=format_words(info.quantized_before, _)
                )
            )
        return " · ".join(parts)

    def _room(self, model_id: str) -> str:
        """The memory check, before anything is loaded."""
        _ = self._scope.translate
        free = format_bytes(free_memory_bytes("cpu"))
        n_parameters = catalog[model_id].n_parameters if model_id in catalog else 0
        if not n_parameters:
            return _("{model}: its size is known once it is found; {free} of memory are free (measured).").format(
                model=model_id, free=free
            )
        return _(
            "{model}: loading takes about {needed} (estimated: 4 bytes per parameter); {free} are free (measured)."
        ).format(model=model_id, needed=format_bytes(4 * n_parameters), free=free)

"""The widgets as notebooks know them: ``anywidget`` classes made from the field table, with a static form beside."""

from collections.abc import Mapping
from typing import Any

import anywidget
import traitlets

from tapwb_widgets.schema import ANSWER_DIFF, DATA_TABLE, STATIC, TOKEN_STRIP, Field
from tapwb_widgets.static_html import static_diff_html, static_html, static_table_html
from tapwb_widgets.styles import widget_css

_TRAITS = {
    list: traitlets.List,
    dict: traitlets.Dict,
    str: traitlets.Unicode,
    int: traitlets.Int,
    float: traitlets.Float,
    bool: traitlets.Bool,
}


def _traits(fields: tuple[Field, ...]) -> dict[str, Any]:
    return {f.name: _TRAITS[f.kind](f.default, help=f.meaning).tag(sync=True) for f in fields}


class _Static(anywidget.AnyWidget):
    """A widget that also shows where no kernel runs: its mime bundle carries plain HTML."""

    def fields(self) -> dict[str, Any]:
        """Present value of every shared field."""
        raise NotImplementedError

    def to_html(self) -> str:
        """The widget as it looks now, as HTML that needs no script and no network."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        live = super()._repr_mimebundle_(**kwargs)
        bundle, metadata = live if isinstance(live, tuple) else (live, {})
        return {**(bundle or {}), "text/html": self.to_html()}, metadata


class TokenStrip(_Static):
    """Tokens with their importance (tint) and bits (underline, small number); fields as in ``schema.TOKEN_STRIP``.

    ``strip.span`` and ``strip.focused`` follow what the reader selects.
    """

    _esm = STATIC / "token_strip.js"
    _css = widget_css("token_strip")
    locals().update(_traits(TOKEN_STRIP))

    def fields(self) -> dict[str, Any]:
        """Present value of every shared field."""
        return {f.name: getattr(self, f.name) for f in TOKEN_STRIP}

    def to_html(self) -> str:
        """The strip as static HTML."""
        return static_html(self.fields())


class AnswerDiff(_Static):
    """Two texts beside each other with the first difference marked; fields as in ``schema.ANSWER_DIFF``."""

    _esm = STATIC / "answer_diff.js"
    _css = widget_css("answer_diff")
    locals().update(_traits(ANSWER_DIFF))

    def fields(self) -> dict[str, Any]:
        """Present value of every shared field."""
        return {f.name: getattr(self, f.name) for f in ANSWER_DIFF}

    def to_html(self) -> str:
        """Both texts as static HTML."""
        return static_diff_html(self.fields())


class DataTable(_Static):
    """Rows of text, sorted by their headings, one selected; fields as in ``schema.DATA_TABLE``."""

    _esm = STATIC / "data_table.js"
    _css = widget_css("data_table")
    locals().update(_traits(DATA_TABLE))

    def fields(self) -> dict[str, Any]:
        """Present value of every shared field."""
        return {f.name: getattr(self, f.name) for f in DATA_TABLE}

    def to_html(self) -> str:
        """The table as static HTML."""
        return static_table_html(self.fields())


def token_strip(fields: Mapping[str, Any]) -> TokenStrip:
    """A strip showing ``fields`` (from ``tapwb.views.payloads.strip_fields``)."""
    return TokenStrip(**fields)

"""The widgets as the dashboard knows them: Panel components made from the same field table and the same ES modules.

They are native components, never notebook widgets wrapped by Panel: that road asks a public server for its script.
"""

from typing import Any

import param
from panel.custom import AnyWidgetComponent

from tapwb_widgets.schema import ANSWER_DIFF, DATA_TABLE, STATIC, TOKEN_STRIP, Field
from tapwb_widgets.styles import widget_css

_PARAMETERS = {
    list: param.List,
    dict: param.Dict,
    str: param.String,
    int: param.Integer,
    float: param.Number,
    bool: param.Boolean,
}


def _parameters(fields: tuple[Field, ...]) -> dict[str, Any]:
    return {f.name: _PARAMETERS[f.kind](default=f.default, doc=f.meaning) for f in fields}


class TokenStrip(AnyWidgetComponent):
    """Tokens with their importance and bits; parameters as in ``schema.TOKEN_STRIP``."""

    _esm = STATIC / "token_strip.js"
    _stylesheets = [widget_css("token_strip", with_font=False)]  # noqa: RUF012 - Panel reads this class attribute
    locals().update(_parameters(TOKEN_STRIP))


class AnswerDiff(AnyWidgetComponent):
    """Two texts beside each other; parameters as in ``schema.ANSWER_DIFF``."""

    _esm = STATIC / "answer_diff.js"
    _stylesheets = [widget_css("answer_diff", with_font=False)]  # noqa: RUF012 - Panel reads this class attribute
    locals().update(_parameters(ANSWER_DIFF))


class DataTable(AnyWidgetComponent):
    """Rows of text, sorted by their headings, one selected; parameters as in ``schema.DATA_TABLE``."""

    _esm = STATIC / "data_table.js"
    _stylesheets = [widget_css("data_table", with_font=False)]  # noqa: RUF012 - Panel reads this class attribute
    locals().update(_parameters(DATA_TABLE))

"""The widgets without a script: what a report, a PDF and an offline reader see.

Everything that comes from a model or a user is escaped here, in one place, by :func:`_safe`.
"""

import html
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from tapwb_widgets.palette import N_STEPS, step_of
from tapwb_widgets.schema import ANSWER_DIFF, DATA_TABLE, TOKEN_STRIP, defaults
from tapwb_widgets.styles import widget_css

_SIGNS = {" ": "␣", "\n": "↵", "\t": "⇥"}
# Characters that draw nothing or reorder their neighbours; the same list as in token_strip.js.
_CONTROLS = (
    *range(0x00, 0x20), *range(0x7F, 0xA0), 0xAD, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), 0x2028, 0x2029,
    0x2060, *range(0x2066, 0x206A), 0xFEFF,
)  # fmt: skip
_TABLE = {code: f"<U+{code:04X}>" for code in _CONTROLS}


def visible(text: str, *, show_blanks: bool = True) -> str:
    """A piece of text as drawn: blanks, line ends and invisible characters become visible signs."""
    signs = _SIGNS if show_blanks else {" ": "\u00a0", "\n": "", "\t": "\u2003"}
    return text.translate(_TABLE | {ord(sign): shown for sign, shown in signs.items()})


def static_html(fields: Mapping[str, Any]) -> str:
    """The token strip as HTML that needs no script and no network.

    Args:
        fields: Values of ``schema.TOKEN_STRIP``; missing ones take their default.

    Raises:
        ValueError: If scores or bits do not cover the tokens (a programming error).
    """
    values = {**defaults(TOKEN_STRIP), **fields}
    pieces, scores, bits = values["pieces"], values["scores"], values["bits"]
    for name in ("scores", "bits", "kept"):
        if values[name] and len(values[name]) != len(pieces):
            raise ValueError(f"{len(values[name])} {name} for {len(pieces)} tokens")
    cells = values["cells"] or list(pieces)
    cell_of_token = values["cell_of_token"] or list(range(len(pieces)))
    tokens_of_cell: list[list[int]] = [[] for _ in cells]
    for token, cell in enumerate(cell_of_token):
        tokens_of_cell[cell].append(token)
    body = "".join(_cell(text, tokens, values) for text, tokens in zip(cells, tokens_of_cell, strict=True))
    body = body or f'<span class="tapwb-empty">{_label(values, "No tokens yet.")}</span>'
    return (
        f"<style>{widget_css('token_strip')}</style>"
        f'<div class="tapwb-strip" data-scheme="{_safe(values["color_scheme"])}">'
        f'<div class="tapwb-list" role="list" style="max-height:none" aria-label="{_label(values, "Tokens")}">'
        f"{body}</div>"
        f"{_legend(values, tinted=bool(scores), underlined=bool(bits))}</div>"
    )


def static_diff_html(fields: Mapping[str, Any]) -> str:
    """Two texts beside each other as HTML, the first difference marked.

    Args:
        fields: Values of ``schema.ANSWER_DIFF``; missing ones take their default.
    """
    values = {**defaults(ANSWER_DIFF), **fields}
    shared = 0
    if values["compare"] and values["candidate"] and values["baseline"]:
        pairs = zip(values["candidate"], values["baseline"], strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    differ = min(len(values["candidate"]), len(values["baseline"])) > 0 and shared < min(
        len(values["candidate"]), len(values["baseline"])
    )
    sides = "".join(
        _side(values, name, shared if differ and values["compare"] else None) for name in ("candidate", "baseline")
    )
    return (
        f"<style>{widget_css('answer_diff')}</style>"
        f'<div class="tapwb-diff" data-scheme="{_safe(values["color_scheme"])}">{sides}</div>'
    )


def static_table_html(fields: Mapping[str, Any]) -> str:
    """A table as HTML, in the order of its rows.

    Args:
        fields: Values of ``schema.DATA_TABLE``; missing ones take their default.
    """
    values = {**defaults(DATA_TABLE), **fields}

    def cells(texts: Sequence[Any], name: str) -> str:
        kinds = (' class="tapwb-data-number"' if column in values["numbers"] else "" for column in range(len(texts)))
        return "".join(f"<{name}{kind}>{_safe(text)}</{name}>" for kind, text in zip(kinds, texts, strict=True))

    body = "".join(
        f'<tr aria-selected="{str(index == values["selected"]).lower()}">{cells(row, "td")}</tr>'
        for index, row in enumerate(values["rows"])
    )
    body = body or f'<tr><td class="tapwb-data-empty" colspan="99">{_safe(values["empty"])}</td></tr>'
    return (
        f"<style>{widget_css('data_table')}</style>"
        f'<div class="tapwb-data" data-scheme="{_safe(values["color_scheme"])}">'
        f'<table class="tapwb-data-table" aria-label="{_safe(values["label"])}">'
        f"<thead><tr>{cells(values['columns'], 'th')}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(text: str, tokens: list[int], values: Mapping[str, Any]) -> str:
    scores, bits = values["scores"], values["bits"]
    classes = ["tapwb-cell"]
    if tokens and tokens[0] in values["special"]:
        classes.append("tapwb-special")
    if scores:
        classes.append(f"tapwb-i{step_of(sum(scores[t] for t in tokens) / len(tokens), values['gamma'])}")
    if values["kept"] and any(values["kept"][t] for t in tokens):
        classes.append("tapwb-kept")
    bars = (
        "".join(f'<i class="tapwb-bar" style="height:{_bar_px(bits[t], len(tokens))}px"></i>' for t in tokens)
        if bits
        else ""
    )
    number = f'<sub class="tapwb-bits">{_bits_text([bits[t] for t in tokens])}</sub>' if bits else ""
    title = "\n".join(_describe(token, values) for token in tokens)
    shown = _safe(visible(text, show_blanks=values["show_whitespace"]))
    return (
        f'<span class="{" ".join(classes)}" role="listitem" title="{_safe(title)}">'
        f'<span class="tapwb-text">{shown}</span>'
        f'{number}<span class="tapwb-bars">{bars}</span></span>{"<br>" if chr(10) in text else ""}'
    )


def _describe(token: int, values: Mapping[str, Any]) -> str:
    parts = [f"{_plain(values, 'token')} {token}: {visible(values['pieces'][token])}"]
    if values["token_ids"]:
        parts.append(f"{_plain(values, 'id')}: {values['token_ids'][token]}")
    if values["scores"]:
        parts.append(f"{_plain(values, 'importance')}: {values['scores'][token]:.2f}")
    if values["bits"]:
        parts.append(f"{_plain(values, 'bits')}: {values['bits'][token]}")
    if values["kept"] and values["kept"][token]:
        parts.append(str(values["kept"][token]))
    return ", ".join(parts)


def _legend(values: Mapping[str, Any], *, tinted: bool, underlined: bool) -> str:
    parts = []
    if tinted:
        scale = "".join(f'<i class="tapwb-i{step}"></i>' for step in range(0, N_STEPS, 2))
        parts.append(f"<span>{_label(values, 'less important')}</span>")
        parts.append(f'<span class="tapwb-scale" aria-hidden="true">{scale}</span>')
        parts.append(f"<span>{_label(values, 'more important')}</span>")
    if underlined:
        parts.append(f'<span class="tapwb-note">{_label(values, "underline and small number: bits")}</span>')
    if any(values["kept"]):
        sign = '<i class="tapwb-kept-sign" aria-hidden="true"></i>'
        parts.append(f'<span class="tapwb-note">{sign} {_label(values, "bits kept, whatever the importance")}</span>')
    return f'<div class="tapwb-legend">{"".join(parts)}</div>'


def _side(values: Mapping[str, Any], name: str, shared: int | None) -> str:
    title, text = values[f"{name}_title"], values[name]
    if not title:
        return ""
    body = _safe(text)
    if shared is not None:
        title_of_mark = _safe(values["difference_label"])
        mark = f'<mark class="tapwb-first-difference" title="{title_of_mark}">{_safe(text[shared:])}</mark>'
        body = _safe(text[:shared]) + mark
    state = f'<p class="tapwb-answer-state">{_safe(values[f"{name}_state"])}</p>' if values[f"{name}_state"] else ""
    return (
        f'<section class="tapwb-answer tapwb-{name}"><h3 class="tapwb-answer-title">{_safe(title)}</h3>'
        f'<div class="tapwb-answer-text" style="max-height:none">{body}</div>{state}</section>'
    )


def _bits_text(bits: list[int]) -> str:
    known = [value for value in bits if value > 0]
    if not known:
        return ""
    return str(min(known)) if min(known) == max(known) else f"{min(known)}–{max(known)}"


def _bar_px(bits: int, n_tokens: int) -> int:
    height = max(1, min(16, bits))
    return -(-height // 3) if n_tokens > 1 else -(-height * 2 // 3)


def _plain(values: Mapping[str, Any], english: str) -> str:
    return str(values["labels"].get(english, english))


def _label(values: Mapping[str, Any], english: str) -> str:
    return _safe(_plain(values, english))


def _safe(text: object) -> str:
    return html.escape(str(text), quote=True)

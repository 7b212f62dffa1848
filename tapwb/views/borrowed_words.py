"""Words that lower stages write in English, in the reader's language: sources, roles of matrices, notes of a run.

A stage below the views knows no language. What it says reaches the screen as it is unless it is listed here; names of
instruments, formats and models stay as they are.
"""

import re

from tapwb.views.i18n import Translate

_ADVANCE = re.compile(r"Signal '(?P<signal>[^']+)' is known only after a token is processed: it planned the prompt, ")
_TURNED_OFF = re.compile(
    r"Speculation was turned off for (?P<off>\d+) of (?P<all>\d+) steps, because it does not pay here: (?P<depth>\d+) "
    r"guess\(es\) a round would write (?P<rate>[\d.]+) times the tokens a second of plain steps \((?P<share>\d+%) of "
    r"first guesses stand, a guess takes (?P<guess>[\d.]+) of a plain step, verifying (?P<rows>\d+) tokens "
    r"(?P<verify>[\d.]+)\)\."
)


def source_words(source: str, _: Translate) -> str:
    """A source in the reader's language: whether it was measured or estimated, and how."""
    kind, colon, rest = source.partition(":")
    if not colon:
        return _(source) if source else ""
    known = _instruments(_)
    return f"{_(kind)}: {', '.join(known.get(part, part) for part in rest.strip().split(', '))}"


def role_words(role: str, _: Translate) -> str:
    """What a matrix does: ``attention.query``."""
    known = {
        "attention": _("attention"), "expert": _("expert"), "state": _("state"), "head": _("head"),
        "query": _("query"), "key": _("key"), "value": _("value"), "output": _("output"), "input": _("input"),
        "gate": _("gate"), "up": _("up"), "down": _("down"), "gate_up": _("gate_up"), "step": _("step"),
        "select": _("select"),
    }  # fmt: skip
    return ".".join(known.get(part, part) for part in role.split("."))


def format_words(name: str, _: Translate) -> str:
    """A number format that weights had before: ``Q4_1 group 32``."""
    kind, between, size = name.partition(" group ")
    return _("{format}, groups of {n}").format(format=kind, n=size) if between else name


def note_words(note: str, signals: dict[str, str], _: Translate) -> str:
    """A note of a run.

    Args:
        note: As the engine wrote it.
        signals: Words for each signal.
        _: Translation.
    """
    found = _ADVANCE.match(note)
    if found:
        words = _(
            "The signal “{signal}” is known only after a token is processed: it planned the prompt, and the answer was "
            "steered by its stand-in from past information (entropy of the step before)."
        )
        return words.format(signal=signals.get(found["signal"], found["signal"]))
    found = _TURNED_OFF.match(note)
    if found:
        words = _(
            "Speculation was turned off for {off} of {all} steps, because it does not pay here: {depth} guess(es) a "
            "round would write {rate} times the tokens a second of plain steps ({share} of first guesses stand, a "
            "guess takes {guess} of a plain step, verifying {rows} tokens {verify})."
        )
        return words.format(**found.groupdict())
    if note.startswith("Levels 16 and 32 run at 8 bits"):
        return _("Levels 16 and 32 run at 8 bits, the highest stored level: a resident 16-bit copy would raise memory.")
    return note


def _instruments(_: Translate) -> dict[str, str]:
    return {
        "tensor storage": _("tensor storage"),
        "trace of the run": _("trace of the run"),
        "wall-clock": _("wall-clock"),
        "process-rss": _("memory of the process"),
        "bits of every token": _("bits of every token"),
        "bytes-and-ops": _("bytes and operations"),
        "against a timed 16-bit run": _("against a timed 16-bit run"),
        "3.5 times per bit": _("3.5 times per bit"),
        "measured damage of the layers": _("measured damage of the layers"),
        "sum of measured layer damage": _("sum of the measured damage of the layers"),
        "tokens by their score": _("tokens by their score"),
        "mean over windows": _("mean over windows"),
        "windows of the text": _("windows of the text"),
        "against the 16-bit weights": _("against the 16-bit weights"),
        "log-linear-interpolation": _("interpolation between the measured means"),
        "paired-windows": _("the same windows, paired"),
    }

"""How speculation went, in one line that grows with the answer: guesses that stood, then the certificate."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tapwb.core.reading import Reading
from tapwb.views.i18n import Translate

if TYPE_CHECKING:
    from tapwb.engine.shelf import RunResult
    from tapwb.execution.speculative.records import SpeculationRecord

#: Length of the answer that the certificate is told for, tokens.
_TOLD_LENGTH = "200"


def guess_words(record: "SpeculationRecord | None", result: "RunResult | None", _: Translate) -> str:
    """What to say of the guesses of an answer; empty where nothing was guessed.

    Args:
        record: What was guessed so far.
        result: The run, once it has ended.
        _: Translation.
    """
    if record is None:
        return ""
    if not record.n_drafted:
        said = _("No token was guessed: nothing repeated, or guessing did not pay.")
    else:
        said = _("{guesser}: {accepted} of {drafted} guesses stood ({share}), checked at {bits} bits.").format(
            guesser=record.proposer,
            accepted=record.n_accepted,
            drafted=record.n_drafted,
            share=f"{record.n_accepted / record.n_drafted:.0%}",
            bits=record.target_bits,
        )
    found = None if result is None else result.metrics.get("speculation")
    return f"{said} {_certificate(found, _)}".strip() if isinstance(found, Mapping) else said


def _certificate(found: Mapping[str, Any], _: Translate) -> str:
    speedup, at = found["speedup"], found["certificate"]["speedup_at"][_TOLD_LENGTH]
    if not isinstance(speedup, Reading) or speedup.ci95 is None or "value" not in at:
        return _("Too short to say what it brought.")
    return _(
        "Certificate: {speedup} times as fast as plain steps of the same run (95 % interval {low} to {high}, "
        "{n} rounds); {at} times for an answer of {length} tokens with its prompt."
    ).format(
        speedup=f"{speedup.value:.2f}",
        low=f"{speedup.ci95[0]:.2f}",
        high=f"{speedup.ci95[1]:.2f}",
        n=speedup.n,
        at=f"{at['value']:.2f}",
        length=_TOLD_LENGTH,
    )

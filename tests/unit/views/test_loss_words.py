"""A saving below zero is explained by what both runs measured, and by nothing else."""

from typing import Any

from tapwb.core.reading import Reading, Unavailable
from tapwb.views.i18n import translator
from tapwb.views.loss_words import loss_words

EN = translator("en")


def metrics(saved: float | None, per_s: float, prefill_s: float, read: int, kernel: str = "grouped") -> dict[str, Any]:
    """The metrics that the sentence is made of."""
    return {
        "precision": {
            "energy_saved_pct": Unavailable("no baseline") if saved is None else Reading(saved, "%", "estimated:x")
        },
        "speed": {
            "decode_tok_per_s": Reading(per_s, "token/s", "measured:wall-clock"),
            "prefill_s": prefill_s,
            "weight_bytes_read": read,
        },
        "kernel": {"name": kernel, "reason": ""},
    }


BASELINE = metrics(None, 10.0, 0.1, 1000)


def test_a_slow_run_says_how_slow_and_why() -> None:
    """Times of both runs, the kernel's habit, and that fewer bytes did not make up for it."""
    said = loss_words(metrics(-200.0, 4.0, 0.5, 400), BASELINE, "cpu", EN)
    assert "a token took 250 ms instead of 100 ms (measured)" in said
    assert "reading the prompt took 500 ms instead of 100 ms (measured)" in said
    assert "unpacks every weight on this device (cpu)" in said
    assert "400 B instead of 1 kB" in said.replace("1.00", "1")


def test_only_what_was_measured_is_said() -> None:
    """Another kernel is not blamed for unpacking, more bytes are not called fewer, a faster part is left out."""
    said = loss_words(metrics(-5.0, 20.0, 0.5, 2000, kernel="reference"), BASELINE, "cpu", EN)
    assert "a token took" not in said
    assert "unpacks" not in said
    assert "outweighs" not in said


def test_nothing_is_said_without_a_loss() -> None:
    """A saving, no saving to state, or a loss that no time explains."""
    assert loss_words(metrics(3.0, 4.0, 0.5, 400), BASELINE, "cpu", EN) == ""
    assert loss_words(metrics(None, 4.0, 0.5, 400), BASELINE, "cpu", EN) == ""
    assert loss_words(metrics(-3.0, 40.0, 0.05, 400), BASELINE, "cpu", EN) == ""

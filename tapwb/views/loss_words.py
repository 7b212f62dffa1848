"""Why a run at fewer bits needed more energy than 16 bits, in a sentence made of what both runs measured."""

from collections.abc import Mapping
from typing import Any

from tapwb.core.reading import Reading
from tapwb.core.units import format_bytes, format_seconds
from tapwb.views.i18n import Translate

#: The kernel that PyTorch runs everywhere: it unpacks a weight before it multiplies with it.
_UNPACKS = "grouped"


def loss_words(candidate: Mapping[str, Any], baseline: Mapping[str, Any], device: str, _: Translate) -> str:
    """The sentence; empty where energy was saved, or where neither part of the run was slower.

    Args:
        candidate: Metrics of the run, from ``TAPEngine.generate``.
        baseline: Metrics of the 16-bit run.
        device: Where both ran.
        _: Translation.
    """
    saved = candidate["precision"]["energy_saved_pct"]
    if not isinstance(saved, Reading) or saved.value >= 0:
        return ""
    fast, slow = _step_s(baseline), _step_s(candidate)
    parts = []
    if fast is not None and slow is not None and slow > fast:
        words = _("a token took {slow} instead of {fast} (measured)")
        parts.append(words.format(slow=format_seconds(slow), fast=format_seconds(fast)))
    ours, theirs = candidate["speed"]["prefill_s"], baseline["speed"]["prefill_s"]
    if ours > theirs:
        words = _("reading the prompt took {slow} instead of {fast} (measured)")
        parts.append(words.format(slow=format_seconds(ours), fast=format_seconds(theirs)))
    if not parts:
        return ""
    said = _("More energy than 16 bits, because time costs energy: {parts}.").format(parts=", ".join(parts))
    if candidate["kernel"]["name"] == _UNPACKS:
        said += " " + _("PyTorch unpacks every weight on this device ({device}) before it multiplies with it.").format(
            device=device
        )
    ours, theirs = candidate["speed"]["weight_bytes_read"], baseline["speed"]["weight_bytes_read"]
    if ours < theirs:
        words = _("That outweighs reading fewer bytes ({fewer} instead of {more}, estimated).")
        said += " " + words.format(fewer=format_bytes(ours), more=format_bytes(theirs))
    return said


def _step_s(metrics: Mapping[str, Any]) -> float | None:
    """Seconds a token of writing took, if a step was timed."""
    rate = metrics["speed"]["decode_tok_per_s"]
    return 1 / rate.value if isinstance(rate, Reading) and rate.value > 0 else None

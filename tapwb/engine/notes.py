"""What a reader of a result must know beside its numbers."""

from typing import TYPE_CHECKING

from tapwb.core.activation_spec import ActivationRequest
from tapwb.core.precision import PrecisionRequest

if TYPE_CHECKING:
    from tapwb.importance.analyzer import TokenImportance


def notes_for(
    request: PrecisionRequest,
    importance: "TokenImportance | None",
    activations: ActivationRequest,
) -> tuple[str, ...]:
    """What a reader of the result of ``request`` must know."""
    notes = []
    if request.kind not in ("reference", "uniform", "plan") and any(level > 8 for level in request.levels):
        notes.append(
            "Levels 16 and 32 run at 8 bits, the highest stored level: a resident 16-bit copy would raise memory."
        )
    if importance is not None and not importance.causal and request.kind in ("adaptive", "oracle", "threshold"):
        notes.append(
            f"Signal {importance.signal!r} is known only after a token is processed: it planned the prompt, "
            "and the answer was steered by its stand-in from past information (previous step's entropy)."
        )
    if activations.kind != "16":
        notes.append(
            f"Activations {activations}: the arithmetic is that of 8-bit integers, computed with what PyTorch offers, "
            "which is no faster than 16-bit activations; time and energy are those of this path."
        )
    return tuple(notes)

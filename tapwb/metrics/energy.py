"""Energy beside its baseline. A saving exists only between two runs read by the same instrument.

The saving is never derived from bit-widths or from power: fewer bits that take longer cost more. Where runs differ in
length, joules per token are compared.
"""

import math
from typing import Literal

from tapwb.core.errors import UsageError
from tapwb.core.reading import Measured, Reading, Unavailable
from tapwb.monitors.energy import EnergyReading

Which = Literal["total", "idle_subtracted"]


def energy_per_token_j(energy: EnergyReading, n_tokens: int, which: Which = "total") -> Measured:
    """Joules per token.

    Args:
        energy: Reading of the window in which the tokens were made.
        n_tokens: Tokens made in it.
        which: All energy, or what is left without the machine's rest.

    Raises:
        UsageError: If there was no token.
    """
    if n_tokens < 1:
        raise UsageError(f"{n_tokens} tokens have no energy per token. Give the tokens made in the window.")
    joules = energy.total_j if which == "total" else energy.idle_subtracted_j
    if isinstance(joules, Unavailable):
        return joules
    error = None if joules.uncertainty is None else joules.uncertainty / n_tokens
    return Reading(joules.value / n_tokens, "J/token", joules.source, error, n_tokens)


def energy_saved_pct(
    baseline: EnergyReading | Unavailable | None,
    candidate: EnergyReading | Unavailable,
    *,
    baseline_tokens: int = 1,
    candidate_tokens: int = 1,
    which: Which = "total",
) -> Measured:
    """Energy that the candidate did not need, percent of the baseline's; negative when it needed more.

    Args:
        baseline: The matched run at full precision, or ``None`` if there was none.
        candidate: The run in question.
        baseline_tokens: Tokens of the baseline, where the runs differ in length.
        candidate_tokens: Tokens of the candidate.
        which: All energy, or what is left without the machine's rest.

    Returns:
        Percent with the source of both readings, or why there is no saving to state: no baseline, a reading that could
        not be taken, or readings by different instruments.

    Raises:
        UsageError: If there was no token.
    """
    if baseline is None:
        return Unavailable("no matched run at full precision to compare with")
    if isinstance(baseline, Unavailable):
        return Unavailable(f"no baseline energy: {baseline.reason}")
    if isinstance(candidate, Unavailable):
        return candidate
    before = energy_per_token_j(baseline, baseline_tokens, which)
    after = energy_per_token_j(candidate, candidate_tokens, which)
    if isinstance(before, Unavailable):
        return Unavailable(f"no baseline energy: {before.reason}")
    if isinstance(after, Unavailable):
        return after
    if before.source != after.source:
        return Unavailable(f"baseline from {before.source}, candidate from {after.source}: read both the same way")
    if before.value <= 0:
        return Unavailable(f"the baseline used {before.value:.3g} J above idle: nothing to save from")
    ratio = after.value / before.value
    return Reading(100 * (1 - ratio), "%", before.source, _ratio_error_pct(before, after))


def _ratio_error_pct(before: Reading, after: Reading) -> float | None:
    # Errors of two measurements are independent; those of two estimates are one and the same model error, and cancel.
    if not before.is_measured or before.uncertainty is None or after.uncertainty is None:
        return None
    return 100 / before.value * math.hypot(after.uncertainty, after.value / before.value * before.uncertainty)

"""Memory beside its baseline: ratios and savings of bytes that were counted on tensors."""

from tapwb.core.errors import UsageError
from tapwb.core.reading import Measured, Reading, Unavailable


def memory_ratio(candidate_bytes: Measured | int, baseline_bytes: Measured | int) -> Measured:
    """Candidate bytes over baseline bytes: 0.5 is half the memory.

    Args:
        candidate_bytes: Bytes of the run in question.
        baseline_bytes: Bytes of the run it is compared with.

    Returns:
        The ratio, or why it cannot be taken (a side is missing, or one was measured and the other estimated).

    Raises:
        UsageError: If bytes are negative, or the baseline is zero.
    """
    candidate, baseline = _as_reading(candidate_bytes), _as_reading(baseline_bytes)
    if isinstance(candidate, Unavailable):
        return candidate
    if isinstance(baseline, Unavailable):
        return Unavailable(f"no baseline: {baseline.reason}")
    if candidate.value < 0 or baseline.value <= 0:
        raise UsageError(f"{candidate.value:g} over {baseline.value:g} bytes is no ratio. Give a positive baseline.")
    if candidate.is_measured != baseline.is_measured:
        return Unavailable(f"{candidate.source} and {baseline.source} cannot be compared: measure both the same way")
    return Reading(candidate.value / baseline.value, "1", candidate.source)


def memory_saved_pct(candidate_bytes: Measured | int, baseline_bytes: Measured | int) -> Measured:
    """Share of the baseline's memory that the candidate does not need, percent; negative when it needs more.

    Args:
        candidate_bytes: Bytes of the run in question.
        baseline_bytes: Bytes of the run it is compared with.

    Raises:
        UsageError: If bytes are negative, or the baseline is zero.
    """
    ratio = memory_ratio(candidate_bytes, baseline_bytes)
    if isinstance(ratio, Unavailable):
        return ratio
    return Reading(100 * (1 - ratio.value), "%", ratio.source)


def _as_reading(n_bytes: Measured | int) -> Measured:
    return Reading(float(n_bytes), "byte", "measured:tensor-bytes") if isinstance(n_bytes, int) else n_bytes

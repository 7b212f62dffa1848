"""Exact match: 1 if the answer is one of the references under stated rules, else 0."""

from collections.abc import Sequence

from tapwb.compare.quality.normalise import LENIENT, Normalisation
from tapwb.core.errors import UsageError


def exact_match(answer: str, references: str | Sequence[str], rules: Normalisation = LENIENT) -> float:
    """1.0 or 0.0.

    Args:
        answer: What the system wrote.
        references: One right answer or several.
        rules: What is made alike first.

    Raises:
        UsageError: If there is no reference.
    """
    given = rules.apply(answer)
    return float(any(rules.apply(reference) == given for reference in listed(references)))


def listed(references: str | Sequence[str]) -> list[str]:
    """References as a list.

    Raises:
        UsageError: If there is none.
    """
    found = [references] if isinstance(references, str) else list(references)
    if not found:
        raise UsageError("there is no reference to score against. Give at least one right answer.")
    return found

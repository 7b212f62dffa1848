"""Exact two-sided tests of a fair coin, by whole numbers: the sign test and McNemar's test are both of this kind."""

from math import comb

from tapwb.core.errors import UsageError


def fair_coin_p(heads: int, tails: int) -> float:
    """Probability that a fair coin is at least this uneven, both ways; 1 without a throw.

    Raises:
        UsageError: If a count is negative.
    """
    total, fewer = _counts(heads, tails)
    return min(1.0, 2 * _mass_up_to(fewer, total))


def fair_coin_mid_p(heads: int, tails: int) -> float:
    """The same with the observed outcome counted half (Lancaster 1961): closer to its level, and not guaranteed by it.

    Raises:
        UsageError: If a count is negative.
    """
    total, fewer = _counts(heads, tails)
    return min(1.0, 2 * _mass_up_to(fewer, total) - _mass(fewer, total))


def _counts(heads: int, tails: int) -> tuple[int, int]:
    if heads < 0 or tails < 0:
        raise UsageError(f"counts of {heads} and {tails} are not usable. Give 0 or more.")
    return heads + tails, min(heads, tails)


def _mass(count: int, total: int) -> float:
    return comb(total, count) / 2**total


def _mass_up_to(count: int, total: int) -> float:
    """Whole numbers until the last division, so nothing underflows or is rounded on the way."""
    term, whole = 1, 1
    for index in range(1, count + 1):
        term = term * (total - index + 1) // index
        whole += term
    return whole / 2**total

"""Which answer a judge prefers, asked in both orders: wins against losses, ties out, and the pull of position.

A judge that sees two answers often prefers the first (Zheng et al. 2023, "Judging LLM-as-a-Judge", arXiv:2306.05685).
Every item is therefore judged twice, with the answers swapped; where the two verdicts disagree, the item is a tie,
and the disagreements themselves show whether position pulls.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tapwb.compare.binomial import fair_coin_p
from tapwb.core.errors import UsageError

Choice = Literal["first", "second", "tie"]
_CHOICES = ("first", "second", "tie")


@dataclass(frozen=True, slots=True)
class Preference:
    """Verdicts of one judge.

    Attributes:
        credit_b: 1 where B won, 0 where A won, 1/2 for a tie, shape (item,).
        wins_b: Items B won in both orders, or won once and tied once.
        wins_a: Items A won likewise.
        ties: The rest.
        p_value: Sign test of wins against losses, ties left out; items independent.
        swap_consistency: Share of items with the same verdict in both orders.
        first_wins: Disagreeing items on which the first answer won both times.
        second_wins: Disagreeing items on which the second answer won both times.
        p_position: Test that position does not matter.
    """

    credit_b: NDArray[np.float64]
    wins_b: int
    wins_a: int
    ties: int
    p_value: float
    swap_consistency: float
    first_wins: int
    second_wins: int
    p_position: float

    @property
    def win_rate_b(self) -> float:
        """(wins + ties / 2) / items."""
        return float(self.credit_b.mean())


def preference_test(a_first: Sequence[Choice], b_first: Sequence[Choice]) -> Preference:
    """Put both orders together.

    Args:
        a_first: Verdict on every item with A's answer shown first.
        b_first: Verdict on the same items with B's answer shown first.

    Raises:
        UsageError: If the orders do not pair up, there is no item, or a verdict is not one of three words.
    """
    if len(a_first) != len(b_first) or not len(a_first):
        raise UsageError(f"{len(a_first)} and {len(b_first)} verdicts are not pairs. Judge every item in both orders.")
    unknown = sorted({str(word) for word in (*a_first, *b_first)} - set(_CHOICES))
    if unknown:
        raise UsageError(f"{unknown[0]!r} is not a verdict. Allowed: {', '.join(_CHOICES)}.")
    one = np.array([{"first": -1, "second": 1, "tie": 0}[word] for word in a_first])
    other = np.array([{"first": 1, "second": -1, "tie": 0}[word] for word in b_first])
    # Opposite verdicts cancel; a win and a tie are a win.
    sign = np.sign(one + other)
    wins_b, wins_a = int((sign > 0).sum()), int((sign < 0).sum())
    first_wins = int(((one < 0) & (other > 0)).sum())
    second_wins = int(((one > 0) & (other < 0)).sum())
    return Preference(
        (sign + 1) / 2,
        wins_b,
        wins_a,
        int((sign == 0).sum()),
        fair_coin_p(wins_b, wins_a),
        float((one == other).mean()),
        first_wins,
        second_wins,
        fair_coin_p(first_wins, second_wins),
    )

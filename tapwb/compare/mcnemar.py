"""McNemar's test for right-or-wrong answers: only items on which the systems disagree say anything.

If the systems were alike, an item that one of them got wrong would be as often A's as B's, so the count is that of a
fair coin (McNemar 1947). The exact p-value never errs more often than its level and often much less; the mid-p value
(Fagerland, Lydersen and Laake 2013, "The McNemar test for binary matched-pairs data") is shown beside it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from tapwb.compare.binomial import fair_coin_mid_p, fair_coin_p
from tapwb.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class McNemar:
    """Right-or-wrong answers of two systems on the same items.

    Attributes:
        both_right: Items both got right.
        only_a_right: Items only A got right.
        only_b_right: Items only B got right.
        both_wrong: Items both got wrong.
        p_exact: Two-sided p-value; never too small.
        p_mid: Mid-p value, for reading beside it.
    """

    both_right: int
    only_a_right: int
    only_b_right: int
    both_wrong: int
    p_exact: float
    p_mid: float

    @property
    def n(self) -> int:
        """Items."""
        return self.both_right + self.only_a_right + self.only_b_right + self.both_wrong

    @property
    def n_discordant(self) -> int:
        """Items on which the systems disagree."""
        return self.only_a_right + self.only_b_right

    @property
    def effect(self) -> float:
        """Accuracy of B minus accuracy of A."""
        return (self.only_b_right - self.only_a_right) / self.n

    @property
    def smallest_p(self) -> float:
        """The least exact p-value that this many disagreements can give: with fewer than 6 it is above 0.05."""
        return min(1.0, 2.0 ** (1 - self.n_discordant))

    def can_reject_at(self, alpha: float) -> bool:
        """Whether any split of these disagreements could give a p-value of ``alpha`` or less."""
        return self.smallest_p <= alpha


def mcnemar_test(correct_a: ArrayLike, correct_b: ArrayLike) -> McNemar:
    """Test whether two systems are right equally often.

    Args:
        correct_a: Shape (n,), 0 or 1, or booleans; items independent of each other.
        correct_b: The same items in the same order.

    Raises:
        UsageError: If the items do not pair up, there is none, or a value is neither 0 nor 1.
    """
    a, b = np.asarray(correct_a), np.asarray(correct_b)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise UsageError(f"shapes {a.shape} and {b.shape} are not pairs of answers. Give (item,) for both.")
    if not (np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all()):
        raise UsageError("an answer is neither 0 nor 1. Give right-or-wrong scores, or compare them as continuous.")
    right_a, right_b = a.astype(bool), b.astype(bool)
    only_a, only_b = int((right_a & ~right_b).sum()), int((~right_a & right_b).sum())
    return McNemar(
        int((right_a & right_b).sum()),
        only_a,
        only_b,
        int((~right_a & ~right_b).sum()),
        fair_coin_p(only_a, only_b),
        fair_coin_mid_p(only_a, only_b),
    )

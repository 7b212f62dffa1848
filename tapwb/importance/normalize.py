"""From raw values on any scale to scores in [0, 1].

Ranks, because a signal's scale means nothing across models, and because min-max scaling makes one outlier decide where
everyone else lands and always produces a 0 and a 1 (seed fault F1.11). In prefill the ranks are taken within the
sequence; while decoding, where the rest of the sequence does not exist yet, within a window of the past.
"""

import bisect
import math
from collections import deque
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

NEUTRAL = 0.5


def average_ranks(values: Float[Tensor, " token"]) -> Float[Tensor, " token"]:
    """Ranks from 1, float64; equal values share the mean of their ranks. NaN is not allowed."""
    _, inverse, counts = torch.unique(values, sorted=True, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[inverse]


def rank_in_sequence(raw: Float[Tensor, "batch token"]) -> Float[Tensor, "batch token"]:
    """Score of each token by its rank within its row: (rank - 1/2) / n.

    Args:
        raw: Raw values; infinities are ranked, NaN means no opinion.

    Returns:
        Shape (batch, token), float32, in (0, 1): the highest of n distinct values gets 1 - 1/(2n), a single token and
        a row of equal values 0.5, a token without opinion 0.5 (and it does not count for the others).
    """
    scores = torch.full(raw.shape, NEUTRAL, dtype=torch.float64, device=raw.device)
    for row, out in zip(raw, scores, strict=True):
        known = ~row.isnan()
        if known.any():
            out[known] = (average_ranks(row[known]) - 0.5) / known.sum()
    return scores.float()


class RunningQuantile:
    """Score of a value by its rank among the last values seen, for decoding.

    Args:
        window: How many past values count.
    """

    def __init__(self, window: int = 512) -> None:
        self.window = window
        self._in_order: deque[float] = deque()
        self._sorted: list[float] = []

    def __len__(self) -> int:
        return len(self._in_order)

    def update(self, values: Iterable[float]) -> None:
        """Take values into the window without scoring them (the prompt's, before the first step). NaN is skipped."""
        for value in values:
            if math.isnan(value):
                continue
            self._in_order.append(value)
            bisect.insort(self._sorted, value)
            if len(self._in_order) > self.window:
                oldest = self._in_order.popleft()
                del self._sorted[bisect.bisect_left(self._sorted, oldest)]

    def score(self, value: float) -> float:
        """Rank of ``value`` among the past values and itself, in (0, 1); then it joins the past.

        Without a past, or without an opinion (NaN), 0.5.
        """
        if math.isnan(value):
            return NEUTRAL
        below = bisect.bisect_left(self._sorted, value)
        equal = bisect.bisect_right(self._sorted, value) - below
        result = (below + (equal + 1) / 2) / (len(self._sorted) + 1)
        self.update((value,))
        return result

    def snapshot(self) -> tuple[float, ...]:
        """The window, oldest first, to come back to when drafted tokens are rejected."""
        return tuple(self._in_order)

    def restore(self, values: tuple[float, ...]) -> None:
        """Go back to a snapshot."""
        self._in_order = deque(values)
        self._sorted = sorted(values)

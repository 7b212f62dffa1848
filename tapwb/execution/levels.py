"""Which level each decode step uses: fixed, or steered by what is known before the step."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from tapwb.importance.stream import ImportanceStream
from tapwb.plan.controller import PrecisionController


class LevelSource(Protocol):
    """Chooses the level of each decode step."""

    def next_bits(self, logits_before: Tensor, token_id: int) -> int:
        """Level of the step that is about to process ``token_id``.

        Args:
            logits_before: The distribution the token was drawn from, shape (vocabulary,).
            token_id: The token.
        """


class FixedLevel:
    """The same level for every step."""

    def __init__(self, bits: int) -> None:
        self._bits = bits

    def next_bits(self, logits_before: Tensor, token_id: int) -> int:
        """The level."""
        return self._bits


class SteeredLevel:
    """More bits for tokens that score high, at a mean that a controller holds.

    Args:
        stream: Scores tokens from past information.
        levels: Stored levels, ascending.
        mean_bits: Mean to hold.
        spread: Standard deviation (nats) of log-damage that the scores explain; that of the previous step's entropy
            by default.
    """

    def __init__(
        self, stream: ImportanceStream, levels: Sequence[int], mean_bits: float, *, spread: float = 0.3
    ) -> None:
        self._stream = stream
        self._controller = PrecisionController(tuple(levels), mean_bits, spread=spread)

    def next_bits(self, logits_before: Tensor, token_id: int) -> int:
        """The level that the score and the running mean call for."""
        return self._controller.next_bits(self._stream.next_score(logits_before, token_id))


class ThresholdLevel:
    """The seed's rule while decoding: the score cut at fixed thresholds; a score on a threshold goes up.

    Args:
        stream: Scores tokens from past information.
        levels: Levels, ascending.
        thresholds: One fewer, strictly increasing.
    """

    def __init__(self, stream: ImportanceStream, levels: Sequence[int], thresholds: Sequence[float]) -> None:
        self._stream, self._levels, self._thresholds = stream, tuple(levels), tuple(thresholds)

    def next_bits(self, logits_before: Tensor, token_id: int) -> int:
        """The level of the class that the score falls in."""
        score = self._stream.next_score(logits_before, token_id)
        return self._levels[sum(score >= cut for cut in self._thresholds)]

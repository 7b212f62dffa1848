"""Which levels calibration weighs against each other, how much each counts, and how far weights may move for them.

One stored copy serves all levels, so every choice is a compromise between them. Errors are compared in units of what
plain rounding would leave at the level, so that a weight of 1 everywhere means "the same share of every level's error".
"""

from collections.abc import Mapping
from dataclasses import dataclass

LEVELS = (3, 4, 5, 6, 8)
"""Levels that calibration looks at; 7 lies between two of them."""

CELL_WEIGHTS = {3: 1.0, 4: 1.5, 5: 2.0, 6: 2.0, 8: 0.5}
"""Weights of the levels in the search for cells."""


@dataclass(frozen=True, slots=True)
class Freedom:
    """How far weights may move from their own 8-bit cell for the sake of the lower levels.

    Attributes:
        reach: 8-bit cells that a weight may move.
        weights: What each level counts when a weight takes a side; levels that are left out do not.
        damping: Added to the covariance, as a share of its mean variance: a text is a sample, and the model meets
            others.
    """

    reach: int
    weights: Mapping[int, float]
    damping: float


CLOSE = Freedom(reach=1, weights={3: 0.5, 4: 1.0, 5: 1.0, 6: 1.0, 8: 2.0}, damping=0.3)
"""For models that 8 bits already cost something: nothing that the 8-bit reading would feel."""

FAR = Freedom(reach=12, weights={3: 2.5, 4: 1.2, 5: 0.9, 6: 0.7, 8: 0.005}, damping=0.07)
"""For models that have 8 bits to spare: between two and three times their 8-bit loss buys a third of the loss at 3 to 6
bits."""

SPARE_NATS = 2.5e-4
"""KL divergence per token of plain 8-bit weights below which a model has bits to spare: nearly trebled, it
stays within a thousandth of perplexity."""


def freedom_for(eight_bit_loss_nats: float) -> Freedom:
    """How far the weights of a model may move that loses so much at plain 8 bits, nats per token."""
    return FAR if eight_bit_loss_nats <= SPARE_NATS else CLOSE


def cell_width(bits: int) -> int:
    """Width of a cell of a level in 8-bit cells."""
    return 1 << (8 - bits)

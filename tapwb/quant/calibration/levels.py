"""Which levels calibration weighs against each other, and how much each counts.

One stored copy serves all levels, so every choice is a compromise between them. Errors are compared in units of what
plain rounding would leave at the level, so that a weight of 1 everywhere means "the same share of every level's error".
"""

LEVELS = (3, 4, 5, 6, 8)
"""Levels that calibration looks at; 7 lies between two of them."""

CELL_WEIGHTS = {3: 1.0, 4: 1.5, 5: 2.0, 6: 2.0, 8: 0.5}
"""Weights of the levels in the search for cells."""

ROUNDING_WEIGHTS = {3: 0.5, 4: 1.0, 5: 1.0, 6: 1.0, 8: 2.0}
"""Weights of the levels when a weight near a boundary takes a side."""


def cell_width(bits: int) -> int:
    """Width of a cell of a level in 8-bit cells."""
    return 1 << (8 - bits)

"""Several confirmatory metrics: Holm's step-down keeps the chance of any false claim at alpha.

Holm 1979, "A simple sequentially rejective multiple test procedure". The smallest p-value is multiplied by the number
of tests, the next by one less, and so on; no adjusted value falls below an earlier one. Nothing is assumed about how
the metrics hang together.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tapwb.core.errors import UsageError

FloatArray = NDArray[np.float64]


def holm_adjusted(p_values: ArrayLike) -> FloatArray:
    """Adjusted p-values; a test is significant if its adjusted value is at most alpha.

    Args:
        p_values: Shape (test,), each between 0 and 1.

    Raises:
        UsageError: If a value is not a probability.
    """
    p = checked_p_values(p_values)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def checked_p_values(p_values: ArrayLike) -> FloatArray:
    """P-values as an array.

    Raises:
        UsageError: If a value is not a probability.
    """
    p = np.asarray(p_values, dtype=np.float64).ravel()
    if not ((p >= 0) & (p <= 1)).all():
        raise UsageError("a p-value is not between 0 and 1. Leave out the tests that could not be done.")
    return p

"""Slices and other things looked at afterwards: Benjamini and Hochberg's rate of false discoveries.

Benjamini and Hochberg 1995, "Controlling the false discovery rate". Weaker than Holm on purpose: of what it marks,
alpha may be false on average. Results that went through it are exploratory and say so; they support no verdict.
"""

import numpy as np
from numpy.typing import ArrayLike

from tapwb.compare.holm import FloatArray, checked_p_values


def benjamini_hochberg_adjusted(p_values: ArrayLike) -> FloatArray:
    """Adjusted p-values; marking those at most alpha keeps the share of false ones among them at alpha.

    Args:
        p_values: Shape (test,), each between 0 and 1.

    Raises:
        UsageError: If a value is not a probability.
    """
    p = checked_p_values(p_values)
    count = len(p)
    order = np.argsort(p, kind="stable")
    scaled = p[order] * count / np.arange(1, count + 1)
    stepped = np.minimum.accumulate(scaled[::-1])[::-1]
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted

"""Whether a text repeats itself the way broken models do.

The measure is the share of n-grams of tokens that occurred before in the same text, seq-rep-n of Welleck et al. 2019
(arXiv:1908.04319). Greedy decoding repeats itself in healthy small models too (Holtzman et al. 2019, arXiv:1904.09751);
texts drawn at temperature 1 hardly do, so that is how a sample for this measure should be drawn.
"""

from collections.abc import Sequence

from tapwb.core.reading import Measured, Reading, Unavailable

#: Length of the n-grams, as in the paper's tables.
NGRAM = 4


def repeated_share(token_ids: Sequence[int], n: int = NGRAM) -> Measured:
    """Share of n-grams that are repetitions: 0 when all differ, near 1 for a loop.

    Args:
        token_ids: The text.
        n: Length of the n-grams.

    Returns:
        The share, or why there is none: a text needs two n-grams before one can repeat the other.
    """
    count = len(token_ids) - n + 1
    if count < 2:
        return Unavailable(f"{len(token_ids)} tokens hold fewer than two runs of {n}, so none can repeat")
    different = len({tuple(token_ids[start : start + n]) for start in range(count)})
    return Reading(1 - different / count, "1", f"measured:repeated runs of {n} tokens", n=count)

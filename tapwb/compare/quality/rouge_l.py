"""ROUGE-L: the longest common subsequence of words as F1 (Lin 2004, the paper of the ROUGE-L score).

F1 weighs precision and recall alike. Words are lower-cased and not stemmed; for English without hyphens or
apostrophes in dispute this equals the usual package, which drops every letter outside a-z and so scores Thai as
empty. Long texts are split into sentences by some packages (ROUGE-Lsum); this is the plain score over the whole text.
"""

from collections.abc import Sequence

import numpy as np

from tapwb.compare.quality.exact_match import listed
from tapwb.compare.quality.normalise import Normalisation
from tapwb.compare.quality.tokens import words

_RULES = Normalisation(ignore_case=True)


def rouge_l(answer: str, references: str | Sequence[str], rules: Normalisation = _RULES) -> float:
    """The best ROUGE-L F1 over the references, 0 to 1.

    Args:
        answer: What the system wrote.
        references: One right answer or several.
        rules: What is made alike first.

    Raises:
        UsageError: If there is no reference.
    """
    given = rules.apply(answer)
    return max(_score(given, rules.apply(reference)) for reference in listed(references))


def _score(answer: str, reference: str) -> float:
    given, wanted = words(answer), words(reference)
    if not given or not wanted:
        # Without a word on a side only the same signs are the same.
        return float(answer == reference)
    return 2 * longest_common_subsequence(given, wanted) / (len(given) + len(wanted))


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest sequence of words that both hold in order."""
    if not first or not second:
        return 0
    number = {word: place for place, word in enumerate(dict.fromkeys((*first, *second)))}
    across = np.array([number[word] for word in second])
    row = np.zeros(len(second) + 1, np.int64)
    for word in first:
        # A match takes one more than the cell diagonally before it; a row never falls from left to right.
        taken = np.where(across == number[word], row[:-1] + 1, row[1:])
        row[1:] = np.maximum.accumulate(np.maximum(taken, row[1:]))
    return int(row[-1])

"""Token F1: the overlap of two bags of words (Rajpurkar et al. 2016, SQuAD), 0 to 1.

Order does not count. With the rules ``SQUAD`` and English text it is SQuAD's own score; an answer and a reference that
are both empty under the rules agree.
"""

from collections import Counter
from collections.abc import Sequence

from tapwb.compare.quality.exact_match import listed
from tapwb.compare.quality.normalise import LENIENT, Normalisation
from tapwb.compare.quality.tokens import words


def token_f1(answer: str, references: str | Sequence[str], rules: Normalisation = LENIENT) -> float:
    """The best F1 over the references, 0 to 1.

    Args:
        answer: What the system wrote.
        references: One right answer or several.
        rules: What is made alike first.

    Raises:
        UsageError: If there is no reference.
    """
    given = rules.apply(answer)
    return max(_f1(given, rules.apply(reference)) for reference in listed(references))


def _f1(answer: str, reference: str) -> float:
    given, wanted = words(answer), words(reference)
    if not given or not wanted:
        # Without a word on a side only the same signs are the same.
        return float(answer == reference)
    shared = sum((Counter(given) & Counter(wanted)).values())
    return 2 * shared / (len(given) + len(wanted))

"""chrF: F-score of character n-grams (Popović 2015, "chrF: character n-gram F-score for automatic MT evaluation").

Precision and recall of n-grams of 1 to 6 characters without white space, averaged over the lengths that both texts
have, and put together with recall counting twice as much (beta = 2). With ``unit="code point"`` it equals sacreBLEU's
sentence score (over 100); ``unit="grapheme"`` counts a Thai letter with its marks as one character, so that one wrong
tone mark is one wrong character. Needs no words, so it suits scripts without spaces.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from tapwb.compare.quality.exact_match import listed
from tapwb.compare.quality.normalise import PLAIN, Normalisation
from tapwb.compare.quality.tokens import graphemes
from tapwb.core.errors import UsageError

Unit = Literal["code point", "grapheme"]
ORDER = 6
BETA = 2.0


def chrf(
    answer: str,
    references: str | Sequence[str],
    *,
    unit: Unit = "grapheme",
    rules: Normalisation = PLAIN,
    order: int = ORDER,
    beta: float = BETA,
) -> float:
    """The best chrF over the references, 0 to 1.

    Args:
        answer: What the system wrote.
        references: One right answer or several.
        unit: What a character is.
        rules: What is made alike first.
        order: Longest n-gram.
        beta: How many times as much recall counts as precision.

    Raises:
        UsageError: If there is no reference or an option is out of range.
    """
    if unit not in ("code point", "grapheme") or order < 1 or not beta > 0:
        raise UsageError(
            f"unit {unit!r}, order {order}, beta {beta:g}: give 'code point' or 'grapheme', 1 up, above 0."
        )
    given = _characters(rules.apply(answer), unit)
    return max(_score(given, _characters(rules.apply(text), unit), order, beta) for text in listed(references))


def _characters(text: str, unit: Unit) -> list[str]:
    joined = "".join(text.split())
    return graphemes(joined) if unit == "grapheme" else list(joined)


def _score(given: list[str], wanted: list[str], order: int, beta: float) -> float:
    if not given or not wanted:
        return float(given == wanted)
    precision = recall = 0.0
    lengths = 0
    for length in range(1, min(order, len(given), len(wanted)) + 1):
        ours, theirs = _grams(given, length), _grams(wanted, length)
        shared = sum((ours & theirs).values())
        precision += shared / sum(ours.values())
        recall += shared / sum(theirs.values())
        lengths += 1
    precision, recall = precision / lengths, recall / lengths
    weight = beta * beta
    return (1 + weight) * precision * recall / (weight * precision + recall) if precision + recall else 0.0


def _grams(characters: list[str], length: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(characters[start:] for start in range(length)), strict=False))

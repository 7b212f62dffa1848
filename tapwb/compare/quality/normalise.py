"""What is made alike before two texts are compared, rule by rule, so that a score can name its rules.

Always: canonical composition (NFC), so that a letter typed as one or two code points is the same; signs that cannot be
seen (zero-width space, word joiner, byte order mark, soft hyphen) go; runs of white space are one space. By choice:
letter case, punctuation, English articles, compatibility forms (NFKC). Thai vowels and tone marks are parts of letters
(category Mn) and are never stripped. NFKC splits SARA AM into two signs, on both sides alike.
"""

import unicodedata
from dataclasses import dataclass
from typing import Literal

import regex

from tapwb.core.errors import UsageError

Punctuation = Literal["kept", "kept in numbers", "dropped"]

_SPACE = regex.compile(r"\p{White_Space}+")
_UNSEEN = regex.compile(r"[\u00ad\u200b\u2060\ufeff]")
#: Punctuation by Unicode, and the ASCII signs that Unicode calls symbols and SQuAD's script strips: $ + < = > ^ ` | ~
_PUNCTUATION = regex.compile(r"[\p{P}$+<=>^`|~]")
#: The same, but not the sign or separator of a number, and not its percent sign: -5, 3.5 and 5 % are not 5, 35 and 5.
_OUTSIDE_NUMBERS = regex.compile(r"(?![-+\u2212.,:/]\d)(?<!\d\s?(?=%))[\p{P}$+<=>^`|~]")
_ARTICLES = regex.compile(r"\b(?:a|an|the)\b")


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Rules, applied in this order.

    Attributes:
        form: ``"NFC"``: only the same letter spelled differently; ``"NFKC"``: also full-width and similar forms.
        ignore_case: Lower case everywhere.
        punctuation: ``"kept"``; ``"kept in numbers"``: dropped elsewhere, unless nothing else is there; ``"dropped"``:
            everywhere, as in SQuAD's script, which takes -5 for 5 and 3.5 for 35.
        ignore_articles: "a", "an" and "the" go; only sensible for English.
    """

    form: str = "NFC"
    ignore_case: bool = False
    punctuation: Punctuation = "kept"
    ignore_articles: bool = False

    def __post_init__(self) -> None:
        if self.form not in ("NFC", "NFKC"):
            raise UsageError(f"{self.form!r} is not a normal form. Allowed: NFC, NFKC.")
        if self.punctuation not in _DESCRIBED:
            raise UsageError(f"{self.punctuation!r} is no way with punctuation. Allowed: {', '.join(_DESCRIBED)}.")

    def apply(self, text: str) -> str:
        """The text under these rules."""
        out = unicodedata.normalize(self.form, _UNSEEN.sub("", text))  # type: ignore[arg-type]
        if self.ignore_case:
            out = out.lower()
        if self.punctuation == "dropped":
            out = _PUNCTUATION.sub("", out)
        elif self.punctuation == "kept in numbers":
            bare = _OUTSIDE_NUMBERS.sub("", out)
            # An answer that is nothing but signs, such as "<", is told apart by them.
            out = bare if bare.strip() else out
        if self.ignore_articles:
            out = _ARTICLES.sub(" ", out)
        return _SPACE.sub(" ", out).strip()

    def describe(self) -> str:
        """The rules in one line, for a report."""
        parts = [self.form, "white space joined", _DESCRIBED[self.punctuation]]
        parts += ["case ignored"] * self.ignore_case + ["English articles ignored"] * self.ignore_articles
        return ", ".join(parts)


_DESCRIBED = {
    "kept": "punctuation kept",
    "kept in numbers": "punctuation kept in numbers only",
    "dropped": "punctuation ignored",
}
#: Nothing but spelling and white space.
PLAIN = Normalisation()
#: The rules of SQuAD's evaluation script (Rajpurkar et al. 2016), for English answers.
SQUAD = Normalisation(ignore_case=True, punctuation="dropped", ignore_articles=True)
#: For any language: case and punctuation outside numbers are ignored.
LENIENT = Normalisation(ignore_case=True, punctuation="kept in numbers")

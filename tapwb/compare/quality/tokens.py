"""What counts as a word, also where a script writes none.

Runs of letters, digits and marks are words. Thai, Lao, Khmer, Burmese, Chinese and Japanese put no space between
words; telling words apart there needs a dictionary, and every dictionary gives another score. There each grapheme
cluster (a letter with its vowels and tone marks) is a token of its own, which needs no dictionary and never cuts a
letter from its marks.
"""

import regex

#: Letters that start a token of one grapheme cluster: South-East Asian scripts without spaces, Han and Kana.
_UNSPACED = r"[\p{Line_Break=Complex_Context}\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]"
_TOKEN = regex.compile(rf"(?={_UNSPACED})\X|(?:(?!{_UNSPACED})[\p{{L}}\p{{M}}\p{{N}}])+")


def words(text: str) -> list[str]:
    """Tokens of a text in order; punctuation and symbols separate and are not tokens."""
    return _TOKEN.findall(text)


def graphemes(text: str) -> list[str]:
    """What a reader calls characters: letters with their marks, whole emoji."""
    return regex.findall(r"\X", text)

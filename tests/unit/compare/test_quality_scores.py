"""Scores without a model: published values, agreement with other programs, and Thai that stays whole.

Seed features: S0.5, S0.16
"""

import itertools
import random

import pytest

from tapwb.compare.quality.chrf import chrf
from tapwb.compare.quality.exact_match import exact_match
from tapwb.compare.quality.normalise import LENIENT, PLAIN, SQUAD, Normalisation
from tapwb.compare.quality.rouge_l import longest_common_subsequence, rouge_l
from tapwb.compare.quality.token_f1 import token_f1
from tapwb.compare.quality.tokens import graphemes, words
from tapwb.core.errors import UsageError

ALL = (exact_match, token_f1, rouge_l, chrf)
ENGLISH = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "lazy",
    "dogs",
    "and",
    "cats",
    "while",
    "it",
    "rains",
    "in",
    "old",
    "town",
]
THAI = ["นโยบายเศรษฐกิจ", "กรุงเทพมหานคร", "น้ำท่วม", "ผู้ป่วย", "เด็กๆ", "๑๒๓"]


def sentences(vocabulary, count, seed):
    """Pairs of random texts over few words, so that they overlap."""
    rng = random.Random(seed)
    for _ in range(count):
        yield tuple(" ".join(rng.choices(vocabulary, k=rng.randint(1, 14))) for _ in range(2))


@pytest.mark.parametrize("score", ALL)
def test_a_score_knows_the_reference_and_nothing_but_the_text(score):
    """Itself is 1, something else is 0, the best reference counts, and the same text gives the same score."""
    assert score("Bangkok", "Bangkok") == 1.0
    assert score("สวัสดี", "สวัสดี") == 1.0
    assert score("xyz", "Bangkok") == 0.0
    assert score("Bangkok", ["Paris", "Bangkok"]) == 1.0
    assert score("", "") == 1.0
    assert score("", "Bangkok") == score("Bangkok", "") == 0.0
    assert 0 <= score("the same words", "the other words") == score("the same words", "the other words") <= 1
    with pytest.raises(UsageError, match="no reference"):
        score("Bangkok", [])


@pytest.mark.parametrize("score", ALL)
def test_one_letter_spelled_in_two_ways_is_one_letter(score):
    """Composed and decomposed."""
    assert score("\u00e9", "e\u0301") == 1.0


def test_exact_match_states_what_it_ignores():
    """Case, punctuation and white space by default; articles only in English rules."""
    assert exact_match(" BANGKOK. ", "bangkok") == 1.0
    assert exact_match("The Bangkok", "Bangkok") == 0.0
    assert exact_match("The Bangkok", "Bangkok", SQUAD) == 1.0
    assert exact_match("BANGKOK", "bangkok", PLAIN) == 0.0
    assert exact_match("１２", "12") == 0.0
    assert exact_match("１２", "12", Normalisation("NFKC")) == 1.0
    assert "articles" in SQUAD.describe()
    assert PLAIN.describe() == "NFC, white space joined, punctuation kept"
    with pytest.raises(UsageError, match="NFC, NFKC"):
        Normalisation("NFD")
    with pytest.raises(UsageError, match="kept in numbers"):
        Normalisation(punctuation="some")


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("-5", "5", False), ("3.5", "35", False), ("5 %", "5", False), ("5%.", "5%", True), ("5.", "5", True),
        ("(5)", "5", True), ("<", ">", False), ("?", "?", True), ("1,000", "1000", False), ("กรุงเทพฯ", "กรุงเทพ", False),
        ("กรุงเทพ\u200bมหานคร", "กรุงเทพมหานคร", True), ("yes!", "yes", True), ("12:30", "1230", False),
    ],
)  # fmt: skip
def test_signs_that_change_a_number_are_not_ignored(one, other, is_same):
    """A lost minus is a wrong answer; a full stop after it is not."""
    assert exact_match(one, other) == float(is_same)
    assert exact_match(other, one) == float(is_same)


@pytest.mark.parametrize("score", [token_f1, rouge_l])
def test_answers_without_words_are_compared_by_their_signs(score):
    """Two different signs are not alike because neither is a word."""
    assert score("€", "£") == 0.0
    assert score("€", "€") == 1.0
    assert score("€", "five") == 0.0


def test_squad_rules_are_those_of_its_script():
    """Lower case, no ASCII punctuation, no articles, single spaces; spelled out here."""
    import re
    import string

    def script(text):
        text = "".join(sign for sign in text.lower() if sign not in set(string.punctuation))
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())

    rng = random.Random(0)
    alphabet = "aAnN tThHeE " + string.punctuation
    for _ in range(500):
        text = "".join(rng.choices(alphabet, k=20))
        assert SQUAD.apply(text) == script(text)


def test_a_tone_mark_is_never_punctuation():
    """What makes another word makes another answer."""
    for one, other in [("เสือ", "เสื้อ"), ("ไก", "ไก่"), ("มา", "ม้า")]:
        assert exact_match(one, other) == 0.0
        assert LENIENT.apply(other) == other


def test_token_f1_is_the_overlap_of_bags():
    """Two of three and two of four words; order does not count, repetition does."""
    assert token_f1("red green blue", "blue red black white") == pytest.approx(2 * 2 / 7)
    assert token_f1("red red red", "red") == pytest.approx(2 / 4)


def test_words_of_scripts_without_spaces_are_grapheme_clusters():
    """A Thai letter keeps its vowels and tone marks; other scripts keep their words."""
    assert words("น้ำท่วม 123 AI") == ["น้ำ", "ท่", "ว", "ม", "123", "AI"]
    assert words("東京2020へ") == ["東", "京", "2020", "へ"]
    assert words("don't stop-gap naïve") == ["don", "t", "stop", "gap", "naïve"]
    assert words("… !?") == []
    for text in THAI:
        assert "".join(words(text)) == text.replace(" ", "")
        assert "".join(graphemes(text)) == text


def test_rouge_l_gives_its_published_example():
    """Lin 2004, section 3.1: the same words in another order are told apart."""
    reference = "police killed the gunman"
    assert rouge_l("police kill the gunman", reference) == pytest.approx(3 / 4)
    assert rouge_l("the gunman kill police", reference) == pytest.approx(2 / 4)


def test_rouge_l_agrees_with_the_usual_package_on_english():
    """Without stemming, on random texts."""
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    for answer, reference in sentences(ENGLISH, 200, 1):
        assert rouge_l(answer, reference) == pytest.approx(scorer.score(reference, answer)["rougeL"].fmeasure, abs=1e-9)


def test_rouge_l_tells_thai_texts_apart():
    """Near ones from far ones."""
    near = rouge_l("น้ำท่วมกรุงเทพ", "น้ำท่วมที่กรุงเทพ")
    far = rouge_l("น้ำท่วมกรุงเทพ", "เศรษฐกิจดีขึ้น")
    assert 0.85 < near < 1
    assert far < 0.5


def test_the_longest_common_subsequence_is_the_longest_one():
    """Against every subsequence of short texts."""
    rng = random.Random(2)
    for _ in range(60):
        first, second = (rng.choices("abc", k=rng.randint(0, 7)) for _ in range(2))
        parts = {part for n in range(len(first) + 1) for part in itertools.combinations(first, n)}
        others = {part for n in range(len(second) + 1) for part in itertools.combinations(second, n)}
        assert longest_common_subsequence(first, second) == max(map(len, parts & others))


def test_chrf_agrees_with_sacrebleu_by_code_points():
    """Its sentence score over 100, in English, Thai and texts shorter than six characters."""
    metric = pytest.importorskip("sacrebleu.metrics").CHRF()
    pairs = [
        *sentences(ENGLISH, 60, 3),
        *sentences(THAI, 60, 4),
        ("ab", "abc"),
        ("a", "a"),
        ("x", "y"),
        ("abcdefgh", "ab"),
    ]
    for answer, reference in pairs:
        theirs = metric.sentence_score(answer, [reference]).score / 100
        assert chrf(answer, reference, unit="code point") == pytest.approx(theirs, abs=1e-9)


def test_one_wrong_tone_mark_is_one_wrong_character():
    """By graphemes it costs one of six characters in each n-gram, as a wrong letter does in English."""
    thai = chrf("ก้ขคงจฉ", "ก่ขคงจฉ")
    english = chrf("Xbcdef", "abcdef")
    assert thai == pytest.approx(english)
    assert chrf("ก้ขคงจฉ", "ก่ขคงจฉ", unit="code point") != pytest.approx(thai)


def test_chrf_refuses_options_without_meaning():
    """With those that have one."""
    for options in ({"unit": "byte"}, {"order": 0}, {"beta": 0}):
        with pytest.raises(UsageError, match="grapheme"):
            chrf("a", "a", **options)

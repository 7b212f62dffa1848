"""Every text of the dashboard exists in every language, with the same placeholders."""

import re

import pytest

from tapwb.core.errors import UnknownName
from tapwb.views.i18n import LANGUAGES, catalog, read_po, texts_in_use, translator


@pytest.mark.parametrize("language", LANGUAGES)
def test_catalogs_hold_exactly_the_texts_in_use(language: str) -> None:
    """Nothing is missing and nothing is left over."""
    texts, used = catalog(language).texts, set(texts_in_use())
    assert used - set(texts) == set()
    assert set(texts) - used == set()
    assert all(texts.values()), [key for key, value in texts.items() if not value]


@pytest.mark.parametrize("language", LANGUAGES)
def test_translations_keep_their_placeholders(language: str) -> None:
    """``{name}`` in the English text is ``{name}`` in every other."""
    for english, translated in catalog(language).texts.items():
        assert sorted(re.findall(r"{\w*}", english)) == sorted(re.findall(r"{\w*}", translated)), english


def test_thai_is_thai() -> None:
    """Apart from proper names, every Thai text holds a Thai letter."""
    latin = {key for key, value in catalog("th").texts.items() if not re.search("[\u0e01-\u0e5b]", value)}
    assert latin <= {"mla", "{format}: needs"}


def test_an_odd_language_in_a_link_shows_english() -> None:
    """The page still opens; asking for the catalog itself says what there is."""
    assert translator("xx")("Run") == "Run"
    with pytest.raises(UnknownName, match="Known: en, th"):
        catalog("xx")


@pytest.mark.parametrize(
    "text", ['msgid "a"\nmsgid_plural "b"', '"lost"', 'msgid "a"\nmsgstr "1"\nmsgid "a"\nmsgstr "2"']
)
def test_a_broken_catalog_is_refused(text: str) -> None:
    """Plural forms, stray texts and doubled keys are errors, not silent English."""
    with pytest.raises(ValueError, match="catalog"):
        read_po(text)

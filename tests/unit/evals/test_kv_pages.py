"""What a cache holds: its bytes by length and the bits of every token."""

import pytest

from tapwb.core.errors import UsageError
from tapwb.evals.kv_bench import evaluate_kv
from tapwb.evals.kv_pages import cache_sizes, picture_cache

MODEL = "tiny-random-llama"
TEXT = "".join(chr(33 + (i * i * 7 + i // 5) % 90) for i in range(512))


@pytest.fixture(scope="module")
def sizes():
    """Two lengths of every width."""
    return {(size.kv, size.n_tokens): size for size in cache_sizes(MODEL, (256, 512))}


def test_bytes_are_those_of_a_cache_that_a_model_filled(sizes):
    """They do not depend on what is in it: random keys weigh what the model's own do."""
    rows = {row.name: row for row in evaluate_kv(MODEL, TEXT, context=256, windows=1, uniform=(8, 4)).rows}
    for kind in ("16", "8", "4"):
        assert sizes[kind, 256].n_bytes == rows[kind].cache_bytes


def test_fewer_bits_and_longer_texts_weigh_less_a_token(sizes):
    """At every length each width takes less than the next; the 16-bit edges matter less in a long text."""
    for n_tokens in (256, 512):
        held = [sizes[kind, n_tokens].n_bytes for kind in ("16", "8", "4", "3", "2")]
        assert held == sorted(held, reverse=True)
        assert len(set(held)) == 5
    assert sizes["4", 512].bytes_per_token < sizes["4", 256].bytes_per_token
    assert sizes["16", 512].bytes_per_token == sizes["16", 256].bytes_per_token


def test_the_picture_shows_every_token_of_every_layer():
    """First and last tokens at 16 bits, old pages downgraded, recent ones waiting at 8."""
    picture = picture_cache(MODEL, TEXT, "adaptive:3.5:received", context=512)
    assert {len(row) for row in (*picture.key_bits, *picture.value_bits)} == {512}
    for row in picture.key_bits:
        assert row[:4] == [16] * 4
        assert row[-1] == 16
        assert set(row[4:68]) <= {3, 4, 8}
        assert min(row) < 8
    assert sum(picture.histogram().values()) == pytest.approx(1)
    assert picture.n_bytes < cache_sizes(MODEL, (512,), ("16",))[0].n_bytes


def test_a_uniform_picture_has_one_width():
    """Sealed tokens at 4 bits, the rest at 16."""
    picture = picture_cache(MODEL, TEXT, "4", context=256)
    assert set(picture.histogram()) == {4, 16}


def test_a_text_that_is_too_short_is_refused():
    """With both numbers."""
    with pytest.raises(UsageError, match="512 tokens"):
        picture_cache(MODEL, TEXT, "4", context=600)

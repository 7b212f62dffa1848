"""Tokens are drawn from exactly the distribution that was asked for, and text never tears a character.

Seed features: S1.28
"""

import math
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from tapwb.core.errors import UsageError
from tapwb.execution.sampling import Sampler, Sampling
from tapwb.execution.streaming import TextStream
from tapwb.models.tokenizer_bytes import byte_tokenizer

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0, 1.5])
#: Chi-square at 1 in 1,000 for 1 to 6 degrees of freedom.
CRITICAL = [10.83, 13.82, 16.27, 18.47, 20.52, 22.46]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0, seed=1),
        Sampling(0.5, seed=2),
        Sampling(1.7, top_k=3, seed=3),
        Sampling(1.0, top_p=0.8, seed=4),
        Sampling(1.3, top_p=0.9, top_k=5, seed=5),
    ],
)
def test_draws_follow_the_distribution(sampling):
    """Chi-square over 4,000 draws against the probabilities computed by hand."""
    scaled = LOGITS.double() / sampling.temperature
    order = scaled.argsort(descending=True)
    kept = order[: sampling.top_k or None]
    p = torch.zeros(7, dtype=torch.double)
    p[kept] = torch.softmax(scaled[kept], 0)
    if sampling.top_p < 1:
        n = int((p[order].cumsum(0) < sampling.top_p).sum()) + 1
        p[order[n:]] = 0
        p /= p.sum()
    sampler = Sampler(sampling)
    assert torch.allclose(sampler.probabilities(LOGITS).double(), p, atol=1e-6)
    draws = 4000
    seen = torch.bincount(torch.tensor([sampler.next_token(LOGITS) for _ in range(draws)]), minlength=7)
    possible = p > 0
    assert int(seen[~possible].sum()) == 0
    statistic = float(((seen[possible] - draws * p[possible]) ** 2 / (draws * p[possible])).sum())
    assert statistic < CRITICAL[int(possible.sum()) - 2]


def test_greedy_takes_the_largest_and_a_tiny_temperature_does_too():
    """Without overflow."""
    assert Sampler(Sampling()).next_token(LOGITS) == 0
    assert Sampler(Sampling(1e-9)).next_token(LOGITS) == 0


def test_a_tiny_top_p_still_leaves_the_likeliest_token():
    """The first token always stays."""
    probabilities = Sampler(Sampling(1.0, top_p=1e-6)).probabilities(LOGITS)
    assert probabilities.tolist() == [1, 0, 0, 0, 0, 0, 0]


def test_a_seed_decides_the_draws_and_the_global_state_is_left_alone():
    """Same seed same draws, other seed other draws."""
    state = torch.random.get_rng_state()

    def draws(seed: int) -> list[int]:
        sampler = Sampler(Sampling(1.0, seed=seed))
        return [sampler.next_token(LOGITS) for _ in range(30)]

    assert draws(7) == draws(7) != draws(8)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": 11},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_p": math.nan},
        {"top_k": -1},
    ],
)
def test_settings_that_make_no_distribution_are_refused(wrong):
    """In one line with the allowed range."""
    with pytest.raises(UsageError, match="Give") as caught:
        Sampling(**wrong)
    assert "\n" not in str(caught.value)


TEXTS = [
    "plain, with spaces .\nand a second line\n\n  indented",
    "ภาษาไทยสวยงาม น้ำใจ ก็",
    "emoji 👩‍👩‍👧 and 🇹🇭 and é\n👍🏽 end",
    "tail \u00e9",
]


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_never_tear_a_character(text):
    """One token per byte: every piece is whole characters, and together they are the text."""
    tokenizer = byte_tokenizer()
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in text.encode()]
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert "".join(pieces) + stream.flush() == text
    assert max(len(piece) for piece in pieces) == 1


def test_an_answer_cut_inside_a_character_ends_in_the_replacement_sign():
    """The rest is not lost, and nothing is said twice."""
    stream = TextStream(byte_tokenizer())
    assert "".join(stream.push(token) for token in "ก".encode()[:2]) == ""
    assert stream.flush() == "\N{REPLACEMENT CHARACTER}"
    assert stream.flush() == ""


def test_invalid_bytes_do_not_stop_the_stream():
    """A lone continuation byte is shown once something follows it."""
    stream = TextStream(byte_tokenizer())
    assert stream.push(0x80) == ""
    assert stream.push(ord("a")) == "\N{REPLACEMENT CHARACTER}a"


def _metaspace_tokenizer() -> Any:
    """As sentencepiece models have it: a space before a word is part of it, and the first one is not shown."""
    words = ["\u2581one", "\u2581two", "\u2581", "\n", "x"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="x"))
    backend.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)


def test_the_space_after_a_line_break_survives():
    """Tokenizers that drop the very first space must not drop that of every line."""
    tokenizer = _metaspace_tokenizer()
    ids = [0, 1, 3, 1, 0, 3, 3, 2, 1]
    stream = TextStream(tokenizer)
    said = "".join(stream.push(token) for token in ids) + stream.flush()
    assert said == tokenizer.decode(ids) == "one two\n two one\n\n  two"

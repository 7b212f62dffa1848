"""The seed's decoder under its own names: tokens are tokens, drafts are verified, answers end where they must.

Seed features: S3.2, S3.3, S3.4, S3.5, S3.6, S3.7, S3.8, S3.9, S3.13, S3.15
"""

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor

import pytest

from tapwb.core.errors import UsageError
from tapwb.core.reading import Unavailable
from tapwb.engine.speculative_decoder import SpeculativeDecoder, StreamingSpeculativeDecoder
from tapwb.execution.speculative.records import TokenCandidate

PROMPT = "the cat and the dog and the cat and the"


def run(function):
    """What a coroutine gives. In a thread of its own: a browser test may have left its event loop in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(function())).result()


@pytest.fixture(scope="module")
def decoder():
    """Four bits draft, eight verify."""
    return SpeculativeDecoder("tiny-llama", "self:4", speculation_depth=3)


@pytest.fixture(scope="module")
def alone(decoder):
    """What the target writes by itself."""
    return decoder.engine.trace(PROMPT, 24, precision="8")


def test_a_draft_holds_tokens_with_their_log_probabilities(decoder):
    """Ids of the tokenizer, not characters; logarithms below 0, never a 0 that stands for nothing."""
    candidates, seconds = decoder.draft_generate(PROMPT, temperature=0.0)
    assert len(candidates) == 3
    assert seconds > 0
    for candidate in candidates:
        assert isinstance(candidate, TokenCandidate)
        assert candidate.text == decoder.engine.loaded.tokenizer.decode([candidate.token_id])
        assert -20 < candidate.logprob < 0
    sampled, _ = decoder.draft_generate(PROMPT, 5, temperature=1.0)
    assert len(sampled) == 5
    assert all(math.isfinite(candidate.logprob) for candidate in sampled)


def test_a_guess_that_was_looked_up_has_no_log_probability():
    """The reason in its place."""
    found = SpeculativeDecoder("tiny-llama", "ngram", 2).draft_generate(PROMPT)[0]
    assert found
    assert all(isinstance(candidate.logprob, Unavailable) for candidate in found)
    assert "unavailable" in found[0].to_json()["logprob"]


def test_verification_keeps_the_common_prefix_and_adds_the_targets_token(decoder, alone):
    """Two right guesses and a wrong one: two stand, the third place holds the target's own token."""
    right = alone[1].token_ids
    guesses = [TokenCandidate(token, -1.0, "") for token in (*right[:2], (right[2] + 1) % 1000, 5)]
    found = decoder.verify_draft(PROMPT, guesses, draft_time=0.25)
    assert isinstance(found.accepted_tokens, list)
    assert (found.draft_accepted, found.rejected_index, found.new_token_id) == (2, 2, right[2])
    assert found.accepted_tokens == [decoder.engine.loaded.tokenizer.decode([token]) for token in right[:2]]
    assert found.total_draft_time == 0.25
    assert found.verify_time > 0
    whole = decoder.verify_draft(PROMPT, [TokenCandidate(token, -1.0, "") for token in right[:4]])
    assert (whole.draft_accepted, whole.rejected_index, whole.new_token_id) == (4, 4, right[4])


def test_the_whole_prompt_with_accepted_text_is_verified(decoder, alone):
    """What was accepted belongs to the next round's prompt: its verdict differs from that of the first prompt."""
    right = alone[1].token_ids
    text = PROMPT + decoder.engine.loaded.tokenizer.decode(right[:4])
    assert decoder.verify_draft(text, []).new_token_id == right[4]


def test_an_answer_is_the_targets_with_every_metric(decoder, alone):
    """Never longer than asked for; acceptance at most 1; a speedup against plain steps, or why there is none."""
    found = decoder.generate(PROMPT, 24, temperature=0.0)
    assert found["content"] == alone[0]
    assert found["tokens_generated"] == len(alone[1].token_ids) <= 24
    assert found["acceptance_rate"].value <= 1
    assert found["total_time"] >= found["draft_time"] + found["verify_time"]
    assert found["draft_time"] > 0
    assert found["finish_reason"] == "length"
    assert decoder.generate(PROMPT, 1, temperature=0.0)["tokens_generated"] == 1


def test_running_metrics_are_means_over_requests():
    """Three requests; the mean is theirs, and there is none before the first."""
    decoder = SpeculativeDecoder("tiny-llama", "self:4", 2)
    assert decoder.metrics["total_requests"] == 0
    assert isinstance(decoder.metrics["avg_acceptance_rate"], Unavailable)
    rates = [decoder.generate(PROMPT[:end], 12, temperature=0.0)["acceptance_rate"].value for end in (20, 30, 38)]
    assert decoder.metrics["total_requests"] == 3
    assert decoder.metrics["avg_acceptance_rate"].value == pytest.approx(sum(rates) / 3)
    assert decoder.metrics["avg_acceptance_rate"].n == 3


def test_the_stream_tells_every_round_and_then_the_whole(alone):
    """Pieces add up to the answer; the callback hears text and acceptance; the event loop is not held."""
    decoder = StreamingSpeculativeDecoder("tiny-llama", "self:5")
    assert (decoder.min_depth, decoder.max_depth) == (2, 6)
    heard = []

    async def collect():
        told = lambda piece, share: heard.append((piece, share))  # noqa: E731 - a callback of one expression
        return [
            event
            async for event in decoder.stream_generate(PROMPT, told, max_output_tokens=24, temperature=0.0)
        ]  # fmt: skip

    events = run(collect)
    assert [event["type"] for event in events] == ["tokens"] * (len(events) - 1) + ["done"]
    ids = [token for event in events[:-1] for token in event["token_ids"]]
    assert tuple(ids) == alone[1].token_ids
    assert events[-1]["content"] == alone[0]
    assert "".join(event["content"] for event in events[:-1]) == alone[0]
    assert heard
    assert all(0 <= share <= 1 for _, share in heard)
    assert {event["drafted"] for event in events[:-1]} <= {0, 1, 2, 3, 4, 5, 6}


def test_leaving_the_stream_ends_the_writing():
    """The next request is answered as if nothing had been."""
    decoder = StreamingSpeculativeDecoder("tiny-llama", "self:4")

    async def first_two():
        seen = []
        async for event in decoder.stream_generate(PROMPT, max_output_tokens=200, temperature=0.0):
            seen.append(event)
            if len(seen) == 2:
                break
        return seen

    assert len(run(first_two)) == 2
    assert decoder.metrics["total_requests"] == 0
    assert decoder.generate(PROMPT, 8, temperature=0.0)["tokens_generated"] == 8


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"draft_model": "off"}, "guesses nothing"),
        ({"speculation_depth": 0}, "guesses nothing"),
        ({"speculation_depth": 7}, r"Give 0 \(off\) to 6"),
        ({"draft_model": "self:5", "precision": 5}, "draft and target would be the same"),
        ({"draft_model": "tiny-llama"}, "is not a way to speculate"),
    ],
    ids=str,
)
def test_draft_and_target_must_differ(options, reason):
    """Refused before anything is loaded."""
    with pytest.raises(UsageError, match=reason):
        SpeculativeDecoder("tiny-llama", **options)


def test_a_draft_that_is_the_target_is_refused():
    """The seed's benchmark had the same model on both sides."""
    with pytest.raises(UsageError, match="is the target itself"):
        SpeculativeDecoder("tiny-llama", "draft:tiny-llama").generate(PROMPT, 4)

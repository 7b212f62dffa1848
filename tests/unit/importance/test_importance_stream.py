"""Importance while decoding uses the past only."""

import dataclasses

import pytest
import torch

from tapwb.core.errors import UsageError
from tapwb.importance import TokenFacts, TokenImportanceAnalyzer, rank_in_sequence, signals


def prompt(n_tokens: int = 9, vocab: int = 19) -> TokenFacts:
    """A scored prompt."""
    g = torch.Generator().manual_seed(2)
    logits = torch.randn(1, n_tokens, vocab, generator=g)
    ids = torch.randint(0, vocab, (1, n_tokens), generator=g)
    return TokenFacts(ids, vocab, n_prompt_tokens=n_tokens, logits=logits, low_logits=logits)


@pytest.mark.parametrize("name", ["entropy_prev", "surprisal", "token_id"])
def test_streamed_scores_equal_the_rank_in_the_text_so_far(name):
    """Token by token, the stream gives what the whole text up to there would give."""
    facts = prompt()
    stream = TokenImportanceAnalyzer(name).stream(facts)
    logits, ids = facts.logits, facts.token_ids
    for step in range(5):
        new_id = (7 * step + 3) % 19
        found = stream.next_score(logits[0, -1], new_id)
        ids = torch.cat([ids, torch.tensor([[new_id]])], dim=1)
        logits = torch.cat([logits, torch.randn(1, 1, 19)], dim=1)
        whole = TokenFacts(ids, 19, n_prompt_tokens=9, logits=logits)
        assert found == pytest.approx(float(rank_in_sequence(signals[name](whole))[0, -1]), abs=1e-6)


def test_signals_that_are_not_causal_get_a_stand_in_or_are_named_as_dropped():
    """Own entropy becomes the previous step's; attention received has no causal form."""
    stream = TokenImportanceAnalyzer({"entropy": 3, "attention": 1}).stream(prompt())
    assert stream.signals == {"entropy_prev": 1.0}
    assert stream.dropped == ("attention",)
    assert TokenImportanceAnalyzer("gradient").stream(prompt()).signals == {"entropy_prev": 1.0}
    assert TokenImportanceAnalyzer("shuffled:entropy").stream(prompt()).signals == {"random": 1.0}


def test_the_oracle_cannot_decide_while_decoding():
    """It is refused with the way out."""
    with pytest.raises(UsageError, match="choose entropy_prev"):
        TokenImportanceAnalyzer("oracle").stream(prompt())


def test_the_random_control_changes_from_step_to_step():
    """Otherwise it would not be a control."""
    stream = TokenImportanceAnalyzer("random").stream(prompt())
    assert len({stream.next_score(torch.zeros(19), 1) for _ in range(12)}) > 4


def test_rejected_tokens_are_undone():
    """After restore the same tokens get the same scores."""
    stream = TokenImportanceAnalyzer({"entropy_prev": 1, "surprisal": 1, "random": 1}).stream(prompt())
    state = stream.snapshot()
    rows = torch.randn(4, 19)
    first = [stream.next_score(row, i) for i, row in enumerate(rows)]
    stream.restore(state)
    assert [stream.next_score(row, i) for i, row in enumerate(rows)] == first


def test_a_prompt_that_lacks_a_signals_facts_is_no_error():
    """Without logits of the prompt the window fills while decoding; with those of the low pass it is full at once."""
    facts = prompt()
    bare = dataclasses.replace(facts, logits=None, low_logits=None)
    assert TokenImportanceAnalyzer("entropy_prev").stream(bare).next_score(torch.randn(19), 4) == 0.5
    low = dataclasses.replace(facts, logits=None)
    assert TokenImportanceAnalyzer("entropy_prev").stream(low).next_score(torch.zeros(19), 4) > 0.9


def test_a_stream_without_a_prompt_starts_neutral():
    """There is nothing to compare the first token with."""
    assert TokenImportanceAnalyzer("entropy_prev").stream().next_score(torch.randn(19), 4) == 0.5

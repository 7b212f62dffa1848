"""What signals are told is checked once, where it enters."""

import pytest
import torch

from tapwb.core.errors import EmptyPrompt, UsageError
from tapwb.importance import TokenFacts, zipf_log_frequency


def test_no_token_is_an_empty_prompt():
    """An empty text is refused before any signal sees it."""
    with pytest.raises(EmptyPrompt, match="at least one token"):
        TokenFacts(torch.zeros(1, 0, dtype=torch.long), 11)


def test_a_missing_batch_axis_is_named():
    """Ids of shape (token,) are refused with the way out."""
    with pytest.raises(UsageError, match=r"token_ids\[None\]"):
        TokenFacts(torch.zeros(5, dtype=torch.long), 11)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("attention_received", (1, 4)),
        ("logits", (1, 6, 11)),
        ("low_logits", (2, 5, 11)),
        ("hidden_norms", (3, 1, 4)),
        ("gradient_x_input", (5,)),
    ],
)
def test_facts_of_another_text_are_refused(name, shape):
    """Facts must cover exactly the tokens of the text."""
    with pytest.raises(UsageError, match=name):
        TokenFacts(torch.zeros(1, 5, dtype=torch.long), 11, **{name: torch.zeros(shape)})


def test_token_texts_of_another_length_are_refused():
    """One text per token, or none."""
    with pytest.raises(UsageError, match="token_texts"):
        TokenFacts(torch.zeros(1, 3, dtype=torch.long), 11, token_texts=(("a", "b"),))


def test_captured_lists_only_what_is_there():
    """None means not captured."""
    facts = TokenFacts(torch.zeros(1, 3, dtype=torch.long), 11, logits=torch.zeros(1, 3, 11))
    assert "logits" in facts.captured()
    assert "low_logits" not in facts.captured()


def test_the_frequency_prior_is_a_distribution_that_falls_with_the_id():
    """Low ids are common, and probabilities sum to one."""
    prior = zipf_log_frequency(1009)
    assert float(prior.exp().sum()) == pytest.approx(1, abs=1e-4)
    assert bool((prior.diff() < 0).all())

"""Each signal measures what its name says."""

import math

import pytest
import torch

from tapwb.importance import TokenFacts, entropy_nats, kl_nats, signals

IDS = torch.tensor([[3, 1, 4, 1, 5, 9]])


def facts(**known) -> TokenFacts:
    """Facts about one short text."""
    return TokenFacts(IDS, 11, **known)


def test_entropy_of_known_distributions():
    """Uniform over the vocabulary is log n; certainty is 0, also with impossible tokens."""
    logits = torch.stack([torch.zeros(8), torch.tensor([0.0] + [-math.inf] * 7)])[None]
    assert entropy_nats(logits)[0].tolist() == pytest.approx([math.log(8), 0.0], abs=1e-6)


def test_entropy_in_chunks_equals_entropy_at_once():
    """Long texts are worked on in pieces with the same result."""
    logits = torch.randn(2, 301, 13)
    p = torch.log_softmax(logits, -1)
    torch.testing.assert_close(entropy_nats(logits), -(p.exp() * p).sum(-1))


def test_kl_is_zero_for_equal_and_exact_for_known_distributions():
    """KL(p||q) of two coins, and nothing for the same coin."""
    p, q = torch.tensor([[[0.5, 0.5]]]).log(), torch.tensor([[[0.25, 0.75]]]).log()
    assert float(kl_nats(p, p)) == 0
    assert float(kl_nats(p, q)) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), abs=1e-6)


def test_oracle_is_the_divergence_of_the_low_pass_from_the_high():
    """The token whose prediction the low pass changed most ranks first."""
    logits = torch.randn(1, 6, 11)
    low = logits.clone()
    low[0, 4] = -5 * low[0, 4]
    raw = signals["oracle"](facts(logits=logits, low_logits=low))
    assert int(raw.argmax()) == 4
    assert raw[0, [0, 1, 2, 3, 5]].abs().max() < 1e-5


def test_entropy_prefers_the_low_pass_and_entropy_prev_is_one_step_late():
    """Own entropy reads row t of the low pass; the causal one reads row t - 1 of the high pass."""
    high, low = torch.randn(1, 6, 11), torch.randn(1, 6, 11)
    known = facts(logits=high, low_logits=low)
    torch.testing.assert_close(signals["entropy"](known), entropy_nats(low))
    late = signals["entropy_prev"](known)
    assert late[0, 0].isnan()
    torch.testing.assert_close(late[:, 1:], entropy_nats(high)[:, :-1])


def test_surprisal_is_minus_log_probability_of_the_token_that_came():
    """Against log_softmax, and no opinion of the first token."""
    logits = torch.randn(1, 6, 11)
    raw = signals["surprisal"](facts(logits=logits))
    assert raw[0, 0].isnan()
    expected = [-float(torch.log_softmax(logits[0, t - 1], -1)[IDS[0, t]]) for t in range(1, 6)]
    assert raw[0, 1:].tolist() == pytest.approx(expected, abs=1e-5)


def test_attention_has_no_opinion_of_the_sinks():
    """The first four positions are NaN; the facts themselves stay as they were."""
    received = torch.tensor([[9.0, 8.0, 7.0, 6.0, 0.1, 0.2]])
    raw = signals["attention"](facts(attention_received=received))
    assert raw[0, :4].isnan().all()
    assert raw[0, 4:].tolist() == pytest.approx([0.1, 0.2])
    assert not received.isnan().any()


def test_hidden_norm_does_not_let_one_layer_decide():
    """A scale per layer changes no rank."""
    norms = torch.rand(3, 1, 6) + 0.1
    scaled = norms * torch.tensor([1.0, 1000.0, 0.01])[:, None, None]
    a, b = (signals["hidden_norm"](facts(hidden_norms=n)) for n in (norms, scaled))
    assert a.argsort().equal(b.argsort())


def test_position_favours_sinks_the_end_of_the_prompt_and_the_early_answer():
    """The three peaks stand out from what lies between them."""
    ids = torch.zeros(1, 600, dtype=torch.long)
    raw = signals["position"](TokenFacts(ids, 11, n_prompt_tokens=400))[0]
    assert raw[0] > raw[50]
    assert raw[399] > raw[200]
    assert raw[400] > raw[500]


def test_token_id_ranks_control_tokens_then_digits_then_rare_words():
    """A control token is above all, and a digit above a word of nearly the same frequency."""
    known = TokenFacts(
        torch.tensor([[0, 500, 501, 2]]), 1000, special_ids=frozenset({0}), token_texts=(("<s>", "word", "7", "the"),)
    )
    assert signals["token_id"](known)[0].argsort(descending=True).tolist() == [0, 2, 1, 3]


def test_gradient_counts_magnitude_not_sign():
    """A strong negative product matters as much as a positive one."""
    raw = signals["gradient"](facts(gradient_x_input=torch.tensor([[0.0, -3.0, 2.0, 1.0, 0.5, 0.1]])))
    assert int(raw.argmax()) == 1


def test_random_depends_on_the_seed_only():
    """The same seed gives the same scores, another seed others; torch's own generator is not touched."""
    torch.manual_seed(0)
    first = signals["random"](facts(seed=1))
    torch.manual_seed(1)
    assert torch.equal(first, signals["random"](facts(seed=1)))
    assert not torch.equal(first, signals["random"](facts(seed=2)))

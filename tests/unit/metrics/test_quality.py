"""Perplexity, divergence and agreement against closed forms."""

import math

import numpy as np
import pytest
import torch

from tapwb.core.errors import InvalidTensor, UsageError
from tapwb.core.reading import Unavailable
from tapwb.metrics.quality import (
    excess_pct,
    is_same_top1,
    kl_nats,
    mean_over_windows,
    nll_nats,
    perplexity_from_nll,
    perplexity_ratio,
    top1_agreement,
)


def logits(*shape, seed=0, scale=3.0):
    """Random predictions."""
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary():
    """Equal logits over 37 tokens give exactly 37."""
    nll = nll_nats(torch.zeros(3, 11, 37), torch.randint(0, 37, (3, 11)))
    assert perplexity_from_nll(nll).value == pytest.approx(37, rel=1e-6)
    assert perplexity_from_nll(nll).n == 33


def test_nll_is_torchs_cross_entropy():
    """Chunked over an odd vocabulary, the same numbers."""
    predicted, targets = logits(2, 7, 101), torch.randint(0, 101, (2, 7))
    expected = torch.nn.functional.cross_entropy(predicted.flatten(0, 1), targets.flatten(), reduction="none")
    torch.testing.assert_close(nll_nats(predicted, targets, vocab_chunk=13).flatten(), expected)


def test_kl_of_two_coins_is_the_closed_form():
    """With p = (3/4, 1/4) against q = (1/2, 1/2)."""
    p, q = torch.tensor([0.75, 0.25]).log(), torch.tensor([0.5, 0.5]).log()
    assert kl_nats(p[None], q[None]).item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-5)


@pytest.mark.parametrize("vocab_chunk", [1, 10, 97, 1000])
def test_kl_does_not_depend_on_the_chunks(vocab_chunk):
    """Any chunk gives torch's own answer in fp64."""
    reference, candidate = logits(2, 5, 97), logits(2, 5, 97, seed=1)
    log_p, log_q = reference.double().log_softmax(-1), candidate.double().log_softmax(-1)
    expected = (log_p.exp() * (log_p - log_q)).sum(-1).float()
    torch.testing.assert_close(kl_nats(reference, candidate, vocab_chunk), expected, rtol=1e-4, atol=1e-6)


def test_kl_of_equal_predictions_is_zero_even_when_shifted():
    """Adding a constant to all logits changes nothing."""
    reference = logits(4, 49)
    assert kl_nats(reference, reference + 5).abs().max() < 1e-6


def test_kl_holds_at_half_precision_and_large_logits():
    """bf16 logits around 80 neither overflow nor turn negative."""
    reference = (80 + logits(3, 33)).bfloat16()
    found = kl_nats(reference, reference.roll(1, -1))
    assert found.isfinite().all()
    assert (found > 0).all()


def test_tokens_that_the_reference_excludes_cost_nothing():
    """A masked column on both sides, or on the reference's alone, is no NaN."""
    reference, candidate = logits(2, 9), logits(2, 9, seed=3)
    masked = reference.clone()
    masked[:, 4] = -math.inf
    also_masked = candidate.clone()
    also_masked[:, 4] = -math.inf
    keep = [0, 1, 2, 3, 5, 6, 7, 8]
    torch.testing.assert_close(kl_nats(masked, also_masked), kl_nats(reference[:, keep], candidate[:, keep]))
    assert kl_nats(masked, candidate).isfinite().all()
    assert kl_nats(reference, also_masked).isinf().all()


@pytest.mark.parametrize("bad", [torch.full((2, 5), math.nan), logits(2, 6), logits(3, 5)])
def test_predictions_that_cannot_be_compared_are_refused(bad):
    """NaN, another vocabulary, another number of tokens."""
    with pytest.raises(InvalidTensor):
        kl_nats(logits(2, 5), bad)


def test_targets_must_match_the_rows():
    """One target per row."""
    with pytest.raises(InvalidTensor, match="one target per row"):
        nll_nats(logits(2, 5, 7), torch.zeros(2, 4, dtype=torch.long))


def test_agreement_is_the_share_of_equal_first_choices():
    """Two of five rows changed their mind."""
    reference = logits(5, 17)
    candidate = reference.clone()
    candidate[[1, 3]] = -reference[[1, 3]]
    assert is_same_top1(reference, candidate).tolist() == [True, False, True, False, True]
    assert top1_agreement(reference, candidate) == pytest.approx(0.6)
    with pytest.raises(InvalidTensor, match="no token"):
        top1_agreement(logits(0, 5), logits(0, 5))


def test_perplexity_weighs_tokens_not_windows():
    """A window of three tokens counts three times a window of one."""
    reading = perplexity_from_nll([[1.0, 1.0, 1.0], [3.0]], n_resamples=0)
    assert reading.value == pytest.approx(math.exp(6 / 4))
    assert reading.ci95 is None


def test_the_interval_of_the_perplexity_comes_from_windows():
    """Values that differ between windows only: resampling tokens would be four times too sure."""
    nll = np.repeat(np.random.default_rng(0).normal(3, 0.3, (12, 1)), 16, axis=1)
    low, high = perplexity_from_nll(nll).ci95
    as_if_independent = perplexity_from_nll(nll.reshape(-1, 1)).ci95
    assert math.log(high / low) > 3 * math.log(as_if_independent[1] / as_if_independent[0])


def test_the_ratio_is_paired():
    """Windows differ a lot, both models alike: the ratio is exact although the perplexities are not."""
    reference = np.random.default_rng(1).normal(3, 1, (9, 13))
    reading = perplexity_ratio(reference, reference + math.log(1.13))
    assert reading.value == pytest.approx(1.13)
    assert reading.ci95 == pytest.approx((1.13, 1.13))
    assert excess_pct(reading).value == pytest.approx(13)
    assert excess_pct(reading).unit == "%"


def test_the_ratio_of_other_tokens_is_refused():
    """The same tokens in other windows are not pairs either."""
    with pytest.raises(UsageError, match="same tokens"):
        perplexity_ratio([[1.0, 2.0]], [[1.0], [2.0]])


def test_nothing_scored_is_an_error_not_a_perplexity():
    """No window, and windows of nothing."""
    for empty in ([], [[]]):
        with pytest.raises(UsageError, match="no token"):
            perplexity_from_nll(empty)
    with pytest.raises(UsageError, match="not finite"):
        perplexity_from_nll([[1.0, math.nan], [1.0, 2.0]])


def test_one_window_has_a_mean_and_no_interval():
    """Nothing to resample."""
    reading = mean_over_windows(torch.tensor([[0.25, 0.75]]), "nat", "measured:kl")
    assert (reading.value, reading.n, reading.ci95) == (0.5, 2, None)


def test_the_excess_of_a_missing_ratio_is_missing():
    """The reason passes through."""
    assert excess_pct(Unavailable("not run")) == Unavailable("not run")

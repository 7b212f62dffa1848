"""TokenImportanceAnalyzer: weights, defaults by architecture, controls, correlation."""

from types import SimpleNamespace

import pytest
import torch

from tapwb.core.errors import UnknownName, UsageError
from tapwb.core.reading import Unavailable
from tapwb.importance import TokenFacts, TokenImportanceAnalyzer, combine, rank_correlation
from tapwb.importance.signal import ENTROPY_SPREAD, spread_of


@pytest.fixture
def facts():
    """Two texts of eleven tokens with everything the default signals want."""
    g = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 11, 23, generator=g)
    return TokenFacts(
        torch.randint(0, 23, (2, 11), generator=g),
        23,
        logits=logits,
        low_logits=logits + torch.randn(2, 11, 23, generator=g),
        attention_received=torch.rand(2, 11, generator=g),
        state_write=torch.rand(2, 11, generator=g),
    )


def anatomy(caches: int, states: int):
    """The part of an anatomy that decides."""
    return SimpleNamespace(caches=(object(),) * caches, carried_states=(object(),) * states)


def test_defaults_follow_the_architecture():
    """Attention counts only where there is attention, state writes only where there is a state."""
    attention = TokenImportanceAnalyzer.default_for(anatomy(5, 0))
    recurrent = TokenImportanceAnalyzer.default_for(anatomy(0, 5))
    hybrid = TokenImportanceAnalyzer.default_for(anatomy(2, 3))
    assert "attention_received" in attention.needs
    assert "state_write" not in attention.needs
    assert "state_write" in recurrent.needs
    assert "attention_received" not in recurrent.needs
    assert {"attention_received", "state_write"} <= hybrid.needs
    assert all(max(a.weights, key=a.weights.get) == "entropy" for a in (attention, recurrent, hybrid))


def test_combined_scores_are_the_weighted_mean_and_stay_in_the_unit_interval(facts):
    """Weights of any positive scale, scores in [0, 1], parts shown."""
    importance = TokenImportanceAnalyzer({"entropy": 6, "attention": 2}).analyze(facts)
    expected = 0.75 * importance.parts["entropy"] + 0.25 * importance.parts["attention"]
    torch.testing.assert_close(importance.scores, expected)
    assert importance.signal == "0.75*entropy+0.25*attention"
    assert not importance.causal
    assert importance.part("entropy").spread == ENTROPY_SPREAD


def test_names_alone_weigh_equally_and_one_name_is_one_signal():
    """A list, a single name, and nothing at all are understood."""
    assert TokenImportanceAnalyzer(["entropy", "random"]).weights == {"entropy": 0.5, "random": 0.5}
    assert TokenImportanceAnalyzer("surprisal").weights == {"surprisal": 1.0}
    assert TokenImportanceAnalyzer().weights == {"entropy": 1.0}


@pytest.mark.parametrize("weights", [{}, {"entropy": 0}, {"entropy": -1, "random": 2}, {"entropy": float("nan")}])
def test_weights_that_cannot_be_combined_are_refused(weights):
    """None, all zero, negative or not a number."""
    with pytest.raises(UsageError, match="weight"):
        TokenImportanceAnalyzer(weights)


def test_a_misspelt_signal_is_found_before_any_model_runs():
    """The message offers the nearest name."""
    with pytest.raises(UnknownName, match="Did you mean 'entropy'"):
        TokenImportanceAnalyzer("entropi")


def test_combine_names_the_part_that_is_missing():
    """A weight without its scores is an error."""
    with pytest.raises(UsageError, match="attention"):
        combine({"entropy": torch.rand(1, 3)}, {"entropy": 1, "attention": 1})


def test_shuffled_scores_are_the_same_scores_on_other_tokens(facts):
    """Row by row the multiset is kept, the order is not, and the spread is the signal's own."""
    real = TokenImportanceAnalyzer("entropy").analyze(facts)
    shuffled = TokenImportanceAnalyzer("shuffled:entropy", seed=1).analyze(facts)
    assert torch.equal(real.scores.sort(dim=1).values, shuffled.scores.sort(dim=1).values)
    assert not torch.equal(real.scores, shuffled.scores)
    assert shuffled.spread == real.spread
    again = TokenImportanceAnalyzer("shuffled:entropy", seed=1).analyze(facts)
    assert torch.equal(shuffled.scores, again.scores)


def test_random_borrows_the_spread_of_entropy():
    """So that both controls and signal hand out the same bits."""
    assert spread_of("random") == spread_of("entropy")


def test_rank_correlation_of_monotone_and_reversed_scores():
    """A monotone map has correlation 1, its reverse -1."""
    x = torch.rand(3, 17)
    assert rank_correlation(x, x.exp()) == pytest.approx(1)
    assert rank_correlation(x, -x) == pytest.approx(-1)


def test_rank_correlation_with_ties_equals_a_hand_computation():
    """Ranks (1, 2.5, 2.5, 4) against (2, 1, 3, 4): products sum to 3, squares to 4.5 and 5."""
    found = rank_correlation(torch.tensor([1.0, 2, 2, 3]), torch.tensor([5.0, 4, 6, 7]))
    assert found == pytest.approx(3 / (4.5 * 5) ** 0.5)


@pytest.mark.parametrize(("a", "b"), [([1.0], [2.0]), ([1.0, 1.0], [1.0, 2.0]), ([1.0, float("nan")], [1.0, 2.0])])
def test_rank_correlation_that_does_not_exist_says_why(a, b):
    """Too few tokens, or all equal: unavailable, not zero."""
    assert isinstance(rank_correlation(torch.tensor(a), torch.tensor(b)), Unavailable)

"""Raw values become scores in [0, 1] by rank."""

import pytest
import torch

from tapwb.importance import RunningQuantile, rank_in_sequence

NAN, INF = float("nan"), float("inf")


def test_distinct_values_are_spread_evenly_and_never_reach_zero_or_one():
    """Rank minus one half over n, whatever the distances between the values."""
    assert rank_in_sequence(torch.tensor([[5.0, -2.0, 1e9]])).tolist() == [pytest.approx([1 / 2, 1 / 6, 5 / 6])]


def test_equal_values_share_their_mean_rank():
    """Ties get one score; a row of equal values is neutral."""
    assert rank_in_sequence(torch.tensor([[1.0, 2.0, 2.0, 3.0]])).tolist() == [[0.125, 0.5, 0.5, 0.875]]
    assert rank_in_sequence(torch.full((2, 7), 3.0)).eq(0.5).all()


def test_tokens_without_opinion_are_neutral_and_do_not_count():
    """NaN gets 0.5, and the others rank among themselves."""
    assert rank_in_sequence(torch.tensor([[NAN, 1.0, NAN, 2.0]])).tolist() == [[0.5, 0.25, 0.5, 0.75]]
    assert rank_in_sequence(torch.tensor([[NAN, NAN]])).tolist() == [[0.5, 0.5]]


def test_infinite_values_are_ranked_like_others():
    """Minus and plus infinity are the ends of the order."""
    assert rank_in_sequence(torch.tensor([[INF, 0.0, -INF, 7.0]])).tolist() == [[0.875, 0.375, 0.125, 0.625]]


def test_rows_are_ranked_apart():
    """A row's scores do not depend on the other rows."""
    raw = torch.randn(3, 11)
    assert torch.equal(rank_in_sequence(raw)[1:2], rank_in_sequence(raw[1:2]))


def test_running_quantile_agrees_with_the_rank_among_past_and_self():
    """Each new value gets the score it would have at the end of the text so far."""
    values = torch.randint(0, 9, (40,)).double()
    running = RunningQuantile(window=100)
    for i in range(len(values)):
        expected = float(rank_in_sequence(values[None, : i + 1])[0, -1])
        assert running.score(float(values[i])) == pytest.approx(expected)


def test_running_quantile_forgets_what_left_the_window():
    """Only the last values count, so the score follows a drift."""
    running = RunningQuantile(window=5)
    running.update([100.0] * 50)
    running.update([1.0, 2.0, 3.0, 4.0, 5.0])
    assert len(running) == 5
    assert running.score(6.0) == pytest.approx(5.5 / 6)


def test_running_quantile_without_past_or_opinion_is_neutral():
    """Nothing to compare with means 0.5, and NaN leaves no trace."""
    running = RunningQuantile()
    assert running.score(NAN) == 0.5
    assert len(running) == 0
    assert running.score(3.0) == 0.5


def test_running_quantile_goes_back_to_a_snapshot():
    """Rejected draft tokens leave no trace."""
    running = RunningQuantile(window=4)
    running.update([3.0, 1.0, 2.0])
    state = running.snapshot()
    expected = running.score(2.5)
    running.update([9.0, 9.0, 9.0])
    running.restore(state)
    assert running.score(2.5) == expected

"""The controller keeps the mean against any stream of scores."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tapwb.plan import PrecisionController

LEVEL_SETS = [(4, 5, 6, 8), (4, 8), (2, 3, 4, 8), (4, 5, 6, 8, 16), (4, 8, 16, 32), (5, 6), (6,)]


def stream(kind: str, n: int, period: int, seed: int) -> list[float]:
    """Score streams that try to drag the mean away."""
    if kind == "ones":
        return [1.0] * n
    if kind == "zeros":
        return [0.0] * n
    if kind == "alternating":
        return [float(i % 2) for i in range(n)]
    if kind == "blocks":
        return [float(i // period % 2) for i in range(n)]
    if kind == "ramp":
        return [i / (n - 1) for i in range(n)]
    if kind == "late burst":
        return [0.0] * (n - period % n) + [1.0] * (period % n)
    return torch.rand(n, generator=torch.Generator().manual_seed(seed)).tolist()


KINDS = ["ones", "zeros", "alternating", "blocks", "ramp", "late burst", "random"]


@settings(deadline=None, max_examples=150)
@given(
    kind=st.sampled_from(KINDS),
    levels=st.sampled_from(LEVEL_SETS),
    share=st.floats(0, 1),
    spread=st.floats(0, 1.5),
    hysteresis=st.floats(0, 0.5),
    period=st.integers(1, 150),
    seed=st.integers(0, 99),
)
def test_the_running_mean_is_within_two_percent_after_200_tokens(kind, levels, share, spread, hysteresis, period, seed):
    """From token 200 on, whatever the scores do."""
    target = min(levels[0] + share * (levels[-1] - levels[0]), levels[-1])
    controller = PrecisionController(levels, target, hysteresis=hysteresis, spread=spread)
    for score in stream(kind, 400, period, seed):
        assert controller.next_bits(score) in levels
        assert abs(controller.overspent_bits) <= controller.band_bits + 1e-6
        if controller.n_tokens >= 200:
            assert abs(controller.mean_bits / target - 1) <= 0.02


@settings(deadline=None, max_examples=60)
@given(st.data(), st.integers(0, 99))
def test_an_adversary_who_sees_the_account_cannot_break_the_mean(data, seed):
    """Scores chosen to push the account further in the direction it already leans."""
    controller = PrecisionController((4, 5, 6, 8), data.draw(st.floats(4, 8)), spread=1.08)
    for _ in range(260):
        controller.next_bits(1.0 if controller.overspent_bits >= 0 else 0.0)
    assert abs(controller.mean_bits / controller.target_mean_bits - 1) <= 0.02


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0, 1), max_size=50), st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_restore_makes_rejected_tokens_undone(before, drafted):
    """After going back, the same scores give the same bits as if nothing had been drafted."""
    controller = PrecisionController((4, 5, 6, 8), 5.3)
    for score in before:
        controller.next_bits(score)
    state = controller.snapshot()
    first = [controller.next_bits(score) for score in drafted]
    controller.restore(state)
    assert [controller.next_bits(score) for score in drafted] == first

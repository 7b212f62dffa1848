"""Exponents and decays that overflow or cancel when they are handled carelessly.

Seed features: S1.21
"""

import dataclasses
import math

import pytest
import torch

from tapwb.models.recurrent.channel_decay import scores
from tapwb.models.recurrent.forgetting import forget
from tapwb.models.recurrent.head_decay import segment_decay
from tapwb.models.recurrent.rwkv4 import EMPTY_MAXIMUM


@pytest.mark.parametrize("size", [100.0, 10_000.0])
@pytest.mark.parametrize("rates", ["near 1", "mixed"])
def test_rwkv4_averages_with_exponents_of_any_size(cases, size, rates, assert_near):
    """`exp(89)` is infinite in fp32; the running maximum keeps thousands exact, by steps and by a chunk."""
    case = cases["rwkv4"]
    inputs, state = case.inputs(500, rates), case.state(3)
    inputs = dataclasses.replace(inputs, k=inputs.k + size * torch.tensor([1.0, -1.0]).repeat(6)[:11])
    expected = case.reference(inputs, state)
    assert_near(expected, case.form.chunk(inputs, state))
    assert_near(expected, case.by_steps(inputs, state))


def test_rwkv4_a_slow_channel_does_not_drift_behind_a_large_maximum(cases, assert_near):
    """A maximum of 1000 that loses 1e-5 a token is rounded to itself each time; the weights still decay."""
    case = cases["rwkv4"]
    inputs = case.inputs(1000)
    k = torch.full_like(inputs.k, 999.0)
    k[:, 0] = 1000.0
    inputs = dataclasses.replace(inputs, k=k, log_decay=torch.full((11,), -1e-5))
    expected = case.reference(inputs, case.form.init_state(2))
    for read in (case.form.chunk, case.by_steps):
        assert_near(expected[0], read(inputs, case.form.init_state(2))[0])


def test_rwkv4_the_maximum_is_carried_in_the_state(cases, assert_near):
    """After exponents of 300, one of 0 does not move the average; a state without its maximum would let it."""
    case = cases["rwkv4"]
    inputs, empty = case.inputs(64, "near 1"), case.form.init_state(2)
    assert bool((empty["maximum"] == EMPTY_MAXIMUM).all())
    _, loud = case.form.chunk(dataclasses.replace(inputs, k=inputs.k + 300), empty)
    assert bool((loud["maximum"] > 250).all())
    average = (loud["numerator"] / loud["denominator"]).unsqueeze(1)
    assert_near(average.expand_as(inputs.v), case.form.chunk(inputs, loud)[0])


def test_a_small_decay_behind_a_large_one_keeps_its_digits():
    """Differences of running sums would put 1e-3 behind 1000 wrong by 6 %."""
    log_decay = torch.full((64,), -1e-3)
    log_decay[3] = -1000.0
    decay = segment_decay(log_decay)
    assert float(decay[63, 3]) == pytest.approx(torch.tensor(-1e-3 * 60).exp().item(), rel=1e-6)
    assert float(decay[63, 2]) == 0
    assert bool((decay.triu(1) == 0).all())


def test_scores_under_channel_decays_are_finite_where_the_inverse_decay_overflows():
    """Sixteen tokens of log-decay -100: the factor `exp(1600)` of the usual split is infinite."""
    q, k = torch.ones(16, 2), torch.ones(16, 2)
    log_decay = torch.stack([torch.full((16,), -100.0), torch.full((16,), -0.1)], dim=-1)
    found = scores(q, k, log_decay.exp())
    gap = torch.arange(16)[:, None] - torch.arange(16) - 1
    expected = torch.where(gap == 0, 2.0, torch.exp(-0.1 * gap)).masked_fill(gap < 0, 0)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("log_decay", [-3e-8, -1e-6, -1e-4, -0.01])
def test_a_fixed_decay_does_not_drift(log_decay):
    """Twenty thousand tokens; `exp` of the first is one in fp32, and nothing would be forgotten at all."""
    rate, state, expected = torch.tensor([log_decay]), torch.tensor([1.0]), 1.0
    for _ in range(20_000):
        state = forget(state, rate, torch.tensor([1e-3]))
        expected = expected * math.exp(float(rate)) + 1e-3
    assert float(state) == pytest.approx(expected, rel=1e-4)


def test_a_fast_decay_leaves_nothing_of_a_large_state():
    """A state of 1e20 is gone after a log-decay of -100, and not 1e20 less its rounded self."""
    assert float(forget(torch.tensor(1e20), torch.tensor(-100.0), torch.tensor(3.0))) == 3.0

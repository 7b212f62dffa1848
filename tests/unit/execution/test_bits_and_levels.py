"""Which row gets which level: the context around a pass, and the sources of levels while decoding.

Seed features: S1.8, S1.15
"""

import math

import pytest
import torch

from tapwb.core.errors import ExecutionError, UnsupportedBits
from tapwb.execution import dispatch
from tapwb.execution.bits import BitsContext
from tapwb.execution.levels import FixedLevel, SteeredLevel, ThresholdLevel
from tapwb.importance.stream import ImportanceStream
from tapwb.quant.nested import quantize_nested


def test_one_level_stays_one_number_and_equal_levels_become_one():
    """So that the common case costs no look at a tensor; outside a block the top level counts."""
    context = BitsContext(top_level=8)
    assert context.for_rows(17, 0.5) == 8
    with context.use(5):
        assert context.for_rows(17, 0.5) == 5
        with context.use(torch.full((3,), 4)):
            assert context.for_rows(3, 0.0) == 4
        assert context.for_rows(17, 0.5) == 5
    assert context.for_rows(17, 0.5) == 8


def test_the_level_is_restored_after_an_error():
    """A failed pass does not leave its levels behind."""
    context = BitsContext()
    with pytest.raises(ZeroDivisionError), context.use(4):
        raise ZeroDivisionError
    assert context.for_rows(1, 0.0) == 8


def test_rows_that_a_layer_splits_get_the_level_of_their_token():
    """Three heads per token: each level three times."""
    context = BitsContext()
    with context.use(torch.tensor([4, 8])):
        got = context.for_rows(6, 0.0)
    assert isinstance(got, torch.Tensor)
    assert got.tolist() == [4, 4, 4, 8, 8, 8]


@pytest.mark.parametrize("n_rows", [0, 1, 3, 5])
def test_rows_that_no_plan_covers_are_refused(n_rows):
    """With both numbers and what to do."""
    context = BitsContext()
    with context.use(torch.tensor([4, 8])):
        if n_rows == 0:
            assert len(context.for_rows(0, 0.0)) == 0
            return
        with pytest.raises(ExecutionError, match=f"{n_rows} rows but the plan covers 2"):
            context.for_rows(n_rows, 0.0)


@pytest.mark.parametrize("n_layers", [2, 22, 23, 30, 43, 80])
def test_every_layer_finds_its_own_group(n_layers):
    """As many groups as layers: 15/22 * 22 is below 15 in floating point, and still names group 15."""
    context = BitsContext()
    plan = torch.arange(n_layers)[:, None].expand(-1, 2) * 2 + torch.tensor([0, 1])
    with context.use(plan):
        for layer in range(n_layers):
            got = context.for_rows(2, min(layer / n_layers, 0.999999))
            assert isinstance(got, torch.Tensor)
            assert got.tolist() == [2 * layer, 2 * layer + 1]


def test_levels_above_the_stored_ones_read_the_top():
    """16 and 32 of the seed's levels run at 8, in every implementation."""
    weight = quantize_nested(torch.randn(5, 70, generator=torch.Generator().manual_seed(0)), layout="4+4")
    x = torch.randn(3, 70, generator=torch.Generator().manual_seed(1))
    chosen = dispatch.current()
    names = ("grouped", "reference", "native") if dispatch.native().kernel() else ("grouped", "reference")
    for name in names:
        with dispatch.force(name):
            assert dispatch.current().name == name
            top = dispatch.linear(x, weight, 8)
            assert torch.allclose(dispatch.linear(x, weight, torch.tensor([8, 16, 32])), top, atol=1e-5)
    assert dispatch.current() == chosen


@pytest.mark.parametrize("bits", [0, 1, 2, torch.tensor([8, 2, 4])])
def test_levels_without_a_scale_of_their_own_are_refused(bits):
    """1 and 2 bits need planes that keep one; the message says how to get them."""
    weight = quantize_nested(torch.randn(5, 64), layout="4+4")
    with pytest.raises(UnsupportedBits, match=r"load_model\(\.\.\., levels="):
        dispatch.linear(torch.randn(3, 64), weight, bits)


def _random_logits(n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(n, 31, generator=generator) * torch.rand(n, 1, generator=generator) * 8


def test_a_steered_mean_is_kept_within_two_percent_after_200_tokens():
    """Whatever the entropies are; uncertain steps get more bits than sure ones."""
    levels = SteeredLevel(ImportanceStream({"entropy": 1.0}), (4, 5, 6, 8), 5.5)
    logits = _random_logits(200)
    bits = torch.tensor([levels.next_bits(row, 3) for row in logits], dtype=torch.double)
    assert abs(float(bits.mean()) / 5.5 - 1) <= 0.02
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    unsure = entropy > entropy.median()
    assert bits[unsure].mean() > bits[~unsure].mean()


def test_the_seeds_rule_sends_a_score_on_a_threshold_up():
    """Scores 0, 0.25, 0.5, 0.75 and 1 with the seed's own numbers."""

    class Scores:
        def __init__(self) -> None:
            self.left = [0.0, 0.2499, 0.25, 0.5, 0.75, 1.0]

        def next_score(self, logits: torch.Tensor, token_id: int) -> float:
            return self.left.pop(0)

    rule = ThresholdLevel(Scores(), (4, 8, 16, 32), (0.25, 0.5, 0.75))  # type: ignore[arg-type]
    assert [rule.next_bits(torch.zeros(2), 0) for _ in range(6)] == [4, 4, 8, 16, 32, 32]


def test_a_fixed_level_is_fixed():
    """Whatever the logits say."""
    assert {FixedLevel(6).next_bits(row, 0) for row in _random_logits(9)} == {6}
    assert math.isfinite(float(_random_logits(9).sum()))

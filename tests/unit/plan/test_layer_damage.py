"""Measured layer damage, and the planner that fills layers and tokens by it, on cases worked out by hand.

Seed features: S1.8
"""

import itertools

import pytest
import torch

from tapwb.core.errors import PlanError, PlanFileError
from tapwb.core.precision import parse_precision
from tapwb.plan import LayerDamage, PrecisionPlan, TokenDamage, budget_plan, make_plan
from tapwb.plan.cell_damage import cell_damage


def layers_of(nats, n_weights, levels=(3, 4, 5)):
    """A record with made-up names."""
    values = torch.tensor(nats, dtype=torch.float64)
    return LayerDamage(tuple(f"layer {i}" for i in range(len(nats))), tuple(n_weights), tuple(levels), values)


def total(bits, damage, levels):
    """Summed damage of bits of shape (layer_group, token)."""
    index = torch.tensor([[levels.index(b) for b in row] for row in bits.tolist()])
    return float(damage.gather(2, index[:, :, None]).sum())


def test_damage_is_read_as_measured_and_continued_by_theory():
    """At measured levels the numbers come back; between them the logarithm is a line; beyond, 3.5x a bit."""
    layers = layers_of([[0.9, 0.3, 0.1]], [10])
    assert layers.at((3, 4, 5))[0].tolist() == pytest.approx([0.9, 0.3, 0.1])
    assert layers.at((6, 8))[0].tolist() == pytest.approx([0.1 / 3.5, 0.1 / 3.5**3])
    assert float(layers_of([[0.8, 0.2]], [10], (3, 5)).at((4,))) == pytest.approx(0.4)


def test_unmeasured_levels_follow_the_curve_of_all_groups():
    """A group measured at 4 bits only falls as the whole model does; a curve that does not fall is not followed."""
    uniform = {3: 2.0, 4: 0.4, 5: 0.1, 6: 0.5}
    layers = LayerDamage(("a",), (10,), (4,), torch.tensor([[0.04]]), uniform)
    assert layers.at((3, 4, 5, 6))[0].tolist() == pytest.approx([0.2, 0.04, 0.01, 0.04 / 3.5**2])


def test_noise_cannot_make_a_bit_worthless_or_a_level_free():
    """A group that seems to improve with fewer bits, or to lose nothing at 5 bits, still falls by 2 to 8 a bit."""
    layers = layers_of([[0.08, 0.09, -0.001], [0.08, 0.0001, 0.0001]], [1, 1])
    first, second = layers.at((3, 4, 5)).tolist()
    assert first == pytest.approx([0.08, 0.04, 0.005])
    assert second == pytest.approx([0.08, 0.01, 0.00125])


def test_large_groups_pay_more_for_a_bit():
    """Two groups of equal damage, one three times larger: the small one gets the bits, and the mean counts weights."""
    layers = layers_of([[0.4, 0.1, 0.03]] * 2, [100, 300])
    plan = budget_plan(torch.full((40,), 0.5), (3, 4, 5), 3.5, spread=0, layers=layers)
    small, large = plan.bits.double().mean(dim=1).tolist()
    assert small == pytest.approx(4, abs=0.03), "what is left over buys a step of the small group"
    assert large == pytest.approx(3 + 1 / 3, abs=0.03)
    assert plan.mean_bits == pytest.approx(3.5, abs=0.01)
    assert float(plan.bits.double().mean()) > 3.6, "an unweighted mean would be something else"
    assert plan.token_mean_bits(0) == pytest.approx((5 + 3 * float(plan.bits[1, 0])) / 4)
    assert PrecisionPlan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("mean", [4.2, 5.0, 5.7])
def test_unequal_groups_are_filled_close_to_the_optimum(mean):
    """Against every plan of at most the same bits, the damage is within one step's saving."""
    levels, sizes = (4, 5, 6), (1, 2, 3)
    layers = layers_of([[0.4, 0.1, 0.03], [0.9, 0.3, 0.06], [0.5, 0.2, 0.07]], sizes, levels)
    scores = torch.tensor([0.2, 0.9])
    plan = budget_plan(scores, levels, mean, spread=0.7, layers=layers)
    damage = cell_damage(scores.double(), levels, 0.7, layers=layers)
    budget = int(mean * sum(sizes) * 2 + 1e-6)
    best = min(
        total(torch.tensor(bits).reshape(3, 2), damage, levels)
        for bits in itertools.product(levels, repeat=6)
        if sum(b * sizes[i // 2] for i, b in enumerate(bits)) <= budget
    )
    one_step = float((damage[:, :, 0] - damage[:, :, 1]).max())
    assert best <= total(plan.bits, damage, levels) <= best + one_step
    assert sum(int(b) * sizes[g] for g in range(3) for b in plan.bits[g]) <= budget


def test_a_level_that_does_not_pay_is_skipped():
    """Where 5 bits are hardly better than 4, tokens go from 4 to 6 at once: the lower convex hull of the curve."""
    curve = torch.tensor([[1.0] * 50, [0.99] * 50, [0.2] * 50])
    plan = budget_plan(torch.rand(50), (4, 5, 6), 5.0, token_damage=TokenDamage((4, 5, 6), curve))
    assert plan.histogram() == {4: 25, 5: 0, 6: 25}


def test_the_oracle_follows_each_tokens_own_curve():
    """A token that suffers only at 4 bits stops at 5; one that suffers at 5 as well goes on; ranks cannot tell."""
    nats = torch.tensor([[1.0, 1.0, 0.1, 0.1], [0.05, 0.9, 0.05, 0.09], [0.01, 0.05, 0.01, 0.01]])
    plan = budget_plan(torch.full((4,), 0.5), (4, 5, 6), 4.75, token_damage=TokenDamage((4, 5, 6), nats))
    assert plan.bits[0].tolist() == [5, 6, 4, 4]


def test_damage_that_does_not_fit_is_refused():
    """Wrong length, unmeasured level, not finite: each in one line that says what to do."""
    known = TokenDamage((4, 6), torch.rand(2, 5))
    with pytest.raises(PlanError, match="Score and plan the same text"):
        budget_plan(torch.rand(4), (4, 6), 5, token_damage=known)
    with pytest.raises(PlanError, match=r"\[5\] bits was not measured"):
        budget_plan(torch.rand(5), (4, 5, 6), 5, token_damage=known)
    with pytest.raises(PlanError, match="not a finite number"):
        budget_plan(torch.rand(5), (4, 6), 5, token_damage=TokenDamage((4, 6), torch.full((2, 5), torch.nan)))
    with pytest.raises(PlanError, match="fit together"):
        LayerDamage(("a",), (1, 2), (4,), torch.rand(1, 1))
    with pytest.raises(PlanError, match="not finite"):
        LayerDamage(("a",), (1,), (4,), torch.tensor([[torch.inf]]))


def test_the_record_survives_json_and_refuses_others():
    """What is cached comes back equal; anything else is measured again."""
    layers = layers_of([[0.4, 0.1, 0.03]], [7])
    again = LayerDamage.from_json(layers.to_json())
    assert again.to_json() == layers.to_json()
    for broken in ({}, {**layers.to_json(), "nats": [[1.0]]}, {**layers.to_json(), "format_version": 0}, []):
        with pytest.raises(PlanFileError, match="again"):
            LayerDamage.from_json(broken)


def test_layers_requests_need_the_measurement():
    """`layers:MEAN` without one is refused with the way to get it; with one the plan has a row per group."""
    request = parse_precision("layers:4.5")
    importance_free = {"n_tokens": 6}
    with pytest.raises(PlanError, match="layer_damage_of"):
        make_plan(request, _neutral(6), layers=None)
    plan = make_plan(request, _neutral(6), layers=layers_of([[0.4, 0.1, 0.03]] * 3, [5, 5, 10]), **importance_free)
    assert plan.bits.shape == (3, 6)
    assert plan.mean_bits == pytest.approx(4.5, abs=0.1)
    assert str(request) == "layers:4.5"
    assert str(parse_precision("layers:5:entropy")) == "layers:5:entropy"


def _neutral(n_tokens):
    from tapwb.importance import TokenImportance

    scores = torch.full((1, n_tokens), 0.5)
    return TokenImportance(scores, "uniform", True, {"uniform": scores}, 0.0)

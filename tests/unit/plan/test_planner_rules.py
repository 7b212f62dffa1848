"""The seed's rule, the budget planner and the floors on cases worked out by hand."""

import math

import pytest
import torch

from tapwb.core.errors import BudgetError, PlanError
from tapwb.plan import DEFAULT_FLOORS, FloorRequest, FloorRules, budget_plan, threshold_plan
from tapwb.plan.damage import bits_offset, damage_at


def test_the_seeds_rule_with_its_own_levels_and_thresholds():
    """4 / 8 / 16 / 32 cut at 0.25 / 0.5 / 0.75; a score on a threshold goes up; 16 and 32 are noted as reference."""
    scores = torch.tensor([0.0, 0.249, 0.25, 0.49, 0.5, 0.74, 0.75, 1.0])
    plan = threshold_plan(scores, [4, 8, 16, 32], [0.25, 0.5, 0.75])
    assert plan.bits.tolist() == [[4, 4, 8, 8, 16, 16, 32, 32]]
    assert len([note for note in plan.notes if "reference" in note]) == 2


def test_a_tie_is_a_tie_in_single_precision_too():
    """0.7 and 0.1 are not representable, and still belong to the higher level."""
    assert threshold_plan(torch.tensor([0.7, 0.1]), [4, 6, 8], [0.1, 0.7]).bits.tolist() == [[8, 6]]


@pytest.mark.parametrize(
    ("levels", "thresholds"),
    [
        ([8, 4], [0.5]),
        ([4, 4], [0.5]),
        ([4, 8], []),
        ([4, 8], [0.3, 0.6]),
        ([4, 6, 8], [0.6, 0.3]),
        ([4, 6, 8], [0.5, 0.5]),
        ([4, 8], [0.0]),
        ([4, 8], [1.0]),
        ([4, 8], [float("nan")]),
        ([], []),
    ],
)
def test_levels_and_thresholds_that_do_not_fit_are_refused(levels, thresholds):
    """Ascending and distinct levels; one fewer thresholds, strictly increasing, inside (0, 1)."""
    with pytest.raises(PlanError):
        threshold_plan(torch.rand(5), levels, thresholds)


def test_a_strong_signal_at_five_and_a_half_bits_stays_mostly_at_five_and_six():
    """Far-apart levels lose, so even a spread of 1 leaves the neighbours of the mean rarely."""
    counts = budget_plan(torch.rand(1000), (4, 5, 6, 8), 5.5, spread=1.0).histogram()
    assert counts[5] + counts[6] > 800
    assert 0 < counts[8] < 100


def test_with_no_trust_in_the_score_only_the_two_neighbours_are_used():
    """Spread 0 is the best mixture of the two levels around the mean, by order of score."""
    scores = torch.linspace(0, 1, 40)
    assert budget_plan(scores, (4, 5, 6, 8), 5.25, spread=0).bits.tolist() == [[5] * 30 + [6] * 10]


def test_equal_scores_are_served_evenly_along_the_text():
    """No stretch of the text is favoured when nothing tells tokens apart."""
    bits = budget_plan(torch.full((400,), 0.5), (5, 6), 5.5).bits[0].float()
    assert [round(float(part.mean()), 1) for part in bits.split(100)] == [5.5] * 4


def test_a_mean_at_either_end_is_uniform():
    """The lowest mean leaves nothing to choose, the highest neither, and no floor is complained about there."""
    floors = DEFAULT_FLOORS.requests(9)
    assert budget_plan(torch.rand(9), (4, 5, 8), 4.0).histogram() == {4: 9, 5: 0, 8: 0}
    top = budget_plan(torch.rand(9), (4, 5, 8), 8.0, floors=floors)
    assert top.histogram() == {4: 0, 5: 0, 8: 9}
    assert top.notes == ()


@pytest.mark.parametrize("mean", [3.9, 8.1, float("nan"), float("inf")])
def test_a_mean_outside_the_levels_is_refused(mean):
    """The message names the range that would do."""
    with pytest.raises(BudgetError, match="from 4 to 8"):
        budget_plan(torch.rand(5), (4, 5, 6, 8), mean)


@pytest.mark.parametrize("sensitivity", [(), (0.0,), (-1.0, 1.0), (float("inf"),)])
def test_unusable_layer_sensitivities_are_refused(sensitivity):
    """Each must be a positive number."""
    with pytest.raises(PlanError, match="sensitivities"):
        budget_plan(torch.rand(5), (4, 8), 6, sensitivity=sensitivity)


def test_sensitive_layers_get_more_bits():
    """A layer group that suffers 3.5 times more gets about one bit more, within the same mean."""
    plan = budget_plan(torch.rand(64), (3, 4, 5, 6, 8), 5.0, spread=0.3, sensitivity=(1.0, 3.5))
    low, high = plan.bits.double().mean(dim=1).tolist()
    assert plan.mean_bits == 5.0
    assert high - low == pytest.approx(1.0, abs=0.1)


def test_floors_are_paid_from_the_budget():
    """The first token gets the top level, the next three the level above the mean, and the mean stays."""
    plan = budget_plan(torch.linspace(0, 1, 100), (4, 5, 6, 8), 5.5, floors=DEFAULT_FLOORS.requests(100))
    assert plan.bits[0, :4].tolist() == [8, 6, 6, 6]
    assert plan.mean_bits == 5.5
    assert [(f.reason, f.tokens, f.bits) for f in plan.floors] == [
        ("first token", (0,), 8),
        ("first tokens", (1, 2, 3), 6),
    ]


def test_the_first_token_goes_to_the_highest_level_that_is_stored():
    """With the seed's levels that is 8 and not the reference's 16 or 32; and never below the other floors."""
    floors = DEFAULT_FLOORS.requests(100)
    assert int(budget_plan(torch.rand(100), (4, 8, 16, 32), 6.0, floors=floors).bits[0, 0]) == 8
    high = budget_plan(torch.rand(100), (4, 8, 16, 32), 12.0, floors=floors)
    assert (high.floors[0].bits, high.floors[1].bits) == (16, 16)


def test_floors_that_find_no_room_are_noted():
    """On a very short text they take half of what can be spent, and the plan says how many went without."""
    plan = budget_plan(torch.rand(4), (4, 5, 6, 8), 5.5, floors=DEFAULT_FLOORS.requests(4))
    assert int(plan.bits.sum()) == 22
    assert len(plan.floors[0].tokens) == 1
    assert "3 of 4 protected tokens" in plan.notes[0]


def test_floor_rules_find_first_special_and_early_answer_tokens():
    """Each with its reason; none beyond the text; a token is floored once."""
    requests = DEFAULT_FLOORS.requests(10, token_ids=[9, 1, 1, 1, 1, 9, 1, 1, 1, 1], special_ids=[9], n_prompt_tokens=8)
    assert {r.reason: r.tokens for r in requests} == {
        "first token": (0,),
        "first tokens": (1, 2, 3),
        "special token": (0, 5),
        "first answer tokens": (8, 9),
    }
    floors = budget_plan(torch.rand(10), (4, 5, 6, 8), 7.5, floors=requests).floors
    tokens = [t for floor in floors for t in floor.tokens]
    assert len(tokens) == len(set(tokens))
    assert FloorRules(0, False, 0).requests(10, token_ids=[9] * 10, special_ids=[9]) == ()


def test_a_special_token_is_floored_wherever_it_is():
    """The floor lifts the token with the lowest score."""
    plan = budget_plan(torch.linspace(1, 0, 50), (4, 5, 6, 8), 5.0, floors=(FloorRequest("special token", (49,)),))
    assert int(plan.bits[0, 49]) == 6


def test_damage_is_convex_so_mixing_far_levels_loses():
    """Half at 4 and half at 8 is several times the damage of all at 6."""
    assert (damage_at(4) + damage_at(8)) / 2 > 5 * damage_at(6)


def test_the_continuous_offset_follows_the_slope_of_damage():
    """A neutral score asks for the mean; one standard deviation up at spread log 3.5 asks for one bit more."""
    assert bits_offset(0.5, 1.0) == pytest.approx(0)
    assert bits_offset(0.8413447460685429, math.log(3.5)) == pytest.approx(1, abs=1e-6)

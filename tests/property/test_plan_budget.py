"""The budget planner for any scores, levels and targets."""

import itertools

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tapwb.plan import FloorRequest, budget_plan
from tapwb.plan.damage import damage_at, token_weights

LEVEL_SETS = [(4, 5, 6, 8), (4, 8), (2, 3, 4, 8), (4, 5, 6, 8, 16), (4, 8, 16, 32), (5, 6), (1, 2, 3, 4, 5, 6, 8), (6,)]


@st.composite
def problems(draw, max_tokens=60):
    """Scores, levels, a target between the levels, a spread and layer sensitivities."""
    scores = draw(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=max_tokens))
    levels = draw(st.sampled_from(LEVEL_SETS))
    mean = levels[0] + draw(st.floats(0, 1)) * (levels[-1] - levels[0])
    return torch.tensor(scores), levels, min(mean, levels[-1]), draw(st.floats(0, 2))


def damage(plan_bits, weights):
    """Total expected damage of a plan."""
    return float((weights * torch.tensor([damage_at(b) for b in plan_bits.tolist()], dtype=torch.float64)).sum())


@settings(deadline=None, max_examples=200)
@given(problems(), st.integers(1, 4), st.booleans())
def test_the_mean_is_met_within_one_step_of_one_token_and_never_exceeded(problem, n_groups, with_floors):
    """Whatever the scores, the bits spent are the budget less what no step fits into."""
    scores, levels, mean, spread = problem
    floors = (FloorRequest("first tokens", tuple(range(min(4, len(scores))))),) if with_floors else ()
    sensitivity = [1.0 + g for g in range(n_groups)]
    plan = budget_plan(scores, levels, mean, spread=spread, floors=floors, sensitivity=sensitivity)
    budget = mean * plan.bits.numel()
    widest = max((b - a for a, b in itertools.pairwise(levels)), default=1)
    spent = int(plan.bits.sum())
    assert spent <= budget + 1e-5
    assert budget - spent < widest + 1e-5


@settings(deadline=None, max_examples=200)
@given(problems())
def test_a_higher_score_never_gets_fewer_bits(problem):
    """Without floors the plan is monotone in the score."""
    scores, levels, mean, spread = problem
    bits = budget_plan(scores, levels, mean, spread=spread).bits[0]
    order = torch.argsort(scores)
    for low, high in itertools.pairwise(order.tolist()):
        assert scores[low] == scores[high] or bits[low] <= bits[high]


@settings(deadline=None, max_examples=100)
@given(problems(), st.data())
def test_floored_tokens_are_monotone_among_themselves_and_never_below_the_floor(problem, data):
    """The promise holds within the protected and within the other tokens."""
    scores, levels, mean, spread = problem
    chosen = data.draw(st.sets(st.integers(0, len(scores) - 1), max_size=5))
    plan = budget_plan(scores, levels, mean, spread=spread, floors=(FloorRequest("special token", tuple(chosen)),))
    floored = {t for floor in plan.floors for t in floor.tokens}
    assert floored <= chosen
    assert all(int(plan.bits[0, t]) >= floor.bits for floor in plan.floors for t in floor.tokens)
    for group in (sorted(floored), sorted(set(range(len(scores))) - floored)):
        for a, b in itertools.combinations(group, 2):
            if scores[a] < scores[b]:
                assert plan.bits[0, a] <= plan.bits[0, b]


@settings(deadline=None, max_examples=120)
@given(problems(max_tokens=6))
def test_the_plan_is_optimal_against_brute_force(problem):
    """Exactly the optimum when all steps are one bit; else at most the saving of one step away from it."""
    scores, levels, mean, spread = problem
    assume(len(levels) ** len(scores) <= 4096)
    weights = token_weights(scores, spread)
    plan = budget_plan(scores, levels, mean, spread=spread)
    budget = int(mean * len(scores) + 1e-6)
    best = min(
        damage(torch.tensor(bits), weights)
        for bits in itertools.product(levels, repeat=len(scores))
        if sum(bits) <= budget
    )
    found = damage(plan.bits[0], weights)
    steps = list(itertools.pairwise(levels))
    if len({b - a for a, b in steps}) <= 1:
        assert found <= best * (1 + 1e-9)
    else:
        one_step = float(weights.max()) * max(damage_at(a) - damage_at(b) for a, b in steps)
        assert found <= best + one_step


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=3), st.floats(4, 6), st.floats(0.1, 5), st.floats(0, 1.5)
)
def test_layer_groups_are_filled_jointly_and_optimally(scores, mean, sensitive, spread):
    """With two layer groups the joint plan beats or equals every other plan of the same total."""
    values, levels = torch.tensor(scores), (4, 5, 6)
    weights = torch.tensor([1.0, sensitive])[:, None].double() * token_weights(values, spread)[None]
    plan = budget_plan(values, levels, mean, spread=spread, sensitivity=(1.0, sensitive))
    n = weights.numel()
    best = min(
        damage(torch.tensor(bits), weights.flatten())
        for bits in itertools.product(levels, repeat=n)
        if sum(bits) <= int(mean * n + 1e-6)
    )
    assert damage(plan.bits.flatten(), weights.flatten()) <= best * (1 + 1e-9)


@settings(deadline=None, max_examples=60)
@given(st.permutations(range(37)), st.floats(0, 1.5), st.floats(4, 8))
def test_the_histogram_does_not_depend_on_who_is_important(order, spread, mean):
    """A control with the same spread hands out the same bits to other tokens (distinct scores, no floors)."""
    scores = torch.linspace(0, 1, 37)
    first = budget_plan(scores, (4, 5, 6, 8), mean, spread=spread)
    second = budget_plan(scores[list(order)], (4, 5, 6, 8), mean, spread=spread)
    assert first.histogram() == second.histogram()
    assert torch.equal(first.bits[0][list(order)], second.bits[0])

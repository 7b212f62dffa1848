"""The seed's rule against a naive reading of it.

Seed features: S1.8
"""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tapwb.plan import threshold_plan

levels_of = st.lists(st.sampled_from([1, 2, 3, 4, 5, 6, 8, 16, 32]), min_size=1, max_size=5, unique=True).map(sorted)


@st.composite
def rules(draw):
    """Levels, thresholds that fit them, and scores of which some lie exactly on a threshold."""
    levels = draw(levels_of)
    n = len(levels) - 1
    cuts = sorted(draw(st.lists(st.floats(2**-10, 1 - 2**-10, width=32), min_size=n, max_size=n, unique=True)))
    score = st.floats(0, 1, width=32) if not cuts else st.one_of(st.floats(0, 1, width=32), st.sampled_from(cuts))
    return levels, cuts, draw(st.lists(score, min_size=1, max_size=40))


@settings(deadline=None, max_examples=200)
@given(rules(), st.sampled_from([torch.float32, torch.float64]))
def test_threshold_rule_equals_the_naive_one(rule, dtype):
    """Bits are the level whose index is the number of thresholds at or below the score."""
    levels, cuts, scores = rule
    plan = threshold_plan(torch.tensor(scores, dtype=dtype), levels, cuts)
    assert plan.bits[0].tolist() == [levels[sum(score >= cut for cut in cuts)] for score in scores]

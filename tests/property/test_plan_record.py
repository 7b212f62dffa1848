"""Plans survive JSON, files and edits."""

import json

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tapwb.plan import Floor, PrecisionPlan, override_bits, plan_diff


@st.composite
def plans(draw):
    """Any consistent plan."""
    levels = sorted(draw(st.sets(st.sampled_from([1, 2, 3, 4, 5, 6, 8, 16, 32]), min_size=1)))
    groups, tokens = draw(st.integers(1, 3)), draw(st.integers(1, 17))
    cells = draw(st.lists(st.sampled_from(levels), min_size=groups * tokens, max_size=groups * tokens))
    index = st.integers(0, tokens - 1)
    return PrecisionPlan(
        bits=torch.tensor(cells).reshape(groups, tokens),
        levels=tuple(levels),
        planner=draw(st.sampled_from(["budget", "threshold"])),
        signal=draw(st.text(max_size=8)),
        target_mean_bits=draw(st.none() | st.floats(levels[0], levels[-1])),
        floors=tuple(
            Floor(reason, tuple(sorted(found)), levels[-1])
            for reason, found in draw(
                st.dictionaries(st.text(max_size=5), st.sets(index, min_size=1), max_size=2)
            ).items()
        ),
        seed=draw(st.none() | st.integers(0, 2**40)),
        spread=draw(st.none() | st.floats(0, 2)),
        overrides=tuple(sorted(draw(st.sets(index)))),
        notes=tuple(draw(st.lists(st.text(max_size=9), max_size=2))),
    )


@settings(deadline=None)
@given(plans())
def test_plan_round_trips_through_json_text(plan):
    """Nothing is lost between a plan and the text of its JSON."""
    again = PrecisionPlan.from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan
    assert torch.equal(again.bits, plan.bits)
    assert again.floors == plan.floors


@settings(deadline=None)
@given(plans(), st.data())
def test_override_changes_exactly_the_named_tokens(plan, data):
    """A manual override is a plan that differs only in those tokens, and the difference says so."""
    tokens = data.draw(st.sets(st.integers(0, plan.n_tokens - 1), min_size=1))
    bits = data.draw(st.sampled_from(plan.levels))
    edited = override_bits(plan, tokens, bits)
    difference = plan_diff(plan, edited)
    assert set(difference.tokens) <= tokens
    assert bool((edited.bits[:, sorted(tokens)] == bits).all())
    assert all(change.after == bits and change.before != bits for change in difference.changes)
    assert tokens <= set(edited.overrides)

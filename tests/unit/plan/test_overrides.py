"""Bits set by hand: laid over any plan, with a mean that moves or is kept, undone and done again.

Seed features: S1.8
"""

import pytest
import torch

from tapwb.core.errors import PlanError
from tapwb.core.precision import parse_precision
from tapwb.plan import budget_plan, uniform_plan
from tapwb.plan.floors import FloorRequest
from tapwb.plan.history import LONGEST, EditHistory
from tapwb.plan.outlook import bytes_per_token, executed_mean_bits, relative_damage
from tapwb.plan.overrides import LayerSizes, PlanEdit, edit_plan

REQUEST = parse_precision("adaptive:5.5:entropy")
SIZES = LayerSizes(
    tuple(f"layer {i // 3} part{i % 3}" for i in range(12)),
    tuple(100 + 50 * (i % 3) for i in range(12)),
    tuple(i // 3 for i in range(12)),
    tuple(f"part{i % 3}" for i in range(12)),
)
SCORES = torch.rand(40, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def plan():
    """40 tokens at a mean of 5.5 bits, the first one protected."""
    floors = (FloorRequest("first token", (0,), at_top=True),)
    return budget_plan(SCORES, (4, 5, 6, 8), 5.5, spread=0.65, floors=floors, signal="entropy")


def laid(plan, *edits, keep_mean=True, **options):
    """The edits over the plan."""
    return edit_plan(REQUEST, plan, edits, keep_mean=keep_mean, sizes=SIZES, scores=SCORES, **options)


def test_a_token_gets_what_was_set_and_the_others_pay(plan):
    """Moving: only the tokens change. Kept: the mean stays within one step, what was set holds, others go down."""
    both = laid(plan, PlanEdit("tokens", (7, 3, 7), 8))
    assert both.edits[0].where == (3, 7)
    assert both.moved.bits[0, [3, 7]].tolist() == both.kept.bits[0, [3, 7]].tolist() == [8, 8]
    others = [token for token in range(40) if token not in (3, 7)]
    assert torch.equal(both.moved.bits[0, others], plan.bits[0, others])
    assert both.moved.mean_bits > plan.mean_bits
    assert plan.mean_bits - 2 / 40 <= both.kept.mean_bits <= plan.mean_bits
    assert (both.kept.bits[0, others].long() <= plan.bits[0, others].long()).all()
    assert both.plan is both.kept
    assert both.kept.overrides == (3, 7)
    assert both.kept.bits[0, 0] == 8  # the floor still stands


def test_refilling_finds_the_planners_own_bits(plan):
    """A token set to what it has already: the same water-filling finds the same plan. Without edits it is the plan."""
    token = int((plan.bits[0] == 5).nonzero()[0, 0])
    assert torch.equal(laid(plan, PlanEdit("tokens", (token,), 5)).kept.bits, plan.bits)
    assert laid(plan).plan is plan


def test_what_an_earlier_hand_set_stands(plan):
    """A plan that was exported with overrides keeps them when something else is set."""
    before = laid(plan, PlanEdit("tokens", (3,), 4)).kept
    after = laid(before, PlanEdit("tokens", (9,), 8)).kept
    assert (after.bits[0, 3], after.bits[0, 9], after.overrides) == (4, 8, (3, 9))


def test_layers_are_limited_by_their_groups(plan):
    """A plan that knows one group is spread over all; at most and at least are bounds, exactly is a value."""
    both = laid(
        plan,
        PlanEdit("layers", SIZES.where(layer=0), 5, "at most"),
        PlanEdit("layers", SIZES.where(role="part2"), 6, "at least"),
    )
    for made in (both.moved, both.kept):
        assert made.bits.shape == (12, 40)
        assert made.group_weights == SIZES.n_weights
        assert made.bits[[0, 1]].max() <= 5
        assert made.bits[list(SIZES.where(role="part2"))].min() >= 6  # the later edit wins where both meet
    assert both.kept.mean_bits == pytest.approx(plan.mean_bits, abs=0.01)
    assert both.kept.mean_bits <= plan.mean_bits
    assert any("layer 0 part0" in note for note in both.kept.notes)


def test_the_later_edit_wins(plan):
    """A value over a bound, and a bound over a value."""
    both = laid(plan, PlanEdit("tokens", (5,), 4, "at most"), PlanEdit("tokens", (5,), 8))
    assert both.kept.bits[0, 5] == 8
    both = laid(plan, PlanEdit("tokens", (5,), 8), PlanEdit("tokens", (5,), 5, "at most"))
    assert both.kept.bits[0, 5] == 5


def test_a_mean_that_cannot_be_kept_says_so(plan):
    """More is set than the budget holds: everything else is at the lowest level, and a note gives the least mean."""
    both = laid(plan, PlanEdit("tokens", tuple(range(30)), 8))
    assert both.kept.mean_bits == pytest.approx((30 * 8 + 10 * 4) / 40)
    assert any("cannot be kept" in note and "7.00" in note for note in both.kept.notes)


def test_a_uniform_plan_can_be_edited_too():
    """Its one level is not enough: the levels of the model are offered beside it."""
    both = edit_plan(
        parse_precision("5"), uniform_plan(10, 5), [PlanEdit("tokens", (0,), 8)], keep_mean=True, levels=(4, 5, 6, 8)
    )
    assert both.moved.mean_bits == pytest.approx(5.3)
    assert both.kept.mean_bits == pytest.approx(5.0)
    assert both.kept.bits[0, 0] == 8


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (PlanEdit("tokens", (40,), 8), "token 40 does not exist"),
        (PlanEdit("layers", (12,), 8), "layer 12 does not exist"),
        (PlanEdit("tokens", (1,), 3), "3 bits cannot be set"),
    ],
)
def test_what_does_not_exist_is_refused(plan, edit, says):
    """The message names what came and what is there."""
    with pytest.raises(PlanError, match=says):
        laid(plan, edit)


def test_an_edit_names_something():
    """No token, a negative one, an unknown rule."""
    for wrong in (((), "exactly"), ((-1,), "exactly"), ((1,), "about")):
        with pytest.raises(PlanError):
            PlanEdit("tokens", wrong[0], 8, wrong[1])


def test_undo_redo_and_reset_walk_through_the_states():
    """Undone things can be done again until something new is done; a reset can be undone."""
    one, two, three = (PlanEdit("tokens", (index,), 8) for index in range(3))
    history = EditHistory().add(one).add(two)
    assert history.undo().edits == (one,)
    assert history.undo().redo().edits == (one, two)
    assert history.undo().undo().undo().edits == ()
    assert not history.can_redo
    branched = history.undo().add(three)
    assert branched.edits == (one, three)
    assert not branched.can_redo
    assert history.reset().edits == ()
    assert history.reset().undo().edits == (one, two)
    assert EditHistory().reset() == EditHistory()
    assert history.add(PlanEdit("tokens", (0,), 4)).edits == (two, PlanEdit("tokens", (0,), 4))
    for _ in range(2 * LONGEST):
        history = history.add(one).add(two)
    assert len(history.states) == LONGEST


def test_another_text_keeps_what_was_set_for_layers():
    """Tokens are tokens of a text, layers are those of the model."""
    layers = PlanEdit("layers", (0,), 4)
    history = EditHistory().add(PlanEdit("tokens", (1,), 8)).add(layers).for_another_text()
    assert history.edits == (layers,)
    assert not history.can_undo


def test_the_outlook_counts_bytes_and_damage_of_the_plan(plan):
    """Bytes follow the mean; good scores promise less damage than uniform, spent on nobody in particular more."""
    total = sum(SIZES.n_weights)
    assert bytes_per_token(plan, SIZES, total).value == pytest.approx(total * executed_mean_bits(plan) / 8)
    assert relative_damage(plan, SCORES).value < 1
    blind = relative_damage(budget_plan(SCORES, (4, 5, 6, 8), 5.5, spread=0.65, signal="random"), SCORES)
    assert blind.value > 1
    assert relative_damage(uniform_plan(10, 5), None).value == pytest.approx(1)
    assert "nothing to choose" in relative_damage(uniform_plan(10, 8), None).reason
    assert executed_mean_bits(uniform_plan(3, 16)) == 8

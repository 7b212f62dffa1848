"""The precision grammar: every form of the contract, round trips, and errors that teach it."""

import pytest

from tapwb.core.errors import PrecisionSpecError
from tapwb.core.precision import SEED_LEVELS, SEED_THRESHOLDS, check_levels, parse_precision, parse_precisions


@pytest.mark.parametrize(
    "text",
    ["16", "8", "6", "5", "4", "3", "2", "1", "adaptive:5.5:entropy", "adaptive:5:position", "threshold",
     "plan:my plan.json", "random:5.5", "shuffled:5.5:entropy", "oracle:4.5"],
)  # fmt: skip
def test_every_form_of_the_grammar_round_trips(text):
    """What is printed in results can be typed again."""
    assert str(parse_precision(text)) == text


def test_the_default_signal_is_entropy_and_the_default_levels_are_neighbours():
    """Damage is convex in bits, so distant levels are never the default of the budget."""
    request = parse_precision("adaptive:5.5")
    assert (request.signal, request.levels) == ("entropy", (4, 5, 6, 8))


def test_the_threshold_rule_defaults_to_the_source_documents_levels():
    """Four levels, three cuts."""
    request = parse_precision("threshold")
    assert (request.levels, request.thresholds) == (SEED_LEVELS, SEED_THRESHOLDS)
    two = parse_precision("threshold", levels=(4, 8))
    assert two.thresholds == (0.5,)


@pytest.mark.parametrize(
    "text",
    ["", "7", "9", "12", "0", "-4", "4.5", "adaptive", "adaptive:", "adaptive:x", "plan:", "best", "random:5:entropy"],
)
def test_what_is_not_in_the_grammar_is_refused_with_it(text):
    """Exit status 2 and a message that shows what can be written."""
    with pytest.raises(PrecisionSpecError) as caught:
        parse_precision(text)
    assert caught.value.exit_code == 2
    assert "adaptive:" in str(caught.value) or "random:" in str(caught.value)


def test_a_mean_outside_the_levels_is_refused():
    """3.5 bits cannot come out of levels 4 to 8."""
    with pytest.raises(PrecisionSpecError, match=r"outside the levels \[4, 5, 6, 8\]"):
        parse_precision("adaptive:3.5")


@pytest.mark.parametrize("levels", [(8, 4), (4, 4, 8), (), (4, 7), (0, 4)])
def test_levels_out_of_order_or_unknown_are_refused(levels):
    """Ascending, distinct, storable."""
    with pytest.raises(PrecisionSpecError, match="ascending, distinct"):
        check_levels(levels)


@pytest.mark.parametrize("cuts", [(0.5,), (0.5, 0.25, 0.75), (0.25, 0.5, 1.0), (0.0, 0.5, 0.75), (0.5, 0.5, 0.75)])
def test_thresholds_must_fit_the_levels(cuts):
    """One fewer than levels, strictly increasing, inside (0, 1)."""
    with pytest.raises(PrecisionSpecError, match="strictly increasing"):
        parse_precision("threshold", thresholds=cuts)


def test_a_list_is_read_in_order():
    """The evaluation commands take several at once."""
    assert [str(r) for r in parse_precisions("16, 8,adaptive:5.5")] == ["16", "8", "adaptive:5.5:entropy"]
    with pytest.raises(PrecisionSpecError, match="no precision"):
        parse_precisions(" , ")


def test_a_slip_of_the_pen_gets_the_nearest_word():
    """The message says which kind was meant."""
    with pytest.raises(PrecisionSpecError, match="Did you mean 'adaptive'"):
        parse_precision("adaptve:5.5")

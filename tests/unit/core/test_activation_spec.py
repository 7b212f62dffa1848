"""The grammar of activation precision: what it takes, gives back and refuses."""

import pytest

from tapwb.core.activation_spec import DEFAULT_RATIO, parse_activations
from tapwb.core.errors import PrecisionSpecError


@pytest.mark.parametrize("text", ["16", "int8", "tensor", "adaptive:64", "adaptive:12.5", "random:128"])
def test_the_grammar_comes_back_as_it_was_written(text):
    """``str`` of a request is its text."""
    assert str(parse_activations(text)) == text


@pytest.mark.parametrize("kind", ["adaptive", "random"])
def test_the_ratio_may_be_left_out(kind):
    """It is then the documented one."""
    assert parse_activations(kind).ratio == DEFAULT_RATIO


@pytest.mark.parametrize("text", ["", "8", "int4", "adaptive:", "adaptive:x", "adaptive:0.5", "adaptive:nan", "int8:3"])
def test_anything_else_is_refused_with_the_grammar(text):
    """The message names what came and an example that works."""
    with pytest.raises(PrecisionSpecError, match=r"adaptive:64|1 or more") as caught:
        parse_activations(text)
    assert repr(text) in str(caught.value)

"""Every form of every recurrence gives the numbers of the fp64 specification, outputs and final state alike.

Seed features: S0.2, S1.19, S1.20, S1.21
"""

import dataclasses
import random

import pytest
import torch

from tapwb.core.errors import ExecutionError

LENGTHS = (1, 63, 64, 65, 500, 1000)
RATES = ("near 1", "near 0", "mixed")


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("n_tokens", LENGTHS)
def test_steps_and_chunk_equal_the_specification(family, n_tokens, rates, assert_near):
    """From a random state, for decays near one, near zero and of all sizes side by side."""
    inputs, state, expected = family.sample(n_tokens, rates)
    assert_near(expected, family.form.chunk(inputs, state))
    assert_near(expected, family.by_steps(inputs, state))


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("n_tokens", LENGTHS[1:])
def test_a_chunk_may_be_split_anywhere(family, n_tokens, rates, assert_near):
    """Two chunks with the state carried over, at three random places, are the specification of the whole."""
    inputs, state, expected = family.sample(n_tokens, rates)
    for place in random.Random(n_tokens).sample(range(1, n_tokens), 3):
        first, middle = family.form.chunk(inputs.tokens(0, place), state)
        second, last = family.form.chunk(inputs.tokens(place, n_tokens), middle)
        assert_near(expected, (torch.cat([first, second], dim=1), last))


@pytest.mark.parametrize("n_tokens", LENGTHS[1:])
def test_steps_go_on_where_a_chunk_ended(family, n_tokens, assert_near):
    """A prompt is read as a chunk and the answer is decoded by steps."""
    inputs, state, expected = family.sample(n_tokens)
    place = n_tokens - 9
    first, middle = family.form.chunk(inputs.tokens(0, place), state)
    second, last = family.by_steps(inputs.tokens(place, n_tokens), middle)
    assert_near(expected, (torch.cat([first, second], dim=1), last))


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("n_tokens", LENGTHS)
@pytest.mark.parametrize("name", ["ssd", "retention"])
def test_the_masked_matrix_of_all_pairs_equals_the_specification(cases, name, n_tokens, rates, assert_near):
    """Where such a form exists; it begins with an empty state."""
    case = cases[name]
    inputs = case.inputs(n_tokens, rates, seed=3)
    outputs, _ = case.reference(inputs, case.form.init_state(2))
    assert_near(outputs, case.form.parallel(inputs))


def test_a_sequence_is_not_touched_by_its_neighbour_in_the_batch(family):
    """Read alone it has the same outputs, to the last few roundings."""
    inputs, state = family.inputs(65, seed=4), family.state(4)
    alone = {name: x[1:] for name, x in state.items()}
    one = dataclasses.replace(inputs, **{name: getattr(inputs, name)[1:] for name in inputs.PER_TOKEN})
    together, _ = family.form.chunk(inputs, state)
    torch.testing.assert_close(family.form.chunk(one, alone)[0], together[1:], rtol=1e-4, atol=1e-4)


def test_state_and_inputs_are_left_as_they_were(family):
    """Whoever kept a state can go back to it: that is how guessed tokens are taken back."""
    inputs, state = family.inputs(65, seed=5), family.state(5)
    kept = {name: x.clone() for name, x in _tensors(inputs, state).items()}
    family.form.chunk(inputs, state)
    family.form.step(inputs.tokens(0, 1), state)
    for name, x in _tensors(inputs, state).items():
        assert torch.equal(x, kept[name]), name


def test_gradients_of_chunk_and_steps_agree(family):
    """With respect to values and to the state that came in."""
    inputs, state = family.inputs(37, "near 1", seed=6), family.state(6)
    value = "x" if hasattr(inputs, "x") else "v"
    found = []
    for read in (family.form.chunk, family.by_steps):
        # A maximum is a choice of unit: gradients pass through the sums.
        fed = {name: x.clone().requires_grad_(name != "maximum") for name, x in state.items()}
        values = getattr(inputs, value).clone().requires_grad_()
        out, last = read(dataclasses.replace(inputs, **{value: values}), fed)
        (out.square().sum() + sum(x.square().sum() for x in last.values())).backward()
        found.append([values.grad, *(x.grad for x in fed.values() if x.requires_grad)])
    for by_chunk, by_step in zip(*found, strict=True):
        assert float((by_chunk - by_step).norm() / by_step.norm()) < 1e-5


def test_a_number_of_tokens_that_cannot_be_read_is_refused(family):
    """A step is one token, and no tokens are no chunk."""
    inputs, state = family.inputs(2), family.state()
    with pytest.raises(ExecutionError, match="2 tokens and reads exactly one"):
        family.form.step(inputs, state)
    with pytest.raises(ExecutionError, match="0 tokens and reads at least one"):
        family.form.chunk(inputs.tokens(0, 0), state)


def _tensors(inputs, state):
    return state | {field.name: getattr(inputs, field.name) for field in dataclasses.fields(inputs)}

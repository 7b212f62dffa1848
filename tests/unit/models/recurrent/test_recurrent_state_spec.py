"""The description of a state says what is really carried.

Seed features: S1.19, S1.20, S1.21
"""

import dataclasses

import torch

AXES = {"head", "key", "value", "channel", "state"}


def test_the_state_after_a_token_and_after_many_is_the_described_one(family):
    """Names in order, shapes and bytes: of the first state, after a step, and after a chunk."""
    specs, inputs = family.form.state_spec(), family.inputs(65)
    first = family.form.init_state(2)
    stepped = family.form.step(inputs.tokens(0, 1), first)[1]
    for state in (first, stepped, family.form.chunk(inputs, first)[1]):
        assert [s.name for s in specs] == list(state)
        for spec in specs:
            assert state[spec.name].dtype == torch.float32
            assert state[spec.name].shape == (2, *spec.shape)
            assert state[spec.name].nbytes == 2 * spec.nbytes


def test_every_axis_has_a_name_that_codecs_know_and_the_size_that_goes_with_it(family):
    """The test's sizes all differ but for heads and channels, so that swapped axes would show."""
    sizes = {"head": 6, "key": 5, "value": 7, "state": 5}
    for spec in family.form.state_spec():
        assert set(spec.axes) <= AXES
        assert len(spec.axes) == len(spec.shape)
        for axis, size in zip(spec.axes, spec.shape, strict=True):
            assert size == sizes.get(axis, 7 if "head" in spec.axes else 11)


def test_an_empty_state_adds_nothing(family, assert_near):
    """The first output depends on the first token alone, whatever the decay."""
    inputs = family.inputs(1)
    out, _ = family.form.step(inputs, family.form.init_state(2))
    rates = "A" if hasattr(inputs, "A") else "log_decay"
    faster = dataclasses.replace(inputs, **{rates: 3 * getattr(inputs, rates)})
    assert_near(out, family.form.step(faster, family.form.init_state(2))[0], limit=1e-7)

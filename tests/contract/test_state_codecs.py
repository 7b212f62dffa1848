"""The contract of a state codec; every registered one must pass.

Seed features: S1.16
"""

import pytest
import torch

from tapwb.execution.state import default as _default  # noqa: F401 - registers
from tapwb.execution.state import float_codecs as _float  # noqa: F401 - registers
from tapwb.execution.state import int8_codecs as _int8  # noqa: F401 - registers
from tapwb.execution.state.codec import bits_per_number, codecs

pytestmark = pytest.mark.parametrize("name", codecs.names())
SHAPES = [(1, 4, 8, 16), (3, 384, 16), (2, 5, 17), (1, 1), (2, 3, 1)]


def states(shape, scale=1.0, seed=0):
    """Random numbers whose rows differ in size by orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.exp(2 * torch.randn(*shape[:-1], 1, generator=generator))
    return torch.randn(shape, generator=generator) * rows * scale


def test_it_says_what_it_is(name):
    """A summary for lists, a docstring for readers."""
    assert codecs.entry(name).summary
    assert type(codecs[name]).__doc__


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_comes_back_is_near_what_went_in(name, shape):
    """Row by row, within one step of 8 bits of the row's largest number; shape and type as they were."""
    codec, state = codecs[name], states(shape)
    back = codec.decode(codec.encode(state))
    assert back.shape == state.shape
    assert back.dtype == torch.float32
    allowed = state.abs().amax(-1, keepdim=True) / 127 * 1.02
    assert bool(((back - state).abs() <= allowed).all())


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1e4])
def test_the_size_of_a_state_does_not_matter(name, scale):
    """A first update may be tiny; a codec whose scale cannot say so would forget it."""
    codec, state = codecs[name], states((2, 3, 16), scale)
    back = codec.decode(codec.encode(state))
    if name == "fp16":
        pytest.skip("fp16 has no range: that is one reason against it")
    assert float((back - state).double().norm() / state.double().norm()) < 0.02


def test_zeros_stay_zeros_and_neighbours_do_not_matter(name):
    """An empty row beside a full one."""
    codec, state = codecs[name], states((1, 2, 16))
    state[0, 0] = 0
    back = codec.decode(codec.encode(state))
    assert torch.equal(back[0, 0], torch.zeros(16))


def test_storing_twice_loses_nothing_more(name):
    """A state that nothing is added to wanders by less than half a step of 8 bits."""
    if name == "int8-random":
        pytest.skip("rounds at random by design")
    codec = codecs[name]
    once = codec.decode(codec.encode(states((2, 4, 16))))
    twice = codec.decode(codec.encode(once))
    # A row's largest number may come back a little smaller, and the next scale with it.
    assert bool(((twice - once).abs() <= 0.5 / 127 * once.abs().amax(-1, keepdim=True)).all())


def test_bytes_are_those_of_the_tensors(name):
    """Scales included; a row of 64 numbers costs at most half a bit more than its codes."""
    held = codecs[name].encode(states((1, 8, 64)))
    assert held.nbytes == sum(part.numel() * part.element_size() for part in held.parts.values())
    expected = {"fp32": 32, "fp16": 16, "bf16": 16, "int8": 8, "int8-random": 8, "int8+4": 12}[name]
    assert expected <= bits_per_number(held) <= expected + 0.5


def test_rows_of_a_batch_can_be_chosen(name):
    """Beams go on with each other's states."""
    codec, state = codecs[name], states((3, 2, 16))
    held = codec.encode(state)
    chosen = codec.decode(held.select(torch.tensor([2, 2, 0, 1])))
    assert torch.equal(chosen, codec.decode(held)[[2, 2, 0, 1]])

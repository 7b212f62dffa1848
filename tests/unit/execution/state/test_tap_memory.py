"""A memory at few bits: the same numbers however a text is cut, tokens at their bits, marks to go back to.

Seed features: S1.16
"""

import pytest
import torch

from tapwb.core.errors import UnsupportedBits, UsageError
from tapwb.evals.state_bench import sequences
from tapwb.execution.state.codec import codecs
from tapwb.execution.state.default import default_memory
from tapwb.execution.state.memory import TapMemory
from tapwb.execution.state.update_bits import round_updates
from tapwb.models.recurrent.memory import PlainMemory
from tapwb.models.recurrent.retention import Retention, RetentionInputs, retnet_log_decay


def relative(actual, expected):
    """Distance as a share of the norm."""
    return float((actual - expected).norm() / expected.norm())


def read(memory, form, inputs, cuts):
    """Outputs of a text read in pieces."""
    outputs, start = [], 0
    for length in cuts:
        outputs.append(memory.advance(form, inputs.tokens(start, start + length)))
        start += length
    return torch.cat(outputs, 1)


@pytest.mark.parametrize("cuts", [(1,) * 50, (16, 16, 18), (7, 30, 13), (49, 1)])
@pytest.mark.parametrize("every", [1, 16])
def test_a_text_gives_the_same_numbers_however_it_is_cut(cuts, every):
    """States are written at the same places, so only the order of fp32 sums differs."""
    form, inputs = sequences("mamba2", 50, 2, 0)
    whole = TapMemory(codecs["int8+4"], every).advance(form, inputs)
    assert relative(read(TapMemory(codecs["int8+4"], every), form, inputs, cuts), whole) < 2e-4


def test_with_fp32_it_is_the_plain_memory():
    """The specification, with a ring and without."""
    form, inputs = sequences("retnet", 40, 2, 1)
    expected = PlainMemory().advance(form, inputs)
    for every in (1, 5, 16, 64):
        assert relative(TapMemory(codecs["fp32"], every).advance(form, inputs), expected) < 1e-5


def test_going_back_to_a_mark_forgets_what_came_after():
    """Ring and state, in the middle of a ring and at its end."""
    form, inputs = sequences("mamba2", 60, 1, 2)
    for n_before in (16, 21, 32):
        memory = default_memory()
        memory.advance(form, inputs.tokens(0, n_before))
        mark = memory.snapshot()
        expected = memory.advance(form, inputs.tokens(n_before, n_before + 9))
        memory.restore(mark)
        memory.advance(form, inputs.tokens(40, 60))
        memory.restore(mark)
        assert torch.equal(memory.advance(form, inputs.tokens(n_before, n_before + 9)), expected)
        memory.reset()
        assert not list(memory.tensors())


def test_what_is_held_is_small():
    """Codes, scales and at most sixteen updates; no fp32 state stays behind."""
    form, inputs = sequences("mamba2", 160, 1, 3)
    memory = default_memory()
    memory.advance(form, inputs)
    n_numbers = 4 * 32 * 32
    assert memory.state_bytes() * 8 / n_numbers <= 12.5
    assert all(tensor.numel() < n_numbers or tensor.element_size() == 1 for tensor in memory.tensors())
    memory.advance(form, inputs.tokens(0, 5))
    storage = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in memory.tensors()}
    whole = sum(storage.values())
    assert whole <= sum(t.numel() * t.element_size() for t in memory.tensors()) + 64


def test_rows_before_a_piece_come_back():
    """As the plain memory: zeros first, then the newest rows, also of pieces shorter than asked for."""
    memory, plain = default_memory(), PlainMemory()
    x = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0))
    for piece in (x[:, :1], x[:, 1:3], x[:, 3:]):
        assert torch.equal(memory.preceding("conv", piece, 3), plain.preceding("conv", piece, 3))


def test_beams_go_on_with_each_others_memories():
    """Reordered in the middle of a ring."""
    form, inputs = sequences("mamba2", 40, 3, 4)
    memory, order = default_memory(), torch.tensor([2, 0, 0])
    memory.advance(form, inputs.tokens(0, 21))
    memory.reorder_cache(order)
    later = inputs.tokens(21, 40)
    actual = memory.advance(form, later)
    for place, origin in enumerate(order.tolist()):
        alone = default_memory()
        pick = lambda tensor, row: tensor[row : row + 1]  # noqa: E731 - two words
        before = type(inputs)(
            *(pick(t, origin) for t in (inputs.x, inputs.dt)),
            inputs.A,
            *(pick(t, origin) for t in (inputs.B, inputs.C)),
        )
        after = type(inputs)(
            *(pick(t, place) for t in (inputs.x, inputs.dt)), inputs.A, *(pick(t, place) for t in (inputs.B, inputs.C))
        )
        alone.advance(form, before.tokens(0, 21))
        assert relative(actual[place : place + 1], alone.advance(form, after.tokens(21, 40))) < 1e-5


def test_updates_are_rounded_to_the_bits_of_their_token():
    """At 16 bits exactly as they came; below, to a grid of so many steps; what only reads is left alone."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 6, 3, size, generator=generator) for size in (8, 8, 16))
    inputs = RetentionInputs(q, k, v, retnet_log_decay(3))
    bits = torch.tensor([16, 8, 4, 3, 2, 16])
    rounded = round_updates(inputs, bits)
    assert torch.equal(rounded.q, q)
    for token, level in enumerate(bits.tolist()):
        for before, after in ((k, rounded.k), (v, rounded.v)):
            before, after = before[:, token], after[:, token]
            if level == 16:
                assert torch.equal(before, after)
                continue
            step = before.abs().amax(-1, keepdim=True) / (2 ** (level - 1) - 1)
            assert float((after - before).abs().div(step).max()) <= 0.5 + 1e-4
            assert float((after / step - (after / step).round()).abs().max()) < 1e-3
    assert round_updates(inputs, 16) is inputs
    with pytest.raises(UnsupportedBits, match="rounded to 1 bits"):
        round_updates(inputs, torch.tensor([8, 8, 1, 8, 8, 8]))


def test_bits_reach_the_memory_through_its_callable():
    """Asked for once a pass, with the number of its tokens."""
    form, asked = Retention(3, 8, 16), []
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, 20, 3, size, generator=generator) for size in (8, 8, 16))
    inputs = RetentionInputs(q, k, v, retnet_log_decay(3))
    levels = torch.tensor([4, 8] * 10)
    memory = TapMemory(codecs["fp32"], 16, lambda n: asked.append(n) or levels)
    assert relative(memory.advance(form, inputs), PlainMemory().advance(form, round_updates(inputs, levels))) < 1e-5
    assert asked == [20]


def test_a_state_that_is_never_written_is_refused():
    """Zero tokens between writes."""
    with pytest.raises(UsageError, match="at least 1"):
        TapMemory(codecs["int8"], 0)

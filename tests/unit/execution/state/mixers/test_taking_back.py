"""Tokens can be taken back from recurrent layers, and what is read afterwards is as if they had never been there."""

from typing import Any

import pytest
import torch

from tapwb.core.errors import ExecutionError
from tapwb.execution.kv_cache import cache_bytes
from tapwb.execution.kv_plan import make_cache
from tapwb.execution.speculative.caches import retractable_cache
from tapwb.execution.state.mixers.cache_layer import KEPT_TOKENS, StateLayer
from tapwb.execution.stepper import TorchStepper
from tapwb.models.anatomy import anatomy_from_config
from tapwb.models.cache_rules import cache_arguments

IDS = torch.randint(3, 257, (200,), generator=torch.Generator().manual_seed(0))
TOLERANCE = 1e-4


def _stepper(model: Any) -> tuple[TorchStepper, Any]:
    cache = retractable_cache(model.config)
    return TorchStepper(model, cache), cache


@pytest.mark.parametrize(
    ("read", "kept"), [([1, 1, 1], 0), ([4], 1), ([4], 0), ([3, 1, 5], 2), ([3, 1, 5], 4), ([64], 63)]
)
def test_after_taking_back_a_model_goes_on_as_if_nothing_had_been_read(family, read, kept, original, far):
    """Whole passes, and into the middle of one; other tokens follow than those that were taken back."""
    model = original(family)
    stepper, cache = _stepper(model)
    stepper.advance(IDS[:21], 16)
    start = 21
    for n_tokens in read:
        stepper.advance(IDS[start : start + n_tokens], 16)
        start += n_tokens
    assert stepper.length == start
    stepper.crop(21 + kept)
    assert stepper.length == cache.get_seq_length() == 21 + kept
    found = stepper.advance(IDS[100:105], 16)
    plain, _ = _stepper(original(family))
    plain.advance(IDS[: 21 + kept], 16)
    assert far(found, plain.advance(IDS[100:105], 16)) < TOLERANCE


def test_guesses_are_taken_back_time_and_again(family, original, far):
    """As speculation does: guess one by one, go back, verify in one pass, keep a part, and so on."""
    model = original(family)
    stepper, _ = _stepper(model)
    plain, _ = _stepper(original(family))
    stepper.advance(IDS[:9], 16)
    plain.advance(IDS[:9], 16)
    n_read = 9
    for turn in range(12):
        for guess in range(3):
            stepper.advance(IDS[150 + turn + guess].reshape(1), 16)
        stepper.crop(n_read)
        stepper.advance(IDS[n_read : n_read + 4], 16)
        n_kept = 1 + turn % 4
        stepper.crop(n_read + n_kept)
        plain.advance(IDS[n_read : n_read + n_kept], 16)
        n_read += n_kept
    assert far(stepper.advance(IDS[:3], 16), plain.advance(IDS[:3], 16)) < TOLERANCE


def test_a_long_pass_is_not_kept_and_nothing_changes_when_it_is_asked_for(family, original, far):
    """Inputs of a prompt would take more memory than all states; the refusal leaves every layer as it was."""
    stepper, cache = _stepper(original(family))
    before = stepper.advance(IDS[: KEPT_TOKENS + 1], 16)
    with pytest.raises(ExecutionError, match="kept the inputs of the newest 0"):
        stepper.crop(KEPT_TOKENS)
    assert stepper.length == KEPT_TOKENS + 1
    found = stepper.advance(IDS[100:103], 16)
    plain, _ = _stepper(original(family))
    assert far(plain.advance(IDS[: KEPT_TOKENS + 1], 16), before) == 0
    assert far(found, plain.advance(IDS[100:103], 16)) == 0
    stepper.crop(KEPT_TOKENS + 2)
    assert cache.get_seq_length() == KEPT_TOKENS + 2


def test_a_cache_that_does_not_record_keeps_no_inputs(original):
    """Plain decoding pays nothing for what speculation needs."""
    stepper = TorchStepper(original("mamba"), make_cache(original("mamba").config, 16))
    stepper.advance(IDS[:3], 16)
    with pytest.raises(ExecutionError, match="newest 0"):
        stepper.crop(2)


@pytest.mark.parametrize("n_newer", [1, 7, 90])
def test_a_snapshot_is_gone_back_to_however_far(family, n_newer, original, far):
    """One turn of a conversation is written anew: nothing was recorded."""
    if family == "recurrent_gemma" and n_newer > 1:
        pytest.skip("a sliding window forgets what a snapshot would have to bring back")
    model = original(family)
    cache = make_cache(model.config, 16)
    stepper = TorchStepper(model, cache)
    stepper.advance(IDS[:30], 16)
    if family == "recurrent_gemma":
        cache.activate_past_recording()
    mark = cache.snapshot()
    expected = stepper.advance(IDS[100 : 100 + n_newer], 16)
    for _ in range(2):
        cache.restore(mark)
        assert stepper.length == 30
        assert far(stepper.advance(IDS[100 : 100 + n_newer], 16), expected) == 0


def test_bytes_of_states_are_counted_and_do_not_grow(family, original):
    """On the tensors; without attention a long text takes what a short one takes."""
    model = original(family)
    cache = make_cache(model.config, 16)
    stepper = TorchStepper(model, cache)
    sizes = []
    for start in (0, 40):
        stepper.advance(IDS[start : start + 40], 16)
        sizes.append(cache_bytes(cache))
    states = sum(t.numel() * t.element_size() for layer in cache.state_layers for t in layer.tensors())
    assert 0 < states <= sizes[0]
    anatomy = anatomy_from_config(model.config)
    assert sizes[1] - sizes[0] == anatomy.kv_bytes(80) - anatomy.kv_bytes(40)
    # A short convolution keeps one input fewer than transformers, at the type of the activations.
    assert 0.7 * anatomy.state_bytes() <= states <= 2 * anatomy.state_bytes()


def test_beams_go_on_with_the_memory_they_came_from(family, original):
    """Beam search reorders the batch in the middle of a text; with our cache it writes what it writes with its own."""
    if family == "rwkv":
        pytest.skip("transformers refuses beams for a model with another cache")
    model = original(family)
    ids = IDS[None, :12]
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "num_beams": 3, "do_sample": False}
    expected = model.generate(ids, **options, pad_token_id=0)
    TorchStepper(model, None)  # replaces the layers
    name, *_ = cache_arguments(model, None, 1)
    found = model.generate(ids, **options, pad_token_id=0, **{name: make_cache(model.config, 16)})
    assert torch.equal(found, expected)


def test_a_reset_cache_begins_anew(family, original, far):
    """Nothing of the first text is left."""
    model = original(family)
    cache = make_cache(model.config, 16)
    stepper = TorchStepper(model, cache)
    first = stepper.advance(IDS[:10], 16)
    cache.reset()
    assert stepper.length == 0
    assert far(stepper.advance(IDS[:10], 16), first) == 0


@torch.no_grad()
def test_layers_of_transformers_find_their_own_cache_in_ours(original, far):
    """A model whose layers were not replaced decodes token by token, and knows that nothing can be taken back."""
    model = original("mamba2")
    expected = model(IDS[None, :6], use_cache=False).logits[0]
    cache = make_cache(model.config, 16)
    logits = [model(IDS[None, i : i + 1], cache=cache, use_cache=True).logits[0] for i in range(6)]
    assert far(torch.cat(logits), expected) < 0.1  # it leaves limits of step sizes out in single steps
    layer = cache.layers[0]
    assert isinstance(layer, StateLayer)
    assert layer.is_borrowed
    assert cache_bytes(cache) > 0
    with pytest.raises(ExecutionError):
        cache.crop(-1)

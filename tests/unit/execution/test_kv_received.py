"""Bits that follow the attention tokens received: the mean holds, more read tokens keep more, nobody is promoted.

Seed features: S1.17
"""

from typing import Any

import pytest
import torch

from tapwb.core.errors import ExecutionError, UsageError
from tapwb.execution.kv_cache import PAGE_TOKENS, SINK_TOKENS, TapCache
from tapwb.execution.kv_controls import even_order, permuted_everywhere, permuted_in_layers
from tapwb.execution.kv_plan import adaptive_cache, attention_of, cache_notes, make_cache
from tapwb.execution.kv_received import AdaptiveKv, ReceivedAttention, bits_at_mean
from tapwb.models.tiny import tiny_model

IDS = torch.randint(0, 256, (1, 900), generator=torch.Generator().manual_seed(1))
SALIENCY = torch.exp(torch.randn(30, 64, generator=torch.Generator().manual_seed(0)) * 2)


@pytest.mark.parametrize("mean", [2.0, 3.0, 3.25, 4.0, 5.5, 8.0])
def test_the_mean_is_held_to_one_token(mean):
    """Never above it, and below it by less than one step of one token."""
    bits = bits_at_mean(SALIENCY, mean, (2, 3, 4, 8), trust=0.5)
    assert mean - 4 / SALIENCY.numel() < float(bits.double().mean()) <= mean


def test_more_salient_tokens_never_get_fewer_bits():
    """Over all layers together."""
    bits = bits_at_mean(SALIENCY, 3.5, (2, 3, 4, 8), trust=0.5).flatten()
    assert bool((bits[SALIENCY.flatten().argsort()].diff() >= 0).all())
    assert set(bits.tolist()) == {2, 3, 4, 8}


def test_a_layer_that_is_read_more_sharply_gets_more_bits():
    """One plan for all layers: that is where part of the gain comes from."""
    saliency = SALIENCY.clone()
    saliency[0] *= 100
    bits = bits_at_mean(saliency, 3.5, (2, 3, 4, 8), trust=0.5).double()
    assert float(bits[0].mean()) > float(bits[1:].mean()) + 1


def test_no_saliency_at_all_still_gives_bits():
    """All zeros: the lowest level that the mean allows."""
    assert set(bits_at_mean(torch.zeros(3, 64), 4.0, (3, 4, 8), trust=0.5).flatten().tolist()) == {4}


def test_keys_get_more_than_values_and_the_lowest_level_holds():
    """Means lie apart by twice ``key_extra``; nothing falls below ``min_bits`` unless the mean is too low for it."""
    keys, values = AdaptiveKv(3.75, key_extra=0.5).key_and_value_bits(SALIENCY)
    assert float(keys.double().mean()) == pytest.approx(4.25, abs=0.01)
    assert float(values.double().mean()) == pytest.approx(3.25, abs=0.01)
    assert min(keys.min(), values.min()) == 3
    low, _ = AdaptiveKv(2.5, key_extra=0.0).key_and_value_bits(SALIENCY)
    assert float(low.double().mean()) == pytest.approx(2.5, abs=0.01)


@pytest.mark.parametrize(
    ("reorder", "levels"),
    [(even_order, {3, 4}), (permuted_everywhere(1), {3, 4, 8}), (permuted_in_layers(1), {3, 4, 8})],
)
def test_every_control_takes_the_same_bits(reorder, levels):
    """Equal means of keys and values; the even one uses only the two levels next to it, the others all."""
    ours = AdaptiveKv(3.5, key_extra=0.25).key_and_value_bits(SALIENCY)
    control = AdaptiveKv(3.5, key_extra=0.25, reorder=reorder).key_and_value_bits(SALIENCY)
    for one, other in zip(ours, control, strict=True):
        assert float(other.double().mean()) == pytest.approx(float(one.double().mean()), abs=4 / SALIENCY.numel())
        assert set(other.flatten().tolist()) == levels
    assert not torch.equal(ours[0], control[0])


def test_shuffling_in_layers_keeps_the_share_of_each_layer():
    """Only which token of a layer gets the bits changes; everywhere means everywhere."""
    assert torch.equal(permuted_in_layers(0)(SALIENCY).sort(1).values, SALIENCY.sort(1).values)
    mixed = permuted_everywhere(0)(SALIENCY)
    assert torch.equal(mixed.flatten().sort().values, SALIENCY.flatten().sort().values)
    assert not torch.equal(mixed.sort(1).values, SALIENCY.sort(1).values)


def test_saliency_is_per_query_that_could_see_the_token():
    """Equal attention per visible query is equal saliency, however long a token has been there."""
    received = ReceivedAttention()
    received.add(torch.tensor([0.08, 0.02]), torch.tensor([2.0, 0.5]))
    received.add(torch.tensor([0.12, 0.12, 0.04]), torch.tensor([3.0, 3.0, 1.0]))
    assert torch.allclose(received.saliency(0, 3), torch.full((3,), 0.2))
    received.forget_before(1)
    assert torch.allclose(received.saliency(1, 3), torch.full((2,), 0.2))
    assert received.nbytes() == 2 * 2 * 4
    received.crop(2)
    received.add(torch.tensor([9.0, 0.02, 0.16]), torch.tensor([1.0, 0.5, 1.0]))
    assert torch.allclose(received.saliency(1, 3), torch.tensor([0.2, 0.4]))


def _fed(adaptive: AdaptiveKv | None = None, n_tokens: int = 900, chunk: int = 64) -> tuple[Any, TapCache]:
    model: Any = tiny_model("llama").model
    cache = adaptive_cache(model.config, adaptive or AdaptiveKv(3.5))
    with torch.inference_mode(), attention_of(model, cache):
        for start in range(0, n_tokens, chunk):
            model(IDS[:, start : min(start + chunk, n_tokens)], past_key_values=cache)
    return model, cache


def test_pages_wait_at_eight_bits_and_then_hold_the_mean():
    """The newest four pages wait; each older page has, over all layers, the mean of keys and values."""
    adaptive = AdaptiveKv(3.5)
    _, cache = _fed(adaptive)
    layers = cache.own_layers
    n_pages = len(layers[0].pages)
    assert n_pages == (900 - SINK_TOKENS - PAGE_TOKENS) // PAGE_TOKENS
    # Pages are settled when a pass begins: the page that this pass itself sealed is one more that waits.
    settled = n_pages - adaptive.waiting_pages - 1
    for index in range(n_pages):
        keys = torch.stack([layer.pages[index].bits for layer in layers]).double()
        values = torch.stack([layer.pages[index].value_bits for layer in layers]).double()
        if index < settled:
            assert float((keys + values).mean()) / 2 == pytest.approx(3.5, abs=4 / keys.numel())
            assert set(keys.flatten().tolist()) <= {3.0, 4.0, 8.0}
        else:
            assert set(keys.flatten().tolist()) == set(values.flatten().tolist()) == {8.0}
    counted = [layer.received for layer in layers if layer.received]
    assert {received.start for received in counted} == {SINK_TOKENS + settled * PAGE_TOKENS}


def test_the_bytes_include_what_is_counted():
    """Eight bytes for each token that still waits, in every layer."""
    _, cache = _fed()
    bare = sum(layer.nbytes() for layer in cache.own_layers)
    waiting = [layer.received.nbytes() for layer in cache.own_layers if layer.received]
    start = next(layer.received.start for layer in cache.own_layers if layer.received)
    assert waiting == [8 * (900 - start)] * len(cache.own_layers)
    for layer in cache.own_layers:
        layer.received = None
    assert bare - sum(layer.nbytes() for layer in cache.own_layers) == sum(waiting)


def test_decoding_goes_on_where_the_prompt_ended():
    """Token by token pages are sealed, wait, and are settled before the next token is read."""
    model, cache = _fed(n_tokens=450)
    n_before = len(cache.own_layers[0].pages)
    with torch.inference_mode(), attention_of(model, cache):
        for position in range(450, 530):
            model(IDS[:, position : position + 1], past_key_values=cache)
    pages = cache.own_layers[0].pages
    assert (n_before, len(pages)) == (5, 7)
    assert [int(page.bits.min()) == 8 for page in pages] == [False] * 3 + [True] * 4
    assert cache.get_seq_length() == 530


def test_more_bits_are_nearer_to_the_full_cache():
    """Means of 2.5, 4 and 8 against 16 bits, on the predictions."""
    model: Any = tiny_model("llama").model

    def logits(cache: Any) -> torch.Tensor:
        with torch.inference_mode(), attention_of(model, cache):
            out = [model(IDS[:, s : s + 64], past_key_values=cache).logits for s in range(0, 900, 64)]
        return torch.cat(out, dim=1)[0, 500:]

    exact = logits(make_cache(model.config, 16)).log_softmax(-1)
    errors = []
    for mean in (2.5, 4.0, 8.0):
        other = logits(make_cache(model.config, f"adaptive:{mean}:received")).log_softmax(-1)
        errors.append(float((exact.exp() * (exact - other)).sum(-1).mean()))
    assert errors[0] > 2 * errors[1] > 20 * errors[2] >= 0


def test_a_cache_that_cannot_see_attention_says_so():
    """Outside of ``attention_of`` there would be no saliency; nothing is guessed."""
    model: Any = tiny_model("llama").model
    with pytest.raises(ExecutionError, match=r"attention_of\(model, cache\)"):
        model(IDS[:, :9], past_key_values=make_cache(model.config, "adaptive:4:received"))


def test_reset_and_crop_forget_what_was_counted():
    """Speculation takes tokens back; a new text starts from nothing."""
    model, cache = _fed()
    cache.crop(-20)
    with torch.inference_mode(), attention_of(model, cache):
        model(IDS[:, 880:], past_key_values=cache)
    assert cache.get_seq_length() == 900
    cache.reset()
    assert (cache.get_seq_length(), cache.nbytes()) == (0, 0)
    with torch.inference_mode(), attention_of(model, cache):
        for start in range(0, 600, 64):
            model(IDS[:, start : start + 64], past_key_values=cache)
    first = torch.stack([layer.pages[0].bits for layer in cache.own_layers]).double()
    assert float(first.mean()) == pytest.approx(AdaptiveKv(3.5).mean_bits + AdaptiveKv(3.5).key_extra, abs=0.05)


def test_layers_that_ignore_the_bits_are_named():
    """Sliding layers are counted, with their window; a model without any has no note."""
    gemma, mistral, llama = (tiny_model(family).model.config for family in ("gemma3", "mistral", "llama"))
    assert cache_notes(make_cache(llama, 4)) == cache_notes(make_cache(gemma, 16)) == ()
    (note,) = cache_notes(make_cache(gemma, 4))
    assert note.startswith(f"1 of 2 layers see a sliding window of {gemma.sliding_window} tokens")
    assert "never quantized" in note
    (note,) = cache_notes(make_cache(mistral, 4))
    assert note.startswith("2 of 2 layers")


@pytest.mark.parametrize("kv", ["adaptive:4:entropy", "adaptive:9:received", "adaptive::received", "even:4:received"])
def test_nonsense_is_refused_with_the_grammar(kv):
    """As for every other cache precision."""
    with pytest.raises(UsageError, match="adaptive:MEAN:received"):
        make_cache(tiny_model("llama").model.config, kv)


def test_settings_out_of_range_are_refused():
    """A mean outside 2 to 8, and a lowest level that is not stored."""
    with pytest.raises(UsageError, match="2 to 8"):
        AdaptiveKv(1.5)
    with pytest.raises(UsageError, match="2, 3, 4, 8"):
        AdaptiveKv(4, min_bits=5)

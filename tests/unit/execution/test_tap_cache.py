"""The cache whose old tokens have their own precision: exact where it promises, bounded and smaller elsewhere.

Seed features: S1.17, S1.30
"""

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from tapwb.core.errors import ExecutionError, UnsupportedBits, UsageError
from tapwb.execution.kv_cache import PAGE_TOKENS, SINK_TOKENS, WINDOW_TOKENS, TapCache, TapCacheLayer, TokenBits
from tapwb.execution.kv_codes import rotation
from tapwb.execution.kv_page import KV_LEVELS, KvPage, read_rotated
from tapwb.execution.kv_plan import make_cache
from tapwb.models.tiny import tiny_model

#: Fill from an odd number of tokens to a little over three pages past the window.
N_TOKENS = SINK_TOKENS + WINDOW_TOKENS + 3 * PAGE_TOKENS + 7


def _states(n_tokens: int, *, batch: int = 2, channels: int = 10, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys with an outlier channel, values with an outlier token; half-precision numbers, so that storing is exact."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(batch, 3, n_tokens, channels, generator=generator)
    keys[..., 4] = keys[..., 4] * 0.1 + 30
    values = torch.randn(batch, 3, n_tokens, channels, generator=generator)
    values[:, :, ::11] *= 20
    return keys.half().float(), values.half().float()


def _filled(bits: int | torch.Tensor, chunk: int = 23, **options: Any) -> tuple[TapCacheLayer, Any, Any]:
    planned = None if isinstance(bits, int) else bits
    layer = TapCacheLayer(TokenBits(bits if isinstance(bits, int) else 8, planned), **options)
    keys, values = _states(N_TOKENS)
    for start in range(0, N_TOKENS, chunk):
        layer.update(keys[:, :, start : start + chunk], values[:, :, start : start + chunk])
    return layer, keys, values


def _read(layer: TapCacheLayer) -> tuple[torch.Tensor, torch.Tensor]:
    """What the next pass would see of the past."""
    new = torch.zeros(layer.keys.shape[0], 3, 1, 10)
    keys, values = layer.update(new, new)
    layer.crop(-1)
    return keys[:, :, :-1], values[:, :, :-1]


def test_sinks_and_window_are_untouched_and_only_the_middle_is_sealed():
    """Four sinks, three pages, and a window of at least 128 tokens."""
    layer, keys, values = _filled(2)
    assert len(layer.pages) == 3
    sealed = slice(SINK_TOKENS, SINK_TOKENS + 3 * PAGE_TOKENS)
    got_keys, got_values = _read(layer)
    assert got_keys.shape == keys.shape
    for got, true in ((got_keys, keys), (got_values, values)):
        assert torch.equal(got[:, :, :SINK_TOKENS], true[:, :, :SINK_TOKENS])
        assert torch.equal(got[:, :, sealed.stop :], true[:, :, sealed.stop :])
        assert not torch.equal(got[:, :, sealed], true[:, :, sealed])


@pytest.mark.parametrize("bits", KV_LEVELS)
def test_a_sealed_token_is_within_half_a_cell_of_its_bits(bits):
    """In rotated coordinates half a cell is a token's largest number over 2 ** bits; keys count from a centre."""
    keys, values = _states(PAGE_TOKENS)
    page = KvPage(keys, values, torch.full((PAGE_TOKENS,), bits))
    turn = rotation(keys.shape[-1])
    # Scales are rounded up to the next sixteenth of an octave of a bf16 number.
    up = 2 ** (1 / 16) * (1 + 2**-6)
    centre = (keys @ turn).mean(2, keepdim=True)
    centre_error = centre.abs().amax(-1, keepdim=True) / 254 * (1 + 2**-7)
    largest_key = (keys @ turn - centre).abs().amax(-1, keepdim=True) + centre_error
    largest_value = (values @ turn).abs().amax(-1, keepdim=True)
    got_keys, got_values = read_rotated([page])
    assert bool(((got_keys - keys @ turn).abs() <= largest_key * up / 2**bits + 1e-5).all())
    assert bool(((got_values - values @ turn).abs() <= largest_value * up / 2**bits + 1e-5).all())


def test_more_bits_are_never_worse():
    """Mean error falls with every level."""
    keys, values = _states(PAGE_TOKENS)
    errors = []
    for bits in KV_LEVELS:
        got_keys, got_values = KvPage(keys, values, torch.full((PAGE_TOKENS,), bits)).dequantize()
        errors.append(float((got_keys - keys).abs().mean() + (got_values - values).abs().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 10 * errors[-1]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_downgrade_is_a_right_shift(bits):
    """Going from 8 to b bits gives, bit by bit, what sealing at b bits gives; mixed levels too."""
    keys, values = _states(PAGE_TOKENS, seed=3)
    wanted = torch.full((PAGE_TOKENS,), bits)
    wanted[::3] = 8
    direct = KvPage(keys, values, wanted)
    late = KvPage(keys, values, torch.full((PAGE_TOKENS,), 8))
    late.downgrade(wanted)
    assert torch.equal(late.bits, wanted)
    assert late.nbytes() == direct.nbytes()
    for ours, theirs in zip(late.dequantize(), direct.dequantize(), strict=True):
        assert torch.equal(ours, theirs)
    late.downgrade(torch.full((PAGE_TOKENS,), 8))
    assert torch.equal(late.bits, wanted)


def test_a_layer_downgrades_by_the_position_of_its_tokens():
    """The plan counts from the first token of the text, sinks included."""
    layer, _, _ = _filled(8)
    before = layer.nbytes()
    plan = torch.full((N_TOKENS,), 8)
    plan[SINK_TOKENS + PAGE_TOKENS + 5] = 2
    layer.token_bits.planned = plan
    layer.downgrade()
    assert [int((page.bits == 2).sum()) for page in layer.pages] == [0, 1, 0]
    assert int(layer.pages[1].bits[5]) == 2
    layer.token_bits.planned = torch.full((N_TOKENS,), 3)
    layer.downgrade()
    assert layer.nbytes() < before


def test_planned_bits_reach_their_tokens():
    """Each sealed token has the bits of its own position; tokens beyond the plan get the default."""
    planned = torch.tensor([2, 3, 4, 8])[torch.arange(100) % 4]
    layer, _, _ = _filled(planned)
    got = torch.cat([page.bits for page in layer.pages])
    assert torch.equal(got[: 100 - SINK_TOKENS], planned[SINK_TOKENS:])
    assert bool((got[100 - SINK_TOKENS :] == 8).all())


def test_bytes_are_those_of_the_tensors_and_fall_with_the_bits():
    """Exactly: codes, a byte per token and head, a centre per page, two bits a token, and 16-bit tensors besides."""
    sizes = {}
    for bits in KV_LEVELS:
        layer, _, _ = _filled(bits)
        sizes[bits] = layer.nbytes()
        rows, channels = 2 * 3, 10
        padded = 64  # the 60 codes of a token fill whole bytes at every level
        codes = 2 * PAGE_TOKENS * padded * bits // 8
        scales = 2 * (rows * PAGE_TOKENS + 2 * rows) + rows * channels + 2 * rows
        lists = 2 * PAGE_TOKENS * 2 // 8
        dense = (N_TOKENS - 3 * PAGE_TOKENS) * rows * channels * 2 * 2
        assert sizes[bits] == 3 * (codes + scales + lists) + dense
    assert sorted(sizes.values()) == [sizes[bits] for bits in KV_LEVELS]


def test_cropping_forgets_unsealed_tokens_and_refuses_sealed_ones():
    """As speculation needs it; before anything is sealed even the sinks can go."""
    layer, keys, values = _filled(4)
    before = _read(layer)
    layer.crop(-50)
    assert layer.get_seq_length() == N_TOKENS - 50
    layer.update(keys[:, :, -50:], values[:, :, -50:])
    for ours, theirs in zip(_read(layer), before, strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(ExecutionError, match="not sealed"):
        layer.crop(-(WINDOW_TOKENS + PAGE_TOKENS))
    short = TapCacheLayer(TokenBits(4))
    short.update(keys[:, :, :9], values[:, :, :9])
    short.crop(-7)
    assert short.get_seq_length() == 2
    short.update(keys[:, :, 2:40], values[:, :, 2:40])
    assert torch.equal(_read(short)[0], keys[:, :, :40])


def test_reset_forgets_everything():
    """Afterwards the layer can be filled again, with another shape."""
    layer, _, _ = _filled(4)
    layer.reset()
    assert (layer.get_seq_length(), layer.nbytes()) == (0, 0)
    keys, values = _states(5, batch=1)
    layer.update(keys, values)
    assert layer.get_seq_length() == 5


def test_beams_are_reordered_and_repeated_in_sealed_pages_too():
    """Row by row the same as the rows chosen before."""
    for act, rows in (
        (lambda layer: layer.reorder_cache(torch.tensor([1, 1])), [1, 1]),
        (lambda layer: layer.batch_repeat_interleave(2), [0, 0, 1, 1]),
        (lambda layer: layer.batch_select_indices(torch.tensor([1])), [1]),
    ):
        layer, _, _ = _filled(3)
        before = _read(layer)
        act(layer)
        for ours, theirs in zip(_read(layer), before, strict=True):
            assert torch.equal(ours, theirs[rows])


def _feed(model: Any, cache: Any, ids: torch.Tensor, chunk: int = 61) -> torch.Tensor:
    with torch.inference_mode():
        parts = [
            model(ids[:, start : start + chunk], past_key_values=cache).logits
            for start in range(0, ids.shape[1], chunk)
        ]
    return torch.cat(parts, dim=1)


def _kl(reference: torch.Tensor, other: torch.Tensor) -> float:
    p, q = reference.log_softmax(-1), other.log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


IDS = torch.randint(0, 256, (1, 420), generator=torch.Generator().manual_seed(1))


def test_in_half_precision_nothing_sealed_is_exactly_the_dynamic_cache():
    """A model in bf16 caches bf16: not one bit may differ from transformers' own cache."""
    model: Any = tiny_model("llama").model.to(torch.bfloat16)
    ours = _feed(model, make_cache(model.config, 16), IDS)
    assert torch.equal(ours, _feed(model, DynamicCache(config=model.config), IDS))


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "falcon"])
def test_quality_falls_with_the_bits_of_the_cache(family):
    """Grouped queries, sliding layers, one and many heads: near exact at 16 and 8, worse at 4, worst at 2."""
    model: Any = tiny_model(family).model
    exact = _feed(model, DynamicCache(config=model.config), IDS)
    caches = {bits: make_cache(model.config, bits) for bits in (16, 8, 4, 2)}
    kl = {bits: _kl(exact, _feed(model, cache, IDS)) for bits, cache in caches.items()}
    assert kl[16] < 1e-6
    assert kl[8] < 1e-3
    assert kl[16] < kl[8] < kl[4] < kl[2] < 1
    sizes = [cache.nbytes() for cache in caches.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert all(cache.get_seq_length() == IDS.shape[1] for cache in caches.values())


def test_sliding_layers_keep_their_own_cache():
    """They never hold an old token: every other layer of gemma3 is ours, none of mistral."""
    gemma, mistral = tiny_model("gemma3").model, tiny_model("mistral").model
    assert [isinstance(layer, TapCacheLayer) for layer in TapCache(gemma.config).layers] == [False, True]
    assert not any(isinstance(layer, TapCacheLayer) for layer in TapCache(mistral.config).layers)


def test_hugging_face_generate_takes_it():
    """Greedy and with beams, over a prompt with sealed pages."""
    model: Any = tiny_model("llama").model
    mask = torch.ones_like(IDS)
    plain = model.generate(IDS, attention_mask=mask, max_new_tokens=8, do_sample=False)
    cache = TapCache(model.config, 8)
    ours = model.generate(IDS, attention_mask=mask, max_new_tokens=8, do_sample=False, past_key_values=cache)
    assert ours.shape[1] > IDS.shape[1]
    assert torch.equal(ours[:, : IDS.shape[1] + 1], plain[:, : IDS.shape[1] + 1])
    assert len(cache.layers[0].pages) == (IDS.shape[1] - SINK_TOKENS - WINDOW_TOKENS) // PAGE_TOKENS
    beams = model.generate(
        IDS,
        attention_mask=mask,
        max_new_tokens=4,
        num_beams=3,
        do_sample=False,
        past_key_values=TapCache(model.config, 8),
    )
    assert beams.shape[1] > IDS.shape[1]


def test_an_adaptive_cache_follows_the_scores_at_its_mean():
    """The more important half of the prompt keeps more bits."""
    model: Any = tiny_model("llama").model
    scores = torch.linspace(0, 1, IDS.shape[1])
    cache: Any = make_cache(model.config, "adaptive:4", scores)
    planned = cache.token_bits.planned.double()
    assert abs(float(planned.mean()) - 4) < 0.02
    half = len(planned) // 2
    assert planned[half:].mean() > planned[:half].mean() + 0.5
    assert cache.token_bits.default == 4
    _feed(model, cache, IDS)
    assert cache.nbytes() < make_cache_bytes(model, 8)


def make_cache_bytes(model: Any, bits: int) -> int:
    """Bytes of a filled uniform cache."""
    cache: Any = make_cache(model.config, bits)
    _feed(model, cache, IDS)
    return int(cache.nbytes())


@pytest.mark.parametrize(
    "kv", ["7", "32", "", "fast", "adaptive", "adaptive:", "adaptive:x", "adaptive:1", "adaptive:9"]
)
def test_nonsense_is_refused_in_one_line_with_the_grammar(kv):
    """Whatever is not 16, 8, 4, 3, 2 or a mean between."""
    config = tiny_model("llama").model.config
    with pytest.raises(UsageError, match=r"adaptive:MEAN") as caught:
        make_cache(config, kv, torch.rand(9))
    assert "\n" not in str(caught.value)


def test_bits_that_no_page_stores_are_refused():
    """In a plan, as a default, and in a page."""
    config = tiny_model("llama").model.config
    with pytest.raises(UsageError, match="5 bits"):
        TapCache(config, torch.tensor([8, 5, 4]))
    with pytest.raises(UsageError, match="6 bits"):
        TapCache(config, 6)
    keys, values = _states(PAGE_TOKENS)
    with pytest.raises(UnsupportedBits, match="7 bits"):
        KvPage(keys, values, torch.full((PAGE_TOKENS,), 7))

"""Attention from packed pages is plain attention over the same pages dequantized, and never unpacks a whole cache.

Seed features: S1.17
"""

from typing import Any

import pytest
import torch

from tapwb.core.errors import ExecutionError
from tapwb.execution import kv_attention
from tapwb.execution.kv_attention import TILE_PAGES, TILE_TOKENS, CacheView, paged_attention, reading_pages
from tapwb.execution.kv_page import KvPage
from tapwb.execution.kv_plan import make_cache
from tapwb.execution.kv_received import ReceivedAttention, probe_rows
from tapwb.models.tiny import tiny_model

N_PAGES = TILE_PAGES + 3
IDS = torch.randint(0, 256, (2, 420), generator=torch.Generator().manual_seed(1))


def _random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def parts() -> Any:
    """Four sinks, eleven pages of mixed bits, thirty recent and nine new tokens; two heads, three queries each."""
    bits = torch.tensor([2, 3, 4, 8])[torch.arange(64) % 4]
    pages = tuple(KvPage(*_random(2, 2, 2, 64, 16, seed=index), bits) for index in range(N_PAGES))
    sinks, recent = _random(2, 2, 2, 4, 16, seed=50), _random(2, 2, 2, 30, 16, seed=51)
    new, query = _random(2, 2, 2, 9, 16, seed=52), _random(2, 6, 9, 16, seed=53)
    read = [page.dequantize() for page in pages]
    keys = torch.cat([sinks[0], *(k for k, _ in read), recent[0], new[0]], dim=2)
    values = torch.cat([sinks[1], *(v for _, v in read), recent[1], new[1]], dim=2)
    view = CacheView((sinks[0], sinks[1]), pages, (recent[0], recent[1]), ReceivedAttention())
    return view, query, new, keys, values


def _by_hand(query, keys, values, visible, softcap=None, scaling=0.25):
    """Probabilities and result, with all keys at once."""
    scores = query @ keys.repeat_interleave(3, dim=1).transpose(-1, -2) * scaling
    scores = scores if softcap is None else torch.tanh(scores / softcap) * softcap
    probability = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    return probability, (probability @ values.repeat_interleave(3, dim=1)).transpose(1, 2)


def _causal(n_queries: int, n_tokens: int) -> torch.Tensor:
    return torch.ones(n_queries, n_tokens, dtype=torch.bool).tril(n_tokens - n_queries)


@pytest.mark.parametrize("form", ["none", "bool", "bias", "padded", "softcap"])
def test_it_is_plain_attention_over_the_dequantized_pages(parts, form):
    """With every form of mask; a padded row sees less of the old pages; scores may be capped."""
    view, query, new, keys, values = parts
    visible = _causal(9, keys.shape[2]).expand(2, 1, -1, -1).clone()
    if form == "padded":
        visible[1, :, :, :100] = False
    mask = None if form in ("none", "softcap") else visible
    if form == "bias":
        mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
    softcap = 5.0 if form == "softcap" else None
    got, _ = paged_attention(None, query, view.attach(new[0]), new[1], mask, softcap=softcap)
    _, expected = _by_hand(query, keys, values, visible, softcap)
    # fp32 sums of about 750 terms, in another order and in rotated coordinates.
    assert torch.allclose(got, expected, atol=2e-5)


def test_it_counts_the_squares_that_the_probes_gave(parts):
    """Mean over the queries of a group, the most attentive head and row, and how many probes could see the token."""
    view, query, new, keys, values = parts
    received = ReceivedAttention()
    view = CacheView(view.sinks, view.pages, view.recent, received)
    paged_attention(None, query, view.attach(new[0]), new[1], None)
    n_tokens = keys.shape[2]
    visible = _causal(9, n_tokens)
    probability, _ = _by_hand(query, keys, values, visible)
    squares = probability.unflatten(1, (2, 3)).square().mean(2).sum(2).amax((0, 1))
    expected = (squares / visible.sum(0)).sqrt()  # nine queries: all of them are probes
    assert torch.allclose(received.saliency(0, n_tokens), expected, atol=1e-6)


def test_no_more_than_a_tile_is_unpacked_at_once(parts, monkeypatch):
    """Eight pages, then the three that are left."""
    view, query, new, _, _ = parts
    seen = []
    original = kv_attention.read_rotated
    monkeypatch.setattr(kv_attention, "read_rotated", lambda pages: seen.append(len(pages)) or original(pages))
    paged_attention(None, query, view.attach(new[0]), new[1], None)
    assert seen == [TILE_PAGES, 3]


def _feed(model: Any, cache: Any, mask: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        parts = [
            model(IDS[:, start : start + 61], attention_mask=mask[:, : start + 61], past_key_values=cache).logits
            for start in range(0, IDS.shape[1], 61)
        ]
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen2", "gpt2"])
def test_a_model_reads_pages_as_it_reads_the_dequantized_cache(family):
    """Grouped queries, sliding layers and learned positions, with a padded row; only the rounding of pages differs."""
    model: Any = tiny_model(family).model
    mask = torch.ones_like(IDS)
    mask[1, :90] = 0
    plain = _feed(model, make_cache(model.config, 4), mask)
    with reading_pages(model):
        paged = _feed(model, make_cache(model.config, 4), mask)
    # Dequantized pages are handed over in fp16; the tiny models' logits reach about 5.
    seen = mask[0] == 1, mask[1] == 1
    for row, columns in enumerate(seen):
        assert float((plain - paged)[row, columns].abs().max()) < 2e-2
        assert float((plain - paged)[row, columns].abs().mean()) < 1e-3


def test_the_models_own_attention_comes_back():
    """After the body, and after an error in it; a pass without a cache of ours is plain attention meanwhile."""
    model: Any = tiny_model("llama").model
    before = model.config._attn_implementation
    plain = model(IDS).logits
    with reading_pages(model):
        assert torch.equal(model(IDS, use_cache=False).logits, plain)
    assert model.config._attn_implementation == before
    with pytest.raises(RuntimeError, match="boom"), reading_pages(model):
        raise RuntimeError("boom")
    assert model.config._attn_implementation == before


def test_a_model_with_an_attention_of_its_own_is_refused():
    """With what to use instead."""
    with (
        pytest.raises(ExecutionError, match=r"keeps its own attention.*--kv 8 or 4"),
        reading_pages(tiny_model("falcon").model),
    ):
        pass


def test_a_view_that_attention_never_read_is_an_error_and_not_a_wrong_number():
    """A model that copies its keys between cache and attention would attend to the new tokens alone."""
    model: Any = tiny_model("llama").model
    cache: Any = make_cache(model.config, 4)
    new = _random(1, 2, 1, 16, seed=0)
    with reading_pages(model):
        keys, values = cache.update(new, new, 0)
        paged_attention(None, _random(1, 2, 1, 16, seed=1), keys, values, None)
        keys, values = cache.update(new, new, 0)
        paged_attention(None, _random(1, 2, 1, 16, seed=1), keys.clone(), values, None)
        with pytest.raises(ExecutionError, match="did not read the pages"):
            cache.update(new, new, 0)


def test_a_long_prompt_is_scored_tile_by_tile():
    """More new tokens than a tile: the same as all at once."""
    keys, values = _random(2, 1, 2, 2 * TILE_TOKENS + 5, 16, seed=3)
    query = _random(1, 6, keys.shape[2], 16, seed=4)
    empty = keys[:, :, :0]
    view = CacheView((empty, empty), (), (empty, empty), ReceivedAttention())
    got, _ = paged_attention(None, query, view.attach(keys), values, None)
    _, expected = _by_hand(query, keys, values, _causal(keys.shape[2], keys.shape[2]))
    assert torch.allclose(got, expected, atol=2e-5)


def test_learned_sinks_are_refused(parts):
    """They take part in the softmax, so leaving them out would be a wrong number."""
    view, query, new, _, _ = parts
    with pytest.raises(ExecutionError, match="learned attention sinks"):
        paged_attention(None, query, view.attach(new[0]), new[1], None, s_aux=torch.zeros(6))


@pytest.mark.parametrize(("n_queries", "expected"), [(1, 1), (9, 9), (16, 16), (64, 16), (4096, 410)])
def test_probes_are_a_tenth_of_a_pass_and_half_of_them_the_newest(n_queries, expected):
    """Ascending, distinct, and all queries of a short pass."""
    rows = probe_rows(n_queries)
    assert len(rows) == len(set(rows.tolist())) == expected
    assert torch.equal(rows, rows.sort().values)
    newest = expected - expected // 2
    assert torch.equal(rows[-newest:], torch.arange(n_queries - newest, n_queries))
    if n_queries == 4096:
        assert rows[0] < 20

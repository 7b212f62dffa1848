"""Our recurrent layers give the logits of transformers' own, however a text is cut into passes.

Seed features: S1.19, S1.20, S1.21
"""

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from tapwb.core.errors import ExecutionError
from tapwb.execution.speculative.caches import retractable_cache
from tapwb.execution.state.mixers import TokenAdaptiveRWKVBlock, TokenAdaptiveSSMLayer, has_mixers, replace_mixers
from tapwb.models.cache_rules import cache_arguments

TOLERANCE = 1e-4
"""Of the logits, as a share of their norm, in fp32."""
#: Hybrids keep keys and values at 16 bits in a cache of ours.
HALF = 1e-2


def _ids(n_tokens: int, batch: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 257, (batch, n_tokens), generator=torch.Generator().manual_seed(seed))


def _in_passes(model: Any, ids: torch.Tensor, cuts: list[int], cache: Any) -> torch.Tensor:
    logits, start = [], 0
    for stop in cuts:
        out = model(ids[:, start:stop], **cache_arguments(model, cache, stop - start))
        logits.append(out.logits)
        cache = out.state if cache is None else cache
        start = stop
    return torch.cat(logits, dim=1)


@torch.no_grad()
@pytest.mark.parametrize("n_tokens", [1, 2, 37, 71])
def test_a_whole_text_has_the_logits_of_transformers(family, n_tokens, original, far):
    """Shorter than a convolution, odd, and longer than a chunk."""
    model, ids = original(family), _ids(n_tokens)
    expected = model(ids, use_cache=False).logits
    assert replace_mixers(model) > 0
    assert far(model(ids, use_cache=False).logits, expected) < TOLERANCE


@torch.no_grad()
def test_a_text_in_passes_has_the_logits_of_the_whole_text(family, original, far, cuts):
    """In transformers' cache: one by one, and split at random points. Its Mamba-1 layers lose the state there."""
    model, ids = original(family), _ids(37, seed=1)
    expected = model(ids, use_cache=False).logits
    replace_mixers(model)
    for way in cuts(37, seed=2):
        cache = None if family == "rwkv" else DynamicCache(config=model.config)
        assert far(_in_passes(model, ids, way, cache), expected) < TOLERANCE, way


@torch.no_grad()
def test_the_same_holds_in_our_cache(family, original, far, cuts):
    """With the memory of this project instead of transformers' tensors."""
    model, ids = original(family), _ids(37, seed=3)
    expected = model(ids, use_cache=False).logits
    replace_mixers(model)
    attends = any("ttention" in type(m).__name__ for m in model.modules()) and family != "rwkv"
    whole, *rest = (_in_passes(model, ids, way, retractable_cache(model.config)) for way in cuts(37, seed=4))
    assert far(whole, expected) < (HALF if attends else TOLERANCE)
    for logits in rest:  # keys and values are rounded alike in all of them
        assert far(logits, whole) < TOLERANCE


@torch.no_grad()
def test_padding_on_the_left_changes_nothing(family, original, far):
    """A row of a batch that begins with padding has the logits that transformers gives it."""
    if family == "rwkv":
        pytest.skip("transformers' RWKV-4 ignores padding")
    model, ids = original(family), _ids(13, seed=5)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    expected = model(ids, attention_mask=mask, use_cache=False).logits[mask.bool()]
    replace_mixers(model)
    assert far(model(ids, attention_mask=mask, use_cache=False).logits[mask.bool()], expected) < TOLERANCE


@torch.no_grad()
def test_generate_of_transformers_writes_the_same_text(family, original):
    """It makes the cache itself and goes on token by token; two tokens may change places where they are level."""
    model, ids = original(family), _ids(11, batch=1, seed=6)
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    ours = copy.deepcopy(model)
    replace_mixers(ours)
    theirs, found = model.generate(ids, **options)[0], ours.generate(ids, **options)[0]
    unlike = next((i for i, (a, b) in enumerate(zip(theirs, found, strict=False)) if a != b), None)
    if unlike is not None:
        first, second = model(theirs[None, :unlike], use_cache=False).logits[0, -1].topk(2).values
        assert first - second < 1e-4


def test_names_and_weights_stay_what_they_were(family, original):
    """The same entries in the same file; what has been replaced is not replaced again."""
    model = original(family)
    if family == "rwkv":
        model.rwkv.layers_are_rescaled, model.config.rescale_every = (
            False,
            0,
        )  # else its weights are restored, see below
    before = model.state_dict()
    assert not has_mixers(model)
    n_replaced = replace_mixers(model)
    ours = [m for m in model.modules() if isinstance(m, TokenAdaptiveSSMLayer | TokenAdaptiveRWKVBlock)]
    assert len(ours) == n_replaced > 0
    assert replace_mixers(model) == 0
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


@torch.no_grad()
def test_weights_that_transformers_rescaled_are_restored(original):
    """It divides outputs of later RWKV blocks by two against overflow, at the first pass; saved files must not be."""
    model = original("rwkv")
    rescaled = model.rwkv.blocks[2].attention.output.weight.clone()
    assert model.rwkv.layers_are_rescaled
    replace_mixers(model)
    model(_ids(5))
    assert torch.equal(model.rwkv.blocks[2].attention.output.weight, 2 * rescaled)
    assert model.config.rescale_every == 0


def test_packed_texts_are_refused(original):
    """A state runs through the whole row."""
    model = original("mamba2")
    replace_mixers(model)
    layer = next(m for m in model.modules() if isinstance(m, TokenAdaptiveSSMLayer))
    with pytest.raises(ExecutionError, match="one text per row"):
        layer(torch.zeros(1, 4, 40), seq_idx=torch.zeros(1, 4, dtype=torch.int32))


def test_a_cache_of_keys_and_values_is_refused(original):
    """Made without the configuration, transformers' cache has no place for a state."""
    model = original("mamba")
    replace_mixers(model)
    with pytest.raises(ExecutionError, match="DynamicCache"):
        model(_ids(3), **cache_arguments(model, DynamicCache(), 3))


@torch.no_grad()
def test_half_precision_models_carry_their_state_in_fp32(family, original):
    """Inputs and outputs are bf16, the state is not."""
    model = original(family).to(torch.bfloat16)
    replace_mixers(model)
    cache = retractable_cache(model.config)
    out = model(_ids(9), **cache_arguments(model, cache, 9))
    assert torch.isfinite(out.logits.float()).all()
    states = [state for layer in cache.state_layers for state in layer.memory.states.values()]
    assert (family == "lfm2") == (not states)
    assert all(state.dtype == torch.float32 for state in states)

"""The influence of a token is what its bits alone cost the whole text.

Seed features: S1.6
"""

import pytest
import torch

from tapwb.engine import TAPConfig, TAPEngine
from tapwb.execution.influence import token_influence
from tapwb.execution.linear import TokenAdaptiveLinear
from tapwb.importance.analyzer import rank_correlation
from tapwb.importance.signal import kl_nats

TEXT = "".join(chr(33 + (i * i * 7 + i // 5) % 90) for i in range(300))
TOKENS = 48


@pytest.fixture(scope="module")
def nested():
    """A tiny model, readable at 3, 4 and 8 bits."""
    engine = TAPEngine(TAPConfig(precision_levels=(3, 4, 8), mean_bits=5, time_reference=False))
    engine.load_model("tiny-random-llama", levels=[3, 4, 8])
    return engine.nested, engine.tokenize(TEXT)[:, :TOKENS]


def by_hand(nested, ids, low):
    """The same by a pass per token: KL divergence summed over the text, from the pass with everything at the top."""
    with torch.inference_mode():
        with nested.context.use(8):
            target = nested.model(ids, use_cache=False).logits
        found = []
        for token in range(ids.shape[1]):
            bits = torch.full((1, ids.shape[1]), 8)
            bits[0, token] = low
            with nested.context.use(bits):
                found.append(float(kl_nats(target, nested.model(ids, use_cache=False).logits).double().sum()))
    return torch.tensor(found, dtype=torch.float64)


def test_it_agrees_with_a_pass_per_token(nested):
    """In size, summed over tokens, and in order; more samples agree better."""
    model, ids = nested
    truth = by_hand(model, ids, 4)
    found = token_influence(model, ids, 4, samples=64)
    assert float(found.sum() / truth.sum()) == pytest.approx(1, abs=0.35)
    assert rank_correlation(found, truth) > 0.7
    few = token_influence(model, ids, 4, samples=1)
    assert 0.2 < rank_correlation(few, truth) < rank_correlation(found, truth)


def test_fewer_bits_influence_more_and_the_seed_repeats(nested):
    """3 bits change more than 4; the same seed gives the same numbers, another one others."""
    model, ids = nested
    four = token_influence(model, ids, 4, seed=3)
    assert four.shape == (TOKENS,)
    assert bool((four >= 0).all())
    assert float(token_influence(model, ids, 3, seed=3).sum()) > 2 * float(four.sum())
    assert torch.equal(token_influence(model, ids, 4, seed=3), four)
    assert not torch.equal(token_influence(model, ids, 4, seed=4), four)
    assert float(token_influence(model, ids, 8).sum()) == 0


def test_nothing_of_it_stays_on_the_model(nested):
    """No hook, no gradient, no level."""
    model, ids = nested
    with torch.inference_mode():
        before = model.model(ids, use_cache=False).logits
    token_influence(model, ids, 4)
    with torch.inference_mode():
        assert torch.equal(model.model(ids, use_cache=False).logits, before)
    for module in model.model.modules():
        assert not module._forward_hooks
        assert not isinstance(module, TokenAdaptiveLinear) or module.bias is None or module.bias.grad is None

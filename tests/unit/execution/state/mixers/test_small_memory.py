"""A small cache keeps large states at few bits, small ones as they are, and says so; RetNet goes the same way.

Seed features: S1.19, S1.20
"""

from pathlib import Path

import pytest
import torch
import transformers as hf

from tapwb.engine import TAPConfig, TAPEngine
from tapwb.execution.kv_cache import cache_bytes
from tapwb.execution.kv_plan import cache_notes, make_cache
from tapwb.execution.state.mixers import TokenAdaptiveRetNetBlock, replace_mixers
from tapwb.execution.state.mixers.choice import is_small
from tapwb.execution.stepper import TorchStepper
from tapwb.models.anatomy import anatomy_from_config
from tapwb.models.info import LoadedModel, ModelInfo
from tapwb.models.retnet import register
from tapwb.models.retnet.config import RetNetConfig
from tapwb.models.retnet.model import RetNetForCausalLM
from tapwb.models.tokenizer_bytes import byte_tokenizer

IDS = torch.randint(3, 257, (100,), generator=torch.Generator().manual_seed(0))


def _mamba2() -> hf.Mamba2ForCausalLM:
    config = hf.Mamba2Config(
        vocab_size=257, hidden_size=64, num_hidden_layers=2, num_heads=2, head_dim=64, state_size=128, n_groups=1
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def test_states_of_real_heads_shrink_and_logits_stay_near(far):
    """Heads of 64 by 128, as in Mamba-2, with the ring of updates at its longest and just after a write."""
    model, wide, narrow = _mamba2(), *(make_cache(_mamba2().config, kv) for kv in (16, 4))
    exact, small = TorchStepper(model, wide), TorchStepper(model, narrow)
    for start in (0, 70, 90, 91):
        stop = {0: 70, 70: 90, 90: 91, 91: 95}[start]
        expected, found = (one.advance(IDS[start:stop], 16) for one in (exact, small))
    assert all(is_small(layer.memory) for layer in narrow.state_layers)
    assert not any(is_small(layer.memory) for layer in wide.state_layers)
    assert cache_bytes(narrow) < 0.8 * cache_bytes(wide)
    small.advance(IDS[95:96], 16)
    assert cache_bytes(narrow) < 0.45 * cache_bytes(wide)
    assert 0 < far(found, expected) < 0.02
    assert cache_notes(wide) == ()
    assert any("in 2 of them it is stored as int8+4" in note for note in cache_notes(narrow))


def test_small_states_stay_as_they_are(family, original):
    """A ring of updates would be larger than the state itself."""
    cache = make_cache(original(family).config, 4)
    assert cache.state_layers
    assert not any(is_small(layer.memory) for layer in cache.state_layers)


@torch.no_grad()
def test_a_small_state_gives_the_same_numbers_however_a_text_is_cut(far):
    """Written by the number of tokens, not of passes."""
    model = _mamba2()
    replace_mixers(model)
    ways = []
    for cuts in ([95], list(range(1, 96)), [3, 50, 51, 95]):
        stepper, start = TorchStepper(model, make_cache(model.config, 4)), 0
        for stop in cuts:
            logits = stepper.advance(IDS[start:stop], 16)
            start = stop
        ways.append(logits[-1])
    assert all(far(logits, ways[0]) < 1e-3 for logits in ways[1:])


@pytest.fixture(scope="module")
def retnet() -> TAPEngine:
    """An engine with a random RetNet."""
    register()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = RetNetForCausalLM(RetNetConfig(vocab_size=257, num_hidden_layers=2)).eval()
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    info = ModelInfo("tiny-retnet", "RetNet", "0", "0" * 64, Path(), "tiny", "apache-2.0")
    engine = TAPEngine(TAPConfig(time_reference=False))
    engine.adopt(LoadedModel(model, byte_tokenizer(), anatomy_from_config(model.config), info, "cpu", "float32"))
    return engine


def test_a_retnet_is_nested_scored_planned_and_run(retnet):
    """Its blocks say what they have become."""
    blocks = [m for m in retnet.loaded.model.modules() if isinstance(m, TokenAdaptiveRetNetBlock)]
    assert len(blocks) == 2
    text, trace, metrics = retnet.trace("Light bends", 8, precision="adaptive:5.5:state_write", kv="8")
    assert isinstance(text, str)
    assert 4 <= trace.mean_bits <= 8
    assert metrics["memory"]["kv_bytes"] < metrics["memory"]["baseline_kv_bytes"] == retnet.anatomy.state_bytes()


@pytest.mark.parametrize("speculate", ["self:4", "ngram"])
def test_guesses_are_taken_back_from_a_retnet(retnet, speculate):
    """The answer is that of plain steps."""
    _, guessed, _ = retnet.trace("Light bends around stars", 24, precision="8", speculate=speculate)
    _, plain, _ = retnet.trace("Light bends around stars", 24, precision="8")
    assert guessed.token_ids == plain.token_ids

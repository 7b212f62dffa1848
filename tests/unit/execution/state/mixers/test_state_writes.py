"""What tokens write into recurrent states is captured for every form, and planned by."""

import pytest
import torch

from tapwb.core.errors import UnsupportedModel, UsageError
from tapwb.engine import TAPConfig, TAPEngine
from tapwb.execution.state.mixers import replace_mixers
from tapwb.models.capture import capture
from tapwb.models.recurrent.gated_delta import GatedDelta, GatedDeltaInputs
from tapwb.models.recurrent.rwkv4 import RWKV4, RWKV4Inputs
from tapwb.models.recurrent.selective_scan import MambaInputs, SelectiveScan
from tapwb.models.recurrent.ssd import SSD, SSDInputs
from tapwb.models.state_write import write_strength

IDS = torch.randint(3, 257, (2, 37), generator=torch.Generator().manual_seed(0))


def _random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_strength_is_the_norm_of_the_update():
    """Written out for the three forms whose update is one product."""
    x, dt = _random(2, 21, 6, seed=1), _random(2, 21, 6, seed=2).abs()
    b, c = _random(2, 21, 4, seed=3), _random(2, 21, 4, seed=4)
    scan = MambaInputs(x, dt, -_random(6, 4, seed=5).abs(), b, c)
    torch.testing.assert_close(write_strength(SelectiveScan(6, 4), scan), (dt * x).norm(dim=-1) * b.norm(dim=-1))

    heads, steps = _random(2, 21, 4, 3, seed=6), _random(2, 21, 4, seed=7).abs()
    b, c = _random(2, 21, 2, 5, seed=8), _random(2, 21, 2, 5, seed=9)
    duality = SSDInputs(heads, steps, -torch.ones(4), b, c)
    by_head = steps * heads.norm(dim=-1) * b.norm(dim=-1).repeat_interleave(2, dim=2)
    torch.testing.assert_close(write_strength(SSD(4, 3, 5), duality), by_head.norm(dim=-1))

    q, k = torch.nn.functional.normalize(_random(2, 2, 21, 2, 5, seed=10), dim=-1).unbind(0)
    v, beta = _random(2, 21, 4, 3, seed=11), _random(2, 21, 4, seed=12).sigmoid()
    delta = GatedDeltaInputs(q, k, v, -beta, beta)
    torch.testing.assert_close(write_strength(GatedDelta(4, 5, 3), delta), (beta * v.norm(dim=-1)).norm(dim=-1))


def test_in_an_average_the_strength_is_the_share():
    """Of RWKV-4: one for the first token, and what softmax gives without decay."""
    k = _random(2, 9, 5, seed=13)
    inputs = RWKV4Inputs(k, k, torch.zeros(5), torch.zeros(5))
    found = write_strength(RWKV4(5), inputs)
    assert torch.equal(found[:, 0], torch.ones(2))
    torch.testing.assert_close(found[:, 6], k[:, :7].softmax(dim=1)[:, 6].mean(-1))


def test_every_family_with_a_state_says_what_its_tokens_write(family, original):
    """Mean one over a text, another for every token, and logits as without looking."""
    model = original(family)
    replace_mixers(model)
    plain, watched = capture(model, IDS), capture(model, IDS, state_write=True, hidden_norms=True)
    assert torch.allclose(plain.logits, watched.logits, rtol=1e-4, atol=1e-4)
    if family == "lfm2":
        assert watched.state_write is None
        return
    assert watched.state_write.shape == IDS.shape
    assert watched.state_write.dtype == torch.float32
    torch.testing.assert_close(watched.state_write.mean(dim=1), torch.ones(2))
    assert watched.state_write.std(dim=1).min() > 0.01
    assert plain.state_write is None


def test_layers_of_transformers_say_that_they_cannot(family, original):
    """Not zeros, not silence."""
    with pytest.raises(UnsupportedModel, match="Nest the model first"):
        capture(original(family), IDS, state_write=True)


def test_tokens_are_planned_by_what_they_write(family, loaded):
    """Through the engine: the tokens that write most get the most bits."""
    engine = TAPEngine(TAPConfig(time_reference=False))
    engine.adopt(loaded(family))
    text = "Light bends around stars: we saw it in 1919"
    if family == "lfm2":
        with pytest.raises(UsageError, match="state_write"):
            engine.score(text, "state_write")
        return
    scored = engine.score(text, "state_write")
    plan = engine.plan(scored, "adaptive:5.5:state_write")
    writes = scored.facts.state_write[0]
    bits = torch.as_tensor(plan.bits).float().mean(0)
    order = writes.argsort()
    assert bits[order[-15:]].mean() > bits[order[:15]].mean()

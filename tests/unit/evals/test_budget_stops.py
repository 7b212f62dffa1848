"""What a budget buys: more bits read more bytes, and layers are planned only by a measurement of these weights."""

import pytest
import torch

from tapwb.core.errors import PrecisionSpecError
from tapwb.core.reading import Unavailable
from tapwb.engine import TAPEngine
from tapwb.evals.budget_stops import budget_stops, layer_damage_at_hand
from tapwb.plan.layer_damage import LayerDamage


@pytest.fixture(scope="module")
def engine():
    """A tiny model."""
    made = TAPEngine()
    made.load_model("tiny-random-llama")
    return made


@pytest.fixture(scope="module")
def scored(engine):
    """A line of text."""
    return engine.score("Light bends around a heavy star, and so the star appears elsewhere.", "entropy")


def damage() -> LayerDamage:
    """Two layers, the first of which suffers ten times as much."""
    nats = torch.tensor([[1.0], [0.1]], dtype=torch.float64)
    return LayerDamage(("a", "b"), (100, 300), (4,), nats, {3: 4.0, 4: 1.1, 5: 0.3, 6: 0.1, 8: 0.01})


def test_bytes_lie_between_the_neighbouring_widths(engine, scored):
    """A plan of 4.5 bits reads more than 4 bits for all and less than 8 for all; more budget reads more."""
    low, high = budget_stops(engine, scored, (4.5, 6.0), "entropy", Unavailable("not measured"))
    assert engine.nested.bytes_read(4) < float(low.bytes_per_token) < float(high.bytes_per_token)
    assert float(high.bytes_per_token) < engine.nested.bytes_read(8)
    counts = low.plan.histogram()
    by_hand = sum(engine.nested.bytes_read(bits) * n for bits, n in counts.items()) / low.plan.n_tokens
    assert float(low.bytes_per_token) == pytest.approx(by_hand)


def test_layers_get_bits_by_their_damage(engine, scored):
    """The layer that suffers is read wider; shares are of weights, and more bits promise a better ratio."""
    low, high = budget_stops(engine, scored, (4.5, 6.0), "entropy", damage())
    assert low.layers == {4: 0.75, 6: 0.25}
    assert 1 < float(high.layers_ratio) < float(low.layers_ratio)
    assert low.layers_ratio.source.startswith("estimated:")


def test_weights_that_were_not_measured_have_no_layer_plan(engine, scored, tmp_path, monkeypatch):
    """Nobody measured this model into this cache, and the stop says what to do."""
    monkeypatch.setenv("TAPWB_CACHE_DIR", str(tmp_path))
    known = layer_damage_at_hand(engine)
    assert isinstance(known, Unavailable)
    stop = budget_stops(engine, scored, (5.0,), "entropy", known)[0]
    assert stop.layers is stop.layers_ratio is known
    assert "tapwb layers" in known.reason


def test_a_mean_out_of_range_is_refused(engine, scored):
    """With the range."""
    with pytest.raises(PrecisionSpecError, match="between 4 and 8"):
        budget_stops(engine, scored, (3.0,), "entropy", damage())

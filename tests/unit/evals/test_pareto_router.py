"""A per-layer router beside plans: on the same windows, at the same mean, with its shuffled control and its cost."""

import numpy as np
import pytest
import torch

from tapwb.core.errors import PlanError, PrecisionSpecError, UsageError
from tapwb.core.precision import parse_precision
from tapwb.engine import TAPConfig, TAPEngine, signal_of
from tapwb.evals.pareto import ParetoSettings, measure_pareto
from tapwb.evals.pareto_table import ParetoTable
from tapwb.evals.session import ComparisonSession
from tapwb.plan import make_plan
from tapwb.training.router import RouterSettings, train_router

TEXT = "".join(chr(33 + (i * i * 7 + i // 5) % 90) for i in range(700))
SETTINGS = ParetoSettings(
    means=(4.5, 5.5), signals=("entropy",), control_means=(5.5,), context=90, windows=2, batch=2, with_router=True
)


@pytest.fixture(scope="module")
def gates(tmp_path_factory):
    """A router of the tiny model, in a cache of its own."""
    import tapwb.execution.router_file as module
    from tapwb.training import router as training

    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.settings, "cache_dir", lambda: folder)
        patch.setattr(training.settings, "cache_dir", lambda: folder)
        engine = TAPEngine(TAPConfig(precision_levels=(3, 4, 5, 6, 8), mean_bits=5, time_reference=False))
        engine.load_model("tiny-random-llama")
        yield train_router(engine, TEXT[::-1], RouterSettings(context=40, windows=10))


@pytest.fixture(scope="module")
def table(gates) -> ParetoTable:
    """Two windows in one pass."""
    return measure_pareto("tiny-random-llama", TEXT, SETTINGS)


def test_router_and_control_stand_in_the_table_at_their_mean(table, gates):
    """Within 2 % of the target in every window, and what the gates cost is beside the numbers."""
    found = {(point.family, point.target_bits): point for point in table.points}
    assert {target for family, target in found if family == "router"} == {4.5, 5.5}
    assert {target for family, target in found if family == "shuffled router"} == {5.5}
    for target in (4.5, 5.5):
        point = found["router", target]
        assert list(point.mean_bits) == pytest.approx([target] * 2, rel=0.02)
        assert point.settings["gate_bytes"] == gates.n_bytes
        assert point.settings["gate_multiply_adds_per_token"] == gates.n_multiply_adds
        assert point.signal is None
    own, shuffled = found["router", 5.5], found["shuffled router", 5.5]
    assert shuffled.precision == "shuffled:5.5:router"
    assert shuffled.mean_bits == pytest.approx(own.mean_bits)
    assert np.mean(shuffled.kl) != np.mean(own.kl)


def test_the_router_is_compared_with_static_layers(table):
    """As a ratio of divergences on the same windows, with an interval; and it survives the file."""
    payload = table.to_json()
    shown = {point["precision"]: point for point in payload["points"]}
    layers = next(p for p in table.points if p.precision == "layers:5.5")
    router = next(p for p in table.points if p.precision == "router:5.5")
    ratio = shown["router:5.5"]["log_kl_ratio_to_layers"]
    assert ratio["value"] == pytest.approx(np.log(np.mean(router.kl) / np.mean(layers.kl)), abs=0.05)
    assert ratio["ci95"][0] <= ratio["value"] <= ratio["ci95"][1]
    gain, net = (shown["router:4.5"][key] for key in ("adaptivity_gain_bits", "gain_net_of_gates_bits"))
    if "value" in gain:  # a random model may fall off the curve
        assert gain["value"] - net["value"] == pytest.approx(router.settings["gate_bits_per_weight"])
    assert "log_kl_ratio_to_layers" not in shown["adaptive:5.5:entropy"]
    again = ParetoTable.from_json(payload)
    assert [point.to_json() for point in again.points] == [point.to_json() for point in table.points]


def test_a_session_runs_routed_requests_with_any_cache(gates):
    """`eval perplexity` and its kin: the mean is that of the pass; pages of the cache are routed one by one."""
    session = ComparisonSession("tiny-random-llama", [parse_precision("router:4.5", levels=(3, 4, 5, 6, 8))])
    ids = torch.tensor([list(TEXT.encode())])[:, :128]
    request = parse_precision("router:4.5", levels=(3, 4, 5, 6, 8))
    plain, paged = session.run(ids, request), session.run(ids, request, kv=8)
    for result in (plain, paged):
        assert result.mean_bits == pytest.approx(4.5, rel=0.02)
        assert result.logits.shape == (128, 257)
    assert not torch.equal(plain.logits, session.run(ids, parse_precision("shuffled:4.5:router")).logits)


def test_the_grammar_of_routers():
    """Read, printed back, and refused where it makes no sense."""
    for text in ("router:4.5", "router:5:my/file.safetensors", "shuffled:4.5:router", "shuffled:4.5:router:f.st"):
        request = parse_precision(text)
        assert str(request) == text
        assert request.is_routed
        assert signal_of(request) is None
    assert parse_precision("router:5:C:/a.st").path == "C:/a.st"
    assert not parse_precision("shuffled:4.5:entropy").is_routed
    assert not parse_precision("plan:router").is_routed
    with pytest.raises(PrecisionSpecError, match="names no mean bits"):
        parse_precision("router:abc")
    with pytest.raises(PrecisionSpecError, match="outside the levels"):
        parse_precision("router:9")
    with pytest.raises(PlanError, match="no plan before the pass"):
        make_plan(parse_precision("router:5"), n_tokens=4)


def test_without_a_router_the_measurement_says_what_to_do(tmp_path, monkeypatch):
    """Nothing trained for this model: one line, with the command."""
    import tapwb.execution.router_file as module

    monkeypatch.setattr(module.settings, "cache_dir", lambda: tmp_path)
    session = ComparisonSession("tiny-random-gpt2", [parse_precision("router:4.5")])
    with pytest.raises(UsageError, match="tapwb train-router --model tiny-random-gpt2"):
        session.run(torch.tensor([[1, 2, 3]]), parse_precision("router:4.5"))

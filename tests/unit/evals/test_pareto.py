"""The Pareto measurement: every control at the same mean, nothing fitted on the text, redrawn without a model.

Seed features: S1.8, S1.34
"""

import dataclasses
import json
import time

import numpy as np
import pytest
import torch

from tapwb.core.errors import TapError, UnknownName, UsageError
from tapwb.core.jobs import NO_PROGRESS
from tapwb.core.precision import parse_precision
from tapwb.core.reading import Unavailable
from tapwb.evals import pareto
from tapwb.evals.pareto import ParetoSettings, measure_pareto
from tapwb.evals.pareto_table import ParetoPoint, ParetoTable
from tapwb.evals.session import ComparisonSession
from tapwb.importance.signal import kl_nats

TEXT = "".join(chr(33 + (i * i * 7 + i // 5) % 90) for i in range(900))
SETTINGS = ParetoSettings(means=(4.5, 5.5), signals=("entropy", "entropy_prev"), context=90, windows=4, batch=3)
CURVE = SETTINGS.curve()


@pytest.fixture(scope="module")
def table() -> ParetoTable:
    """A tiny model on four windows, in passes of three and one."""
    return measure_pareto("tiny-random-llama", TEXT, SETTINGS)


def test_every_family_is_there_at_every_mean(table):
    """Uniform widths, floors alone, random, shuffled, oracle, the signals, static layers, and both together."""
    found = {(point.family, point.target_bits) for point in table.points}
    families = {"floors", "random", "oracle", "adaptive", "shuffled", "layers", "layers+tokens"}
    assert found == {("uniform", bits) for bits in CURVE} | {(f, m) for f in families for m in (4.5, 5.5)}
    for point in table.points:
        assert len(point.kl) == len(point.excess_nll) == len(point.mean_bits) == 4
        assert np.mean(point.mean_bits) == pytest.approx(point.target_bits, rel=0.01)


def test_controls_hand_out_the_bits_of_their_signal(table):
    """A shuffled signal is planned with the spread of the signal, random with the largest of them."""
    by_name = {point.precision: point for point in table.points}
    for signal in SETTINGS.signals:
        spread = by_name[f"adaptive:5.5:{signal}"].settings["spread"]
        assert by_name[f"shuffled:5.5:{signal}"].settings["spread"] == spread == table.spreads[signal]
    assert by_name["random:5.5"].settings["spread"] == max(table.spreads.values())


def test_signals_are_trusted_as_far_as_they_explain_influence(monkeypatch):
    """Where every token costs the text the same no signal is trusted; where cost follows a signal, that one is."""
    settings = dataclasses.replace(SETTINGS, with_layers=False, context=120)
    session = ComparisonSession("tiny-random-llama", [parse_precision(b) for b in CURVE])

    def spreads(influence):
        monkeypatch.setattr(pareto, "token_influence", influence)
        bench = pareto._Bench(session, settings, NO_PROGRESS)
        bench.calibrate()
        return bench.spreads

    def follows(nested, ids, low_bits):
        assert low_bits == settings.levels[0]
        score = session.engine.score(ids, "entropy_prev").importance.scores[0]
        cost = (0.8 * torch.special.ndtri(score.double().clamp(1e-3, 1 - 1e-3))).exp()
        cost[:4] = 1000  # what floors protect does not blur the fit
        return cost

    assert max(spreads(lambda nested, ids, low: torch.ones(ids.shape[1])).values()) < 1e-6
    found = spreads(follows)
    assert found["entropy_prev"] == pytest.approx(0.8, abs=0.1)
    assert found["entropy"] < 0.4


def test_a_pass_in_a_batch_is_the_pass_alone(table):
    """The fourth window by hand: mean divergence of uniform 4 from the weights as loaded."""
    session = ComparisonSession("tiny-random-llama", [parse_precision(b) for b in CURVE])
    ids = torch.tensor([list(TEXT.encode())])[:, 270:360]
    reference, low = session.reference(ids), session.run(ids, parse_precision(4)).logits
    by_hand = float(kl_nats(reference[None, :-1], low[None, :-1]).mean())
    assert table.uniform_curve()[4][3] == pytest.approx(by_hand, rel=1e-4)


def test_the_oracle_is_the_best_choice_of_tokens(table):
    """At every mean its mean divergence is below that of every other choice of tokens."""
    for mean in (4.5, 5.5):
        kl = {p.precision: np.mean(p.kl) for p in table.points if p.target_bits == mean}
        tokens = [v for name, v in kl.items() if name.startswith(("random", "shuffled", "adaptive"))]
        assert len(tokens) == 6
        assert kl[f"oracle:{mean:g}"] < min(tokens)


def test_the_curve_encloses_every_mean_and_knows_every_level():
    """One width below the smallest mean, all above it, and whatever level an oracle plans with; never above 8."""
    assert ParetoSettings(means=(4.5, 6)).curve() == (4, 5, 6, 8)
    assert ParetoSettings(means=(4.0,)).curve() == (3, 4, 5, 6, 8)
    assert ParetoSettings(means=(6.5,), levels=(3, 6, 8)).curve() == (3, 4, 6, 8)
    assert ParetoSettings(means=(5.0,), levels=(4, 8, 16)).curve() == (4, 5, 6, 8)


def test_every_level_that_layers_may_be_read_at_is_stored():
    """Also one that no uniform pass runs at: without its own bias a calibrated level would be worse than it is."""
    assert ParetoSettings(means=(5.0,)).stored() == (3, 4, 5, 6, 8)
    assert ParetoSettings(means=(5.0,), with_layers=False).stored() == (4, 5, 6, 8)


def test_controls_run_where_they_are_asked_for_and_floors_everywhere():
    """Random, shuffled and oracle cost half of a measurement; what signals stand on is always there."""
    settings = ParetoSettings(means=(4.5, 5.0), signals=("entropy_prev",), control_means=(5.0,), with_layers=False)
    found = [(family, request.mean_bits) for family, request in settings.requests()]
    assert found == [
        *(("floors", 4.5), ("adaptive", 4.5)),
        *(("floors", 5.0), ("random", 5.0), ("oracle", 5.0), ("adaptive", 5.0), ("shuffled", 5.0)),
    ]
    with pytest.raises(UsageError, match=r"\[5.5\] have no plan"):
        measure_pareto("no-such-model", TEXT, ParetoSettings(means=(5.0,), control_means=(5.5,)))


def test_floors_hold_the_mean_and_nothing_else(table):
    """All tokens but the protected ones are spread over the two levels around the mean, whatever they score."""
    session = ComparisonSession("tiny-random-llama", [parse_precision(b) for b in CURVE])
    engine = session.engine
    ids = torch.tensor([list(TEXT.encode())])[:, :90]
    plan = engine.plan(engine.score(ids, "uniform"), parse_precision("adaptive:5.5:uniform"))
    bits = plan.bits.flatten().tolist()
    assert bits[0] == 8
    assert min(bits[1:4]) == 6
    assert set(bits[4:]) == {5, 6}
    assert plan.mean_bits == pytest.approx(5.5, abs=1 / 90)
    low, reference = session.run(ids, parse_precision("adaptive:5.5:uniform")).logits, session.reference(ids)
    by_hand = float(kl_nats(reference[None, :-1], low[None, :-1]).mean())
    point = next(p for p in table.points if p.family == "floors" and p.target_bits == 5.5)
    assert point.precision == "adaptive:5.5:uniform"
    assert point.signal is None
    assert point.kl[0] == pytest.approx(by_hand, rel=1e-4)


def test_the_gain_over_floors_is_placed_on_their_curve():
    """By hand: damage halves a bit; floors buy half a bit at 5, and the signal a quarter more on top of that."""
    kl = {f"{bits}": 2.0**-bits for bits in (4, 5, 6, 8)}
    kl |= {"floors": 2.0**-5.5, "signal": 2.0**-5.75, "random": 2.0**-5.25}
    uniform = [_point("uniform", name, float(name), value) for name, value in kl.items() if name.isdigit()]
    floors, signal = _point("floors", "f", 5.0, kl["floors"]), _point("adaptive", "s", 5.0, kl["signal"])
    random = _point("random", "r", 5.0, kl["random"])
    made = ParetoTable((*uniform, floors, signal, random), {}, {}, {}, {})
    assert set(made.curve_of("floors")) == {4.0, 5.0, 8.0}
    assert made.gain(floors).value == pytest.approx(0.5)
    assert made.gain(signal).value == pytest.approx(0.75)
    # From the floors at 5 (2**-5.5) to uniform 8 (2**-8) a bit is 2.5 / 3 halvings; down to uniform 4 it is 1.5.
    assert made.gain(signal, "floors").value == pytest.approx(0.25 / (2.5 / 3))
    assert made.gain(random, "floors").value == pytest.approx(-0.25 / 1.5)
    data = made.to_json()
    assert data["gain_over_floors_bits"]["r"] < 0 < data["adaptivity_gain_bits"]["r"]
    assert any("gain_over_floors_bits" in note for note in data["notes"])
    bare = ParetoTable((*uniform, signal), {}, {}, {}, {})
    assert isinstance(bare.gain(signal, "floors"), Unavailable)
    assert "'floors' was measured" in bare.gain(signal, "floors").reason


def _point(family, name, bits, kl):
    return ParetoPoint(family, name, None, bits, {"levels": [4, 5, 6, 8]}, (bits,) * 3, (kl,) * 3, (kl,) * 3)


def test_calibrated_cells_are_measured_as_such(tmp_path, monkeypatch):
    """The record says which cells; its layers are measured on those cells; its uniform curve is theirs."""
    text = tmp_path / "text.txt"
    text.write_text(TEXT[::-1], encoding="utf-8")
    settings = ParetoSettings(means=(5.0,), signals=("entropy_prev",), context=60, windows=2, batch=2, control_means=())
    plain = measure_pareto("tiny-random-llama", TEXT, settings)
    chosen = measure_pareto("tiny-random-llama", TEXT, dataclasses.replace(settings, cells=str(text)))
    assert plain.setup["cells"] == "plain"
    assert chosen.setup["cells"] == str(text)
    assert chosen.setup["layers"]["cells"] != plain.setup["layers"]["cells"]
    assert chosen.setup["text_id"] == plain.setup["text_id"]
    assert all(new != old for new, old in zip(chosen.uniform_curve()[4], plain.uniform_curve()[4], strict=True))


def test_the_json_keeps_the_contract_and_redraws_within_a_second(table, tmp_path):
    """Points, gains with intervals, oracle shares, provenance; read back it gives the same numbers."""
    data = table.to_json()
    assert set(data) >= {"points", "adaptivity_gain_bits", "oracle_share", "provenance", "setup", "signals"}
    assert set(data["points"][0]) >= {"precision", "mean_bits", "kl_mean", "perplexity_ratio", "settings", "windows"}
    gain = next(p["adaptivity_gain_bits"] for p in data["points"] if p["precision"] == "oracle:5.5")
    assert gain["ci95"][0] <= gain["value"] <= gain["ci95"][1]
    assert data["adaptivity_gain_bits"]["oracle:5.5"] == gain["value"]
    assert [row["signal"] for row in data["signals"]] == list(SETTINGS.signals)
    assert all(-1 <= row["rank_correlation"]["value"] <= 1 for row in data["signals"])
    table.save(tmp_path / "pareto.json")
    started = time.perf_counter()
    again = ParetoTable.load(tmp_path / "pareto.json")
    curve = again.uniform_curve()
    shown = [again.gain(point, n_resamples=200) for point in again.points if point.target_bits == 5.5]
    assert time.perf_counter() - started < 1
    assert curve == table.uniform_curve()
    assert len(shown) > 5
    assert again.to_json() == data


def test_what_is_no_measurement_is_refused(tmp_path):
    """A missing file, other JSON, a file cut short."""
    broken = tmp_path / "a.json"
    for content in (None, "{}", "[1", json.dumps({"format": "tapwb.pareto", "format_version": 1})):
        if content is not None:
            broken.write_text(content, encoding="utf-8")
        with pytest.raises(TapError, match="easure again"):
            ParetoTable.load(broken)


def test_bad_requests_fail_before_a_model_is_loaded():
    """No mean, and a signal that does not exist."""
    with pytest.raises(UsageError, match="no mean"):
        measure_pareto("no-such-model", TEXT, ParetoSettings(means=()))
    with pytest.raises(UnknownName):
        measure_pareto("no-such-model", TEXT, ParetoSettings(signals=("entropi",)))


@pytest.mark.minutes
@pytest.mark.smollm2
def test_planning_layers_cuts_the_excess_of_uniform_five_by_a_quarter(smollm2_path, evaldata):
    """Measured on documentation, judged on a novel: same stored bytes, same mean, at least 25 percent less excess."""
    text = (evaldata / "pride_and_prejudice.txt").read_text(encoding="utf-8")[20_000:26_000]
    settings = ParetoSettings(means=(5.0,), signals=("entropy_prev",), context=256, windows=3, batch=3, group_size=64)
    table = measure_pareto("smollm2-135m", text, settings)
    excess = {point.precision: np.mean(point.excess_nll) for point in table.points}
    kl = {point.precision: np.mean(point.kl) for point in table.points}
    assert 0 < excess["layers:5"] <= 0.75 * excess["5"]
    assert kl["layers:5"] <= 0.75 * kl["5"]
    assert kl["oracle:5"] < kl["random:5"]

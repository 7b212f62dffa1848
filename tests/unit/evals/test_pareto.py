"""The Pareto measurement: every control at the same mean, nothing fitted on the text, redrawn without a model.

Seed features: S1.8, S1.34
"""

import json
import time

import numpy as np
import pytest
import torch

from tapwb.core.errors import TapError, UnknownName, UsageError
from tapwb.core.precision import parse_precision
from tapwb.evals.pareto import CURVE, ParetoSettings, measure_pareto
from tapwb.evals.pareto_table import ParetoTable
from tapwb.evals.session import ComparisonSession
from tapwb.importance.signal import kl_nats

TEXT = "".join(chr(33 + (i * i * 7 + i // 5) % 90) for i in range(900))
SETTINGS = ParetoSettings(means=(4.5, 5.5), signals=("entropy", "entropy_prev"), context=90, windows=4, batch=3)


@pytest.fixture(scope="module")
def table() -> ParetoTable:
    """A tiny model on four windows, in passes of three and one."""
    return measure_pareto("tiny-random-llama", TEXT, SETTINGS)


def test_every_family_is_there_at_every_mean(table):
    """Uniform widths, random, shuffled, oracle, the signals, static layers, and both together."""
    found = {(point.family, point.target_bits) for point in table.points}
    families = {"random", "oracle", "adaptive", "shuffled", "layers", "layers+tokens"}
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
        assert kl[f"oracle:{mean:g}"] < min(tokens)


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


@pytest.mark.slow
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

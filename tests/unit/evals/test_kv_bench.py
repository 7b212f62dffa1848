"""Caches side by side: the protocol by hand, the gate, peers that are absent, and the real model behind a marker.

Seed features: S1.17
"""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from tapwb.core.errors import UsageError
from tapwb.core.provenance import Provenance
from tapwb.core.reading import Unavailable
from tapwb.evals import kv_bench
from tapwb.evals.kv_bench import evaluate_kv, spread_windows
from tapwb.evals.kv_table import KvLimits, KvRow, KvTable, Tally
from tapwb.execution import kv_peers
from tapwb.models.load import load_model

#: Bytes that follow no order: random weights find nothing in them, which is all that the protocol needs.
TEXT = "".join(chr(33 + (i * i * 7 + i // 5) % 90) for i in range(1500))
CONTEXT = 500


@pytest.fixture(scope="module")
def tiny() -> KvTable:
    """A tiny model, two windows of 500 tokens, with a peer that is not there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(kv_peers._BACKENDS, "quanto", ("optimum-quanto", lambda: False, 0))
        return evaluate_kv(
            "tiny-random-llama", TEXT, mean_bits=3.5, context=CONTEXT, windows=2, uniform=(8, 2), peers=["quanto"]
        )


def _row(table: KvTable, name: str) -> KvRow:
    return next(row for row in table.rows if row.name == name)


def test_the_reference_is_the_model_with_a_full_cache(tiny):
    """By hand with transformers' own cache on the same windows; nothing diverges from itself."""
    model: Any = load_model("tiny-random-llama", dtype="float32").model
    nll = []
    for start in (0, 750):
        ids = torch.tensor([list(TEXT.encode())[start : start + CONTEXT]])
        with torch.no_grad():
            logits = model(ids, past_key_values=DynamicCache()).logits[0, :-1].double()
        nll.append(-logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0])
    row = tiny.rows[0]
    assert (row.name, row.kind, row.kl_mean, row.perplexity_ratio, row.bytes_ratio) == ("16", "reference", 0, 1, 1)
    assert row.n_predictions == 2 * (CONTEXT - 1)
    # Keys and values are held in fp16.
    assert row.perplexity == pytest.approx(float(torch.cat(nll).mean().exp()), rel=1e-3)


def test_the_rows_are_the_cache_its_controls_and_the_uniform_ones(tiny):
    """In this order, and all of the same number of predictions."""
    assert [row.name for row in tiny.rows] == [
        *("16", "adaptive:3.5:received", "even:3.5", "random:3.5", "shuffled:3.5", "8", "2", "quanto:4")
    ]
    assert {row.n_predictions for row in tiny.rows[:-1]} == {2 * (CONTEXT - 1)}


def test_controls_take_the_same_bytes_and_the_levels_order(tiny):
    """Equal bytes to within the whole bytes of rows; 2 bits diverge more than 8 and take less."""
    ours = _row(tiny, "adaptive:3.5:received")
    for name in ("even:3.5", "random:3.5", "shuffled:3.5"):
        assert _row(tiny, name).cache_bytes == pytest.approx(ours.cache_bytes, rel=0.005)
    assert 0 < _row(tiny, "8").kl_mean < ours.kl_mean < _row(tiny, "2").kl_mean
    assert _row(tiny, "2").cache_bytes < _row(tiny, "8").cache_bytes < tiny.rows[0].cache_bytes
    assert ours.bytes_ratio == pytest.approx(ours.cache_bytes / tiny.rows[0].cache_bytes)


def test_a_peer_that_is_not_installed_is_unavailable_and_not_in_the_gate(tiny):
    """It says what to install; the others run."""
    assert (
        _row(tiny, "quanto:4").to_json()["unavailable"] == "optimum-quanto is not installed: pip install optimum-quanto"
    )
    assert [check["name"] for check in tiny.gate["checks"]] == ["bytes_ratio", "perplexity_ratio"]
    assert not any("quanto" in ratio.name for ratio in tiny.ratios)


def test_the_table_is_json_with_ratios_gate_and_provenance(tiny):
    """What a script reads; every ratio has a number of windows."""
    payload = json.loads(json.dumps(tiny.to_json(), allow_nan=False))
    assert {"rows", "ratios", "gate", "notes", "provenance"} <= payload.keys()
    assert {ratio["n"] for ratio in payload["ratios"]} == {2}
    assert payload["provenance"]["model_id"] == "tiny-random-llama"
    assert "perplexity adaptive:3.5:received / shuffled:3.5" in {ratio["name"] for ratio in payload["ratios"]}


def _tally(name: str, kind: str, nll: list[float], n_bytes: int, kl: float = 0.01) -> Tally:
    tally = Tally(name, kind)
    for value in nll:
        tally.add(np.array([value - 0.5, value + 0.5]), np.array([kl, kl]), n_bytes)
    return tally


def _table(*tallies: Tally) -> KvTable:
    facts = {"notes": (), "context": 3, "windows": 2, "mean_bits": 3.5, "provenance": Provenance.collect()}
    return KvTable.of(tallies, [], limits=KvLimits(0.3, 1.01), seed=0, **facts)


def test_ratios_are_of_perplexities_on_the_same_predictions():
    """By hand: windows of 2.00 and 3.00 nats against 2.01 and 3.03."""
    table = _table(_tally("16", "reference", [2.0, 3.0], 1000), _tally("ours", "adaptive", [2.01, 3.03], 300, kl=0.02))
    assert table.rows[1].perplexity_ratio == pytest.approx(math.exp(0.02))
    assert table.rows[1].perplexity == pytest.approx(math.exp(2.52))
    assert table.rows[1].kl_mean == pytest.approx(0.02)
    assert [check["met"] for check in table.gate["checks"]] == [True, False]
    assert table.gate["met"] is False


@pytest.mark.parametrize(
    ("peer_bytes", "peer_nll", "met"), [(300, 2.6, True), (299, 2.6, False), (400, 2.4, False), (400, 2.6, True)]
)
def test_a_peer_must_be_beaten_at_no_more_bytes(peer_bytes, peer_nll, met):
    """Better but larger, or smaller but worse, is not better."""
    table = _table(
        _tally("16", "reference", [2.5, 2.5], 1000),
        _tally("ours", "adaptive", [2.505, 2.505], 300),
        _tally("quanto:4", "peer", [peer_nll, peer_nll], peer_bytes),
    )
    assert table.gate["met"] is met


def test_a_text_too_short_to_be_sealed_has_no_divergence_to_divide():
    """The ratio says so instead of dividing by zero."""
    table = _table(
        _tally("16", "reference", [2.5], 1000, kl=0.0),
        _tally("ours", "adaptive", [2.5], 1000, kl=0.0),
        _tally("even", "control", [2.5], 1000, kl=0.0),
    )
    kl = next(ratio for ratio in table.ratios if ratio.name.startswith("kl"))
    assert isinstance(kl.ratio, Unavailable)
    json.dumps(table.to_json(), allow_nan=False)


def test_windows_spread_over_the_whole_text():
    """Different starts, no overlap, as many as fit."""
    ids = torch.arange(1000)[None]
    starts = [int(piece[0, 0]) for piece in spread_windows(ids, 100, 4, None)]
    assert starts == [0, 250, 500, 750]
    assert len(spread_windows(ids, 400, 9, None)) == 2
    assert [piece.shape for piece in spread_windows(ids, 1000, 1, None)] == [(1, 1000)]
    for context, windows, limit, match in (
        (1001, 1, None, "fewer"),
        (100, 0, None, "at least 1"),
        (200, 1, 100, "100"),
    ):
        with pytest.raises(UsageError, match=match):
            spread_windows(ids, context, windows, limit)


def test_an_unknown_peer_is_refused():
    """Before anything runs, with the names there are."""
    with pytest.raises(UsageError, match="quanto or hqq"):
        evaluate_kv("tiny-random-llama", TEXT, context=64, peers=["kivi"])


def test_the_bytes_of_a_peer_count_its_tensors_once(tmp_path):
    """Codes as they are, floating-point numbers as a 16-bit model would hold them, whatever holds them."""

    class Layer:
        keys = torch.zeros(2, 3, dtype=torch.float32)
        values = torch.zeros(2, 3, dtype=torch.bfloat16)
        _quantized_keys = (torch.zeros(10, dtype=torch.uint8), {"scale": torch.zeros(4), "nbits": 4})
        _quantized_values = None

    cache: Any = type("Cache", (), {"layers": [Layer(), Layer()]})()
    assert kv_peers.peer_bytes(cache) == 2 * (12 + 12 + 10 + 8)


@pytest.mark.parametrize("backend", kv_peers.PEERS)
def test_an_installed_peer_is_counted_on_its_packed_tensors(backend):
    """Four bits and two 16-bit numbers in 64, and the newest tokens at 16 bits."""
    config = load_model("tiny-random-llama", dtype="float32").model.config
    cache: Any = kv_peers.peer_cache(config, backend)
    if isinstance(cache, Unavailable):
        pytest.skip(str(cache))
    keys = torch.randn(1, 2, 512, 64)
    cache.layers[0].update(keys, keys)
    cache.layers[0].update(keys[:, :, :10], keys[:, :, :10])
    n_codes = 2 * keys.numel()
    assert kv_peers.peer_bytes(cache) == n_codes // 2 + n_codes // 64 * 2 * 2 + 2 * 2 * 10 * 64 * 2


@pytest.mark.minutes
@pytest.mark.smollm2
def test_the_gate_is_met_on_a_long_text(evaldata, smollm2_path):
    """At most 0.30 of the bytes at a perplexity ratio of at most 1.01, and better than the peers that are installed."""
    text = (evaldata / "pride_and_prejudice.txt").read_text(encoding="utf-8")
    table = evaluate_kv(str(smollm2_path), text, windows=1, uniform=(), peers=kv_peers.PEERS)
    assert table.gate["met"], table.gate


def test_every_page_is_told(monkeypatch):
    """Eight pages of 64 tokens for each cache of each window."""
    stages, steps = [], []

    class Counting:
        def stage(self, name: str, total: int | None = None, unit: str = "") -> None:
            stages.append((name, total))

        def advance(self, steps_: int = 1) -> None:
            steps.append(steps_)

        def check_cancelled(self) -> None:
            pass

    handle = load_model("tiny-random-llama", dtype="float32")
    monkeypatch.setattr(kv_bench, "load_model", lambda *args, **options: handle)
    evaluate_kv("tiny-random-llama", TEXT, context=CONTEXT, windows=1, uniform=(), progress=Counting())
    assert stages == [("evaluate", 8 * 5)]
    assert len(steps) == 40

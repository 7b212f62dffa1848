"""Programs write side by side in processes of their own; who cannot says why; a wrong kernel gets no speed.

Seed features: S1.35
"""

import json
import subprocess
import sys

import pytest

from tapwb.core.errors import UsageError
from tapwb.evals import decode_bench
from tapwb.evals.decode_bench import DecodeTask, measure_decode
from tapwb.evals.decode_peers import PEERS, Peer, peer_of
from tapwb.evals.decode_peers.contender import Clock

TASK = DecodeTask(prompt_tokens=6, new_tokens=5, turns=2, windows=2, context=24)
TEXT = "A lens bends light, and a heavy star bends it too. " * 8


@pytest.fixture(scope="module")
def table():
    """This program at 8 bits beside transformers, and beside a package nobody has."""
    absent = Peer("nothing", "8", "tapwb_no_such_package", "no-such-package", PEERS["quanto-int8"].make)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PEERS, "nothing", absent)
        return measure_decode("tiny-random-llama", "8", peers=["nothing"], task=TASK, text=TEXT, group_size=8)


def test_every_program_has_a_row_with_numbers_or_a_reason(table):
    """Speed, memory and perplexity for those that ran; what to install for the other."""
    own, peer, absent = (
        next(r for r in table.rows if r["name"] == n) for n in ("tap:8", "transformers-bf16", "nothing")
    )
    for row in (own, peer):
        assert row["decode_tok_per_s"] > 0
        assert row["ttft_s"] > 0
        assert row["n_steps"] == TASK.turns * (TASK.new_tokens - 1)
        assert row["resident_bytes"] > row["weights_bytes"] > 0
        assert row["n_windows"] == 2
    # The same model, so nearly the same perplexity; 8 bits and bf16 differ in the third digit.
    assert own["perplexity"] == pytest.approx(peer["perplexity"], rel=0.02)
    assert own["facts"]["kernel"]
    assert absent["unavailable"] == "no-such-package is not installed: pip install no-such-package"


def test_ratios_pair_the_turns(table):
    """One ratio for writing and one for the first token, with an interval around it."""
    assert [r["quantity"] for r in table.ratios] == ["decode", "first token"]
    for ratio in table.ratios:
        assert ratio["n"] == TASK.turns
        low, high = ratio["ci95"]
        assert low <= ratio["ratio"] <= high


def test_the_gate_looks_at_every_stored_level(table):
    """Also at those that were not asked for."""
    names = [f"tap:8: tokens at {bits} bits" for bits in (4, 8)]
    assert table.gate == {"met": True, "checks": [{"name": n, "value": 0, "limit": 0, "met": True} for n in names]}
    json.dumps(table.to_json())


def test_a_wrong_kernel_gets_no_speed(monkeypatch):
    """A planted fault: the gate's answer says that one token differed."""
    asked = []
    ask = decode_bench._Runner.ask

    def fault(self, do, **request):
        asked.append(do)
        if do == "gate":
            return [{"name": "tokens at 8 bits", "value": 1, "limit": 0, "met": False}]
        return ask(self, do, **request)

    monkeypatch.setattr(decode_bench._Runner, "ask", fault)
    table = measure_decode("tiny-random-llama", "8", peers=[], task=TASK, group_size=8)
    assert not table.gate["met"]
    assert table.ratios == ()
    assert "generate" not in asked
    assert all("decode_tok_per_s" not in row for row in table.rows)


def test_a_program_that_fails_says_so():
    """A failure inside the process comes back as one line, and the process goes on."""
    settings = json.dumps({"name": "tap:8", "threads": 1, "cells": "plain", "group_size": None})
    requests = [{"do": "load", "folder": "/no/such/folder", "text": "x"}, {"do": "score", "windows": [[1, 2]]}]
    done = subprocess.run(
        [sys.executable, "-m", "tapwb.evals.decode_worker", settings],
        input="".join(json.dumps(request) + "\n" for request in requests), capture_output=True, text=True, check=True,
    )  # fmt: skip
    replies = [json.loads(line) for line in done.stdout.splitlines()]
    assert [list(reply) for reply in replies] == [["failed"], ["failed"]]
    assert "/no/such/folder" in replies[0]["failed"]


def test_a_process_that_dies_says_how():
    """Its last words and its status stand in its row."""
    with decode_bench._running("transformers-fp32", TASK, "plain", None) as one:
        one.process.kill()
        one.process.wait()
        answer = one.ask("load", folder="x", text="y")
    assert "ended with status -9" in answer.reason


def test_unknown_peers_and_empty_tasks_are_refused():
    """With what is allowed."""
    with pytest.raises(UsageError, match="Choose from transformers-bf16"):
        peer_of("vllm")
    assert peer_of("llama.cpp:a/b.gguf").title == "llama.cpp b.gguf"
    with pytest.raises(UsageError, match="two turns"):
        DecodeTask(turns=1)
    with pytest.raises(UsageError, match="longer text"):
        measure_decode("tiny-random-llama", "8", task=DecodeTask(prompt_tokens=400, turns=2), text="short")


def test_the_clock_splits_first_and_later_tokens():
    """The first token's time runs from the request, the others from their neighbour."""
    clock = Clock()
    for token in (4, 5, 6):
        clock.token(token)
    assert clock.timing.token_ids == [4, 5, 6]
    assert len(clock.timing.step_s) == 2
    assert clock.timing.first_s > 0


def test_a_comparison_made_here_is_kept(table, tmp_path, monkeypatch):
    """For the model it was made on; the dashboard shows it."""
    monkeypatch.setenv("TAPWB_CACHE_DIR", str(tmp_path))
    decode_bench.keep_comparison(table)
    found = decode_bench.kept_comparison(table.provenance.model_checksum_sha256)
    assert found == json.loads(json.dumps(table.to_json()))


def test_the_newest_comparison_of_the_same_weights_is_found(tmp_path, monkeypatch):
    """Of several records; none for other weights."""
    results = tmp_path / "results"
    results.mkdir()
    lines = [
        {"provenance": {"model_checksum_sha256": "a", "utc": utc}, "n": utc}
        for utc in ("2026-02", "2026-03", "2026-01")
    ]
    (results / "decode-x.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    monkeypatch.setattr(decode_bench.settings, "data_dir", lambda: tmp_path)
    monkeypatch.setenv("TAPWB_CACHE_DIR", str(tmp_path / "cache"))
    assert decode_bench.kept_comparison("a")["n"] == "2026-03"
    assert decode_bench.kept_comparison("b") is None

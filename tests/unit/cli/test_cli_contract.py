"""The command line keeps its contract: one JSON object with the promised keys, honest statuses, one-line errors."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TINY = "tiny-random-llama"
PROVENANCE = {"tapwb", "commit", "python", "torch", "transformers", "device", "threads", "seed", "utc"}


def test_run_prints_what_it_promises(generated):
    """`tapwb run --json` holds text, token ids, bits, bytes, speed and energy with its source."""
    found = generated.json
    metrics = found["metrics"]
    assert len(found["token_ids"]) == 8
    assert set(metrics["precision"]) >= {"mean_bits", "bits_histogram", "energy_saved_pct", "energy_source"}
    assert set(metrics["memory"]) >= {"weights_bytes", "kv_bytes", "baseline_weights_bytes"}
    assert set(metrics["speed"]) >= {"ttft_s", "decode_tok_per_s"}
    assert 4 <= metrics["precision"]["mean_bits"] <= 8
    assert metrics["memory"]["weights_bytes"] < metrics["memory"]["baseline_weights_bytes"]
    assert found["provenance"].keys() >= PROVENANCE | {"model_id", "model_revision", "model_checksum_sha256"}
    assert found["provenance"]["model_id"] == TINY


def test_energy_names_its_source(generated):
    """A saving is a number with `estimated:` or `measured:` beside it, or the reason why there is none."""
    precision = generated.json["metrics"]["precision"]
    saved = precision["energy_saved_pct"]
    if isinstance(saved, dict):
        assert set(saved) == {"unavailable"}
    else:
        assert precision["energy_source"].startswith(("estimated:", "measured:"))


def test_streaming_beside_json_goes_to_standard_error(generated):
    """Standard output holds the JSON object alone, even with `--stream`; stages are told on standard error."""
    assert generated.out.startswith("{")
    assert generated.err != ""


def test_perplexity_has_every_column(evaluated):
    """Each precision has mean bits, perplexity, its ratio with an interval, KL and agreement; 16 bits is the unit."""
    rows = evaluated.json["results"]
    assert [row["precision"] for row in rows] == ["16", "8", "4", "adaptive:5.5:entropy", "random:5.5"]
    for row in rows:
        assert set(row) >= {"mean_bits", "perplexity", "perplexity_ratio", "kl_mean", "top1_agreement", "ci95"}
    reference, eight, four = rows[:3]
    assert reference["perplexity_ratio"] == pytest.approx(1)
    assert reference["top1_agreement"] == 1
    assert eight["kl_mean"] < four["kl_mean"]


def test_tokens_are_scored_and_planned(tapwb):
    """`tapwb tokens --json` gives each token its id, readable text, scores and bits, and the signals' correlation."""
    words = ("--model", TINY, "--text", "Hello wörld 42", "--signal", "entropy", "--signal", "position", "--json")
    found = tapwb("tokens", *words).json
    tokens = found["tokens"]
    assert [token["index"] for token in tokens] == list(range(len(tokens)))
    assert all(set(token["scores"]) == {"entropy", "position"} for token in tokens)
    assert all(0 <= score <= 1 for token in tokens for score in token["scores"].values())
    assert sum(token["bits"] for token in tokens) / len(tokens) == pytest.approx(found["mean_bits"])
    assert -1 <= found["rank_correlation"]["entropy"]["position"] <= 1
    assert found["provenance"].keys() >= PROVENANCE


def test_choices_counts_right_answers(tapwb, tmp_path):
    """`tapwb eval choices` reads JSON lines and reports accuracy, normalised accuracy, n and standard error."""
    file = tmp_path / "items.jsonl"
    item = {"ctx": "One, two,", "endings": [" three", " seven and a half"], "label": "0"}
    file.write_text("\n".join([json.dumps(item)] * 3), encoding="utf-8")
    rows = tapwb("eval", "choices", "--model", TINY, "--items", str(file), "--precision", "16,4", "--json").json[
        "results"
    ]
    assert [row["precision"] for row in rows] == ["16", "4"]
    assert all(row["n"] == 3 and 0 <= row["acc"] <= 1 and 0 <= row["acc_norm"] <= 1 for row in rows)


def test_pareto_puts_every_point_beside_its_controls(tapwb, tmp_path):
    """`tapwb pareto` gives points with the windows behind them, gains, oracle shares; `--out` keeps them for a page."""
    text, kept = tmp_path / "text.txt", tmp_path / "pareto.json"
    text.write_text("".join(chr(33 + (i * i * 7 + i // 5) % 90) for i in range(400)), encoding="utf-8")
    words = ("--model", TINY, "--text-file", str(text), "--mean-bits", "5.5", "--signals", "entropy", "--context", "60")
    words += ("--batch", "3", "--cells", str(text))
    found = tapwb("pareto", *words, "--windows", "3", "--out", str(kept), "--json").json
    assert found["setup"]["cells"] == str(text)
    assert set(found["gain_over_floors_bits"]) >= {"adaptive:5.5:entropy", "random:5.5", "oracle:5.5"}
    assert {"random:5.5", "oracle:5.5", "adaptive:5.5:entropy", "shuffled:5.5:entropy", "layers:5.5"} <= {
        point["precision"] for point in found["points"]
    }
    assert all(len(point["windows"]["kl"]) == 3 for point in found["points"])
    assert set(found["oracle_share"]) >= {"adaptive:5.5:entropy", "random:5.5"}
    point = next(point for point in found["points"] if point["precision"] == "adaptive:5.5:entropy")
    assert (
        point["adaptivity_gain_bits_ci95"][0] <= point["adaptivity_gain_bits"] <= point["adaptivity_gain_bits_ci95"][1]
    )
    assert found["adaptivity_gain_bits"]["adaptive:5.5:entropy"] == point["adaptivity_gain_bits"]
    assert found["provenance"].keys() >= PROVENANCE
    kept_points = json.loads(kept.read_text(encoding="utf-8"))["points"]
    assert [point["windows"] for point in kept_points] == [point["windows"] for point in found["points"]]


def test_layers_are_measured_and_planned_for_a_target(tapwb):
    """`tapwb layers` names every group with its size, damage and bits; a ratio or bytes stand for the mean."""
    found = tapwb("layers", "--model", TINY, "--mean-bits", "5", "--json").json
    assert set(found["groups"][0]) == {"name", "n_weights", "damage_nats", "bits"}
    assert found["mean_bits"] == pytest.approx(5, abs=0.05)
    total = sum(group["n_weights"] for group in found["groups"])
    assert sum(g["bits"] * g["n_weights"] for g in found["groups"]) / total == pytest.approx(found["mean_bits"])
    fewer = tapwb("layers", "--model", TINY, "--bytes", str(found["bytes_per_step"] - 2000), "--json").json
    assert fewer["mean_bits"] < found["mean_bits"]
    kept = tapwb("layers", "--model", TINY, "--ratio", "1.02", "--json").json
    assert kept["expected_perplexity_ratio"] <= 1.02


def test_layers_of_calibrated_cells_are_measured_apart(tapwb, tmp_path):
    """`--cells` names what was measured; bytes are those of a step, whatever the cells."""
    text = tmp_path / "text.txt"
    text.write_text("".join(chr(33 + (i * i * 7 + i // 5) % 90) for i in range(400)), encoding="utf-8")
    plain = tapwb("layers", "--model", TINY, "--json").json
    chosen = tapwb("layers", "--model", TINY, "--cells", str(text), "--json").json
    assert (plain["cells"], chosen["cells"]) == ("plain", str(text))
    assert chosen["source"]["cells"] != plain["source"]["cells"]
    assert chosen["bytes_at_8"] == plain["bytes_at_8"]


def test_a_head_is_trained_and_scored_on_held_out_text(tapwb, tmp_path):
    """`tapwb train-head` says what the head explains on windows it has not seen, and where it is kept."""
    text = tmp_path / "text.txt"
    text.write_text("".join(chr(33 + (i * i * 7 + i // 5) % 90) for i in range(700)), encoding="utf-8")
    words = ("--model", TINY, "--text-file", str(text), "--context", "60", "--windows", "8", "--json")
    found = tapwb("train-head", *words).json
    assert found["windows_fitted"] + found["windows_scored"] == 8
    assert -1 <= found["rank_correlation"] <= 1
    assert Path(found["file"]).is_file()
    assert found["provenance"].keys() >= PROVENANCE


def test_fit_says_what_each_card_needs(tapwb):
    """`tapwb fit --params 13B --gpu NAME` gives bytes, a verdict and the longest context."""
    rows = tapwb("fit", "--params", "13B", "--context", "2048", "--gpu", "RTX 4090", "--json").json["rows"]
    by_format = {row["format"]: row for row in rows}
    assert all(set(row) >= {"gpu", "vram_bytes", "needed_bytes", "fits", "max_context"} for row in rows)
    assert not by_format["bf16"]["fits"]
    assert by_format["tap8"]["fits"]


def test_models_can_be_listed_fetched_and_looked_into(tapwb):
    """`models list`, `pull` and `show` agree about the model."""
    listed = {row["id"]: row for row in tapwb("models", "list", "--json").json["models"]}
    assert {"smollm2-135m", TINY} <= listed.keys()
    pulled = tapwb("models", "pull", TINY, "--json").json
    shown = tapwb("models", "show", TINY, "--json").json
    assert shown["path"] == pulled["path"]
    assert shown["anatomy"]["n_layers"] == 2
    assert shown["weights_bytes"]["4"] < shown["weights_bytes"]["8"] < shown["weights_bytes"]["16"]


def test_claims_stand_beside_measurements(tapwb):
    """`tapwb claims --json` has every figure with its claim and either a measurement or the reason for none."""
    claims = tapwb("claims", "--json").json["claims"]
    assert len(claims) > 100
    for claim in claims:
        assert set(claim) >= {"id", "claimed", "measured", "verdict", "why"}
        assert isinstance(claim["measured"], str) or set(claim["measured"]) == {"unavailable"}


@pytest.mark.parametrize(
    ("words", "status", "reason"),
    [
        (("run", "--model", "smollm2-135mm", "--prompt", "x"), 1, "smollm2-135m"),
        (("run", "--model", TINY, "--prompt", ""), 1, "no token"),
        (("run", "--model", TINY, "--prompt", "x", "--max-new-tokens", "99999"), 1, "context"),
        (("run", "--model", TINY, "--prompt", "x", "--precision", "7"), 2, "7 bits"),
        (("run", "--model", TINY, "--prompt", "x", "--precision", "adaptive:9"), 2, "mean of 9"),
        (("run", "--model", TINY, "--prompt", "x", "-p", "threshold", "--levels", "8,4"), 2, "ascending"),
        (("run", "--model", TINY, "--prompt", "x", "-p", "threshold", "--thresholds", "0.2,2,3"), 2, "thresholds"),
        (("run", "--model", TINY, "--prompt", "x", "--speculate", "self:8"), 2, "a level of 2 to 6"),
        (
            ("run", "--model", TINY, "--prompt", "x", "--speculate", "self", "-p", "best:5"),
            2,
            "all tokens at one level",
        ),
        (("run", "--model", TINY, "--prompt", "x", "--speculate", "self", "-p", "4"), 2, "would be the same"),
        (("run", "--model", TINY, "--prompt", "x", "--speculate", "ngram", "--kv", "8"), 2, "--kv 16"),
        (("tokens", "--model", TINY), 2, "--text"),
        (("tokens", "--model", TINY, "--text", "x", "--signal", "entropie"), 2, "entropy"),
        (("eval", "perplexity", "--model", TINY, "--text-file", "absent.txt"), 2, "absent.txt"),
        (("layers", "--model", TINY, "--ratio", "0.9"), 1, "above 1"),
        (("layers", "--model", TINY, "--ratio", "1.1", "--bytes", "9"), 2, "exclude each other"),
        (("fit",), 2, "--params"),
        (("fit", "--params", "many"), 2, "13B"),
        (("report", "--run", "20260101T000000Z-absent"), 1, "no run"),
        (("report", "no_such_notebook"), 2, "00_first_look"),
        (("claims", "--feature", "S9.9"), 2, "S9.9"),
    ],
)
def test_a_mistake_costs_one_line(tapwb, words, status, reason):
    """A wrong request ends with its status and one line that says what to do; no result, no traceback."""
    ran = tapwb(*words)
    lines = [line for line in ran.err.splitlines() if line.startswith("tapwb: ")]
    assert (ran.status, ran.out) == (status, "")
    assert len(lines) == 1, ran.err
    assert reason in lines[0]
    assert "Traceback" not in ran.err


def test_a_developer_can_have_the_traceback(tapwb, monkeypatch):
    """`TAPWB_DEBUG=1` prints it before the same one line; a wrong value hides nothing."""
    monkeypatch.setenv("TAPWB_DEBUG", "1")
    ran = tapwb("claims", "--feature", "S9.9")
    assert "Traceback" in ran.err
    assert ran.err.splitlines()[-1].startswith("tapwb: ")
    monkeypatch.setenv("TAPWB_DEBUG", "maybe")
    ran = tapwb("claims", "--feature", "S9.9")
    assert ran.status == 2
    assert "S9.9" in ran.err


def test_a_bad_item_is_named_by_its_line(tapwb, tmp_path):
    """The second line of an item file is wrong, and the message says so."""
    file = tmp_path / "items.jsonl"
    file.write_text('{"ctx": "a", "endings": ["b", "c"], "label": 0}\n{"ctx": "a", "endings": ["b"], "label": 0}\n')
    ran = tapwb("eval", "choices", "--model", TINY, "--items", str(file))
    assert ran.status == 2
    assert "line 2" in ran.err


def test_ctrl_c_ends_with_130_and_prints_no_result(folders, text_file):
    """A long evaluation stops soon after Ctrl-C; standard output stays empty."""
    words = [
        "eval",
        "perplexity",
        "--model",
        TINY,
        "--text-file",
        str(text_file),
        "--context",
        "4",
        "--windows",
        "9999",
    ]
    command = [sys.executable, "-m", "tapwb", *words, "--precision", ",".join(["random:5.5"] * 400), "--json"]
    process = subprocess.Popen(
        command, env=os.environ | folders, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if line.strip() == "evaluate":
                break
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out) == (130, ""), err
    assert "cancelled" in err


def test_a_saved_run_becomes_a_report_without_a_model(shell, generated, tmp_path):
    """`tapwb report --run ID` reads the store alone, takes under 20 s, and names its files."""
    started = time.monotonic()
    ran = shell("report", "--run", generated.json["run_id"], "--to", "html,ipynb", "--out", str(tmp_path), "--json")
    elapsed_s = time.monotonic() - started
    files = ran.json["files"]
    assert [file.rsplit(".", 1)[1] for file in files] == ["html", "ipynb"]
    assert TINY in (tmp_path / files[0]).read_text(encoding="utf-8")
    assert elapsed_s < 20

"""The quality check and 8-bit activations from the command line, on a tiny random model."""

import pytest

TINY = "tiny-random-llama"
TEXT = "The river bends twice before it meets the old stone bridge, and nobody remembers who built either of them. " * 4


@pytest.fixture
def text_file(tmp_path):
    """A text of some four hundred tokens."""
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)


def test_check_prints_one_object_with_verdict_interval_and_first_safe_setting(tapwb, text_file):
    """The keys a script reads; the time is kept."""
    ran = tapwb("check", "--model", TINY, "--text-file", text_file, "-p", "8", "--seconds", "20", "--json")
    out = ran.json
    assert out["verdict"] in ("safe", "degraded", "gibberish", "undecided")
    assert out["asked"]["precision"] == "8"
    low, high = out["asked"]["perplexity_ratio_ci95"]
    assert low <= out["asked"]["perplexity_ratio"] <= high
    assert out["asked"]["n_windows"] >= 4
    assert {"first_safe", "tried", "sample", "limit", "budget_s", "elapsed_s", "provenance"} <= set(out)


def test_check_says_it_for_people_and_stores_two_bits_when_asked_for(tapwb, text_file):
    """A sentence, the settings tried, and what the model writes, in quotes."""
    ran = tapwb("check", "--model", TINY, "--text-file", text_file, "-p", "2", "--no-search")
    assert ran.status == 0, ran.err
    assert "Quality check:" in ran.out
    assert "it writes" in ran.out


def test_a_run_with_a_guard_carries_the_check(tapwb):
    """On the prompt; a short one is said to be too short, and the run stands."""
    words = ("run", "--model", TINY, "--max-new-tokens", "3", "--guard", "--json", "-p", "8")
    short = tapwb(*words, "--prompt", "A river").json
    assert short["quality"]["verdict"] == "undecided"
    assert "Give a longer text" in short["quality"]["asked"]["why"]
    assert short["text"] is not None
    assert tapwb(*words, "--prompt", TEXT[:200]).json["quality"]["asked"]["n_windows"] >= 4


@pytest.mark.parametrize("words", [("--guard", "-p", "16"), ("--activations", "int8", "-p", "16")])
def test_options_that_need_nested_weights_are_refused_for_16_bits(tapwb, words):
    """Wrong usage, in one line, before anything is loaded."""
    ran = tapwb("run", "--model", TINY, "--prompt", "A river", *words)
    assert ran.status == 2
    assert "8 bits or fewer" in ran.err


def test_a_run_with_8_bit_activations_names_their_share_of_wide_tokens(tapwb):
    """In the JSON and in the lines for people."""
    words = ("run", "--model", TINY, "--prompt", TEXT[:80], "--max-new-tokens", "2", "-p", "6")
    out = tapwb(*words, "--activations", "adaptive:5", "--json").json
    assert out["metrics"]["activations"]["activations"] == "adaptive:5"
    assert 0 < out["metrics"]["activations"]["wide_share"] < 1
    ran = tapwb(*words, "--activations", "adaptive:5")
    assert "adaptive:5; kept wide:" in ran.out
    assert "activations" not in tapwb(*words).out


def test_bench_activations_and_eval_perplexity_show_both(tapwb, text_file):
    """Rows by weights and activations, ratios with intervals; one more row for each activation precision."""
    words = ("--model", TINY, "--text-file", text_file, "--context", "64", "--windows", "2")
    out = tapwb(
        "bench", "activations", *words, "--weights", "8", "--activations", "int8,adaptive:5,random:5", "--json"
    ).json
    assert [row["activations"] for row in out["rows"]] == ["16", "int8", "adaptive:5", "random:5"]
    assert [ratio["n"] for ratio in out["ratios"]] == [2, 2]
    shown = tapwb("bench", "activations", *words, "--weights", "4", "--activations", "int8,adaptive:5")
    assert "kl adaptive:5 / int8, weights 4" in shown.out
    rows = tapwb("eval", "perplexity", *words, "-p", "16,6", "--activations", "16,int8", "--json").json["results"]
    assert [(row["precision"], row["activations"]) for row in rows] == [("16", "16"), ("6", "16"), ("6", "int8")]

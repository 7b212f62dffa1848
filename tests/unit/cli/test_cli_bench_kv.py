"""``tapwb bench kv``: one JSON object for scripts, tables for people, one line for a mistake.

Seed features: S1.17
"""

import importlib.util

import pytest

WORDS = ("bench", "kv", "--model", "tiny-random-mistral", "--context", "400", "--windows", "1", "--uniform", "")


@pytest.fixture(scope="module")
def long_text(tmp_path_factory) -> str:
    """Long enough for one window in which something is sealed."""
    file = tmp_path_factory.mktemp("texts") / "long.txt"
    file.write_text("The quick brown fox jumps over the lazy dog. " * 12, encoding="utf-8")
    return str(file)


def test_it_prints_rows_ratios_a_gate_and_where_they_come_from(tapwb, long_text):
    """The keys of the contract; a peer that is not installed has a reason; sliding layers are named in a note."""
    found = tapwb(*WORDS, "--text-file", long_text, "--peers", "hqq", "--json").json
    assert {"rows", "ratios", "gate", "notes", "provenance", "model", "text_file"} <= found.keys()
    assert all({"name", "ratio", "ci95", "n"} == ratio.keys() for ratio in found["ratios"])
    assert {check["name"] for check in found["gate"]["checks"]} >= {"bytes_ratio", "perplexity_ratio"}
    hqq = next(row for row in found["rows"] if row["name"] == "hqq:4")
    if importlib.util.find_spec("hqq") is None:
        assert "pip install hqq" in hqq["unavailable"]
    assert "sliding window" in found["notes"][0]
    assert found["provenance"]["model_id"] == "tiny-random-mistral"


def test_people_see_the_gate_and_the_note(tapwb, long_text):
    """Every limit says whether it is met."""
    done = tapwb(*WORDS, "--text-file", long_text)
    assert done.status == 0, done.err
    assert "against 0.3" in done.out
    assert "sliding window" in done.out


@pytest.mark.parametrize(
    ("words", "said"),
    [(("--peers", "kivi"), "quanto or hqq"), (("--context", "900"), "900"), (("--uniform", "7"), "7")],
)
def test_a_mistake_is_one_line(tapwb, long_text, words, said):
    """Status 2 and what is allowed."""
    done = tapwb(*WORDS, "--text-file", long_text, *words)
    assert done.status == 2
    assert said in done.err.strip().splitlines()[-1]
    assert done.out == ""

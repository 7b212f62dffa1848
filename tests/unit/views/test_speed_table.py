"""A comparison of programs as a table: who ran has numbers, who did not is named apart; a file keeps its other text."""

import pytest

from tapwb.core.errors import UsageError
from tapwb.views.speed_table import BEGIN, END, absent_programs, speed_caption, speed_table, write_markdown

RAN = {
    "name": "tap:4", "title": "TAP 4", "decode_tok_per_s": 123.456, "ttft_s": 0.0712, "weights_bytes": 143_000_000,
    "resident_bytes": 626_000_000, "perplexity": 23.04, "latency_p50_ms": {"value": 8.11, "unit": "ms"},
    "latency_p95_ms": {"unavailable": "n too small"},
}  # fmt: skip
PAYLOAD = {
    "rows": [RAN, {"name": "x", "title": "X <b>", "unavailable": "x is not installed: pip install x"}],
    "ratios": [
        {"name": "tap:4 / transformers-bf16, decode", "quantity": "decode", "ratio": 6.25, "ci95": [6.1, 6.4], "n": 6},
        {"name": "tap:4 / transformers-bf16, first token", "quantity": "first token", "ratio": 1.1, "ci95": [1, 2]},
    ],
    "task": {"threads": 1, "turns": 6, "new_tokens": 64, "prompt_tokens": 16},
    "provenance": {"device": "cpu: AMD EPYC", "utc": "2026-11-21T20:00:00+00:00"},
}  # fmt: skip


def test_a_row_holds_the_numbers_and_withholds_what_is_not_known():
    """A percentile of too few values is a dash, the ratio is that of writing."""
    (row,) = speed_table(PAYLOAD, str).rows
    assert row == ("TAP 4", "123.5", "6.25× [6.10, 6.40]", "71", "8.1", "–", "143 MB", "626 MB", "23.04")
    assert absent_programs(PAYLOAD) == {"X <b>": "x is not installed: pip install x"}


def test_the_caption_says_where_and_when():
    """Machine, threads, date, n."""
    said = speed_caption(PAYLOAD, str)
    for part in ("AMD EPYC", "1 thread(s)", "2026-11-21", "6 answers of 64 tokens", "prompts of 16"):
        assert part in said


def test_a_markdown_file_gets_the_table_between_its_marks(tmp_path):
    """Twice gives the same; what stands around the marks stays; without marks nothing is written."""
    file = tmp_path / "README.md"
    file.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    write_markdown(PAYLOAD, file)
    once = file.read_text(encoding="utf-8")
    write_markdown(PAYLOAD, file)
    assert file.read_text(encoding="utf-8") == once
    assert once.startswith("before\n")
    assert once.endswith("after\n")
    assert "old" not in once
    assert "| TAP 4 | 123.5 | 6.25× [6.10, 6.40] |" in once
    assert "- X <b>: x is not installed: pip install x" in once
    other = tmp_path / "other.md"
    other.write_text("no marks", encoding="utf-8")
    with pytest.raises(UsageError, match="does not hold the lines"):
        write_markdown(PAYLOAD, other)
    assert other.read_text(encoding="utf-8") == "no marks"

"""``tapwb bench kernels``: one JSON object for scripts, tables for people, status 1 if a kernel is wrong.

Seed features: S1.15
"""

import pytest

from tapwb.execution import dispatch

WORDS = ("bench", "kernels", "--model", "tiny-random-llama", "--bits", "8,4", "--turns", "3")


def test_it_prints_rows_ratios_a_gate_and_where_they_come_from(tapwb):
    """The keys of the contract."""
    found = tapwb(*WORDS, "--json").json
    assert {"rows", "ratios", "gate", "kernel", "provenance", "model", "n_rows", "threads"} <= found.keys()
    assert all({"name", "ratio", "ci95", "n"} == ratio.keys() for ratio in found["ratios"])
    assert found["gate"]["met"]
    assert found["provenance"]["model_id"] == "tiny-random-llama"


def test_people_see_times_and_why_this_kernel(tapwb):
    """Eight rows at once; the kernel that is used is marked."""
    done = tapwb(*WORDS, "--rows", "8")
    assert done.status == 0, done.err
    assert "rows at once: 8" in done.out
    assert "(used)" in done.out
    assert "Why this kernel" in done.out


def test_a_wrong_kernel_ends_with_status_1_and_no_speed(tapwb, monkeypatch):
    """The line says which kernel; nothing that looks like a time is printed."""
    real = dispatch.linear
    monkeypatch.setattr(dispatch, "linear", lambda x, weight, bits: real(x, weight, bits) + 1)
    done = tapwb(*WORDS)
    assert done.status == 1
    assert "is over its limit: no speed is shown" in done.err.strip().splitlines()[-1]
    assert "GB/s" not in done.out
    assert "0 of 18 met" in done.out or "0 of 9 met" in done.out


@pytest.mark.parametrize(("words", "said"), [(("--bits", "2"), "Give levels of 3 to 8"), (("--bits", "x"), "list")])
def test_a_mistake_is_one_line(tapwb, words, said):
    """Status 2 and what is allowed."""
    done = tapwb(*WORDS, *words)
    assert done.status == 2
    assert said in done.err
    assert done.out == ""

"""``tapwb bench speculation`` and ``tapwb run --speculate``: one JSON object, tables, status 1 if an answer differs.

Seed features: S3.11, S3.16
"""

import pytest

from tapwb.execution.speculative.verify import Verdict, Verifier

WORDS = (
    "bench", "speculation", "--model", "tiny-llama", "--guessers", "self:4", "--depths", "2", "--prompts", "2",
    "--prompt-tokens", "8", "--lengths", "8",
)  # fmt: skip


def test_it_prints_rows_ratios_a_gate_and_where_they_come_from(tapwb):
    """The keys of the contract."""
    found = tapwb(*WORDS, "--json").json
    assert {"rows", "ratios", "gate", "kernel", "provenance", "model", "n_prompts", "threads", "batch"} <= found.keys()
    assert all({"name", "ratio", "ci95", "n"} == ratio.keys() for ratio in found["ratios"])
    assert found["gate"]["met"]
    assert found["provenance"]["model_id"] == "tiny-llama"


def test_people_see_what_a_guess_and_a_verification_cost(tapwb):
    """With the gate and what advanced the model."""
    done = tapwb(*WORDS)
    assert done.status == 0, done.err
    for words in ("accepted", "verify", "95 % interval", "2 of 2 met", "Steps"):
        assert words in done.out, words


def test_a_wrong_answer_ends_with_status_1_and_no_speed(tapwb, monkeypatch):
    """The line says whose."""
    monkeypatch.setattr(
        Verifier,
        "verify",
        lambda _self, logits, proposal: Verdict(len(proposal.token_ids), int(logits[-1].argmin())),
    )
    done = tapwb(*WORDS)
    assert done.status == 1
    assert "answers that differ: self:4, depth 2, 8 tokens: no speed is shown" in done.err.strip().splitlines()[-1]
    assert "tokens/s" not in done.out


@pytest.mark.parametrize(
    ("words", "said"),
    [(("--guessers", "self:9"), "is not a way to speculate"), (("--precision", "4"), "would be the same")],
)
def test_a_mistake_is_one_line(tapwb, words, said):
    """Status 2 and what is allowed."""
    done = tapwb(*WORDS, *words)
    assert done.status == 2
    assert said in done.err
    assert done.out == ""


def test_a_speculative_run_says_how_many_guesses_stood(tapwb):
    """The text of a plain run at 8 bits, which is the precision where none is named."""
    words = ("run", "--model", "tiny-llama", "--prompt", "the cat and the dog", "--max-new-tokens", "24")
    plain = tapwb(*words, "--precision", "8", "--json").json
    found = tapwb(*words, "--speculate", "self", "--json").json
    assert (found["text"], found["token_ids"]) == (plain["text"], plain["token_ids"])
    assert found["metrics"]["precision"]["request"] == "8"
    assert 0 < found["metrics"]["speculation"]["acceptance"] <= 1
    shown = tapwb(*words, "--speculate", "self:5").out
    assert "guesses stood" in shown
    assert "self:5" in shown

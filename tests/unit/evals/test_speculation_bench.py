"""Speculation beside plain decoding: times only where every answer is the plain one, ratios in pairs, costs beside.

Seed features: S3.11, S3.12
"""

import pytest
import torch

from tapwb.core.errors import UsageError
from tapwb.evals import speculation_bench
from tapwb.evals.speculation_bench import SpeculationTask, cut_prompts, measure_speculation
from tapwb.execution.speculative.verify import Verdict, Verifier

MODEL = "tiny-llama"
TEXT = "the cat sat on the mat and the dog sat on the cat, which did not like it at all. " * 12
TASK = SpeculationTask(prompt_tokens=12, lengths=(6, 14), turns=1, batch=2)


@pytest.fixture(scope="module")
def measured():
    """Two guessers, one fixed depth, two lengths, a batch of two."""
    return measure_speculation(MODEL, TEXT, guessers=["self:4", "ngram"], depths=[2], n_prompts=3, task=TASK)


def test_every_guesser_depth_and_length_has_its_row(measured):
    """The depth that the clock chooses comes by itself; answers are exactly as long as asked for."""
    found = {(row["guesser"], row["depth"], row["n_tokens"], row["batch"]) for row in measured.rows}
    assert found == {
        (guesser, depth, n, batch)
        for guesser in ("self:4", "ngram")
        for depth, n, batch in [("2", 6, 1), ("2", 14, 1), ("auto", 6, 1), ("auto", 14, 1), ("auto", 6, 2)]
    }
    for row in measured.rows:
        assert row["wrong_answers"] == 0
        assert row["answers"] == (4 if row["batch"] == 2 else 3)
        assert row["tok_per_s"]["n"] == row["answers"] * (row["n_tokens"] - 1)
        assert row["plain_tok_per_s"]["value"] > 0


def test_costs_and_bytes_say_why(measured):
    """Looking the text up reads nothing; reading four bits is dearer than nothing and cheaper than eight."""
    by_guesser = {row["guesser"]: row for row in measured.rows if row["depth"] == "2" and row["n_tokens"] == 14}
    self_row, ngram_row = by_guesser["self:4"], by_guesser["ngram"]
    assert 0 < self_row["acceptance"]["value"] <= 1
    assert self_row["certificate"]["draft_cost"]["source"] == "measured:wall-clock"
    assert ngram_row["weight_bytes_ratio"] <= 1
    rounds = sum(self_row["depths"].values())
    assert self_row["tokens_per_round"] == pytest.approx(3 * 13 / rounds)
    assert set(self_row["certificate"]["speedup_at"]) == {"50", "200", "500"}


def test_ratios_are_paired_by_prompt(measured):
    """One ratio a row, with an interval and the number of pairs."""
    assert len(measured.ratios) == len(measured.rows)
    for ratio in measured.ratios:
        assert ratio["ci95"][0] <= ratio["ratio"] <= ratio["ci95"][1]
        assert ratio["n"] == (2 if "batch" in ratio["name"] else 3)
    assert measured.gate["met"]
    assert measured.to_json()["kernel"]["name"] in ("native", "grouped")


def test_a_verifier_that_accepts_everything_gets_no_time(monkeypatch):
    """The planted fault: the gate is red, names the guesser, and no speed is given."""

    def gullible(self, logits, proposal):
        return Verdict(len(proposal.token_ids), int(logits[-1].argmax()))

    monkeypatch.setattr(Verifier, "verify", gullible)
    monkeypatch.setattr(speculation_bench, "certify", lambda *_args, **_options: pytest.fail("a speed was computed"))
    task = SpeculationTask(prompt_tokens=12, lengths=(24,))
    found = measure_speculation(MODEL, TEXT, guessers=["self:4"], depths=[4], n_prompts=3, task=task)
    assert not found.gate["met"]
    assert "self:4" in next(check["name"] for check in found.gate["checks"] if not check["met"])
    assert found.ratios == ()
    assert all("the gate is not met" in row["tok_per_s"]["unavailable"] for row in found.rows)


def test_prompts_are_spread_over_the_text_and_do_not_overlap():
    """From the first token to the last."""
    prompts = cut_prompts(torch.arange(100)[None], 4, 25)
    assert [int(prompt[0, 0]) for prompt in prompts] == [0, 25, 50, 75]
    assert prompts[-1][0, -1] == 99
    with pytest.raises(UsageError, match="holds no 5 prompts of 25 tokens"):
        cut_prompts(torch.arange(100)[None], 5, 25)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"guessers": []}, "Name at least one"),
        ({"guessers": ["off"]}, "Name at least one"),
        ({"n_prompts": 1}, "at least 2 prompts"),
        ({"task": SpeculationTask(lengths=(1,))}, "answers of at least 2 tokens"),
        ({"task": SpeculationTask(batch=1)}, "batches of 2 or more"),
        ({"guessers": ["self:4"], "precision": 4}, "draft and target would be the same"),
        ({"depths": [9]}, r"Give 0 \(off\) to 6"),
    ],
    ids=str,
)
def test_what_cannot_be_measured_is_refused(options, reason):
    """Before a model is loaded, with what is allowed."""
    with pytest.raises(UsageError, match=reason):
        measure_speculation(MODEL, TEXT, **options)

"""An engine's speculative runs: the same text, honest metrics, and a reason wherever it cannot be had.

Seed features: S3.1, S3.8
"""

import itertools

import pytest

from tapwb.core.errors import Cancelled, UsageError
from tapwb.core.jobs import NO_PROGRESS
from tapwb.core.reading import Reading, Unavailable
from tapwb.core.speculation_spec import parse_speculation
from tapwb.engine import TAPConfig, TAPEngine
from tapwb.engine.speculation import guesser_for
from tapwb.execution.sampling import Sampling

PROMPT = "the cat and the dog and the cat and the"
N_NEW = 40


@pytest.fixture(scope="module")
def engine():
    """A trained small model, so that guesses stand now and then."""
    engine = TAPEngine(TAPConfig(precision_levels=(8,), mean_bits=8, time_reference=False))
    engine.load_model("tiny-llama", levels=(4, 5, 8))
    return engine


@pytest.fixture(scope="module")
def plain(engine):
    """The answer one token at a time."""
    return engine.trace(PROMPT, N_NEW, precision="8")


@pytest.mark.parametrize("speculate", ["self", "self:5", "ngram", "draft:tiny-qwen2"])
def test_the_text_is_that_of_plain_decoding(engine, plain, speculate):
    """Text, tokens, positions and bits; the metrics say who guessed and how many guesses stood."""
    text, trace, metrics = engine.trace(PROMPT, N_NEW, precision="8", speculate=speculate)
    assert (text, trace.token_ids, trace.token_bits) == (plain[0], plain[1].token_ids, plain[1].token_bits)
    assert len(trace.step_s) == len(trace.token_ids) - 1
    assert len(trace.entropy_nats) == len(trace.token_ids)
    found = metrics["speculation"]
    assert found["proposer"].startswith(speculate)
    assert 0 <= found["accepted"] <= found["drafted"]
    assert found["drafted"] > 0
    assert found["acceptance"].value == pytest.approx(found["accepted"] / found["drafted"])
    assert metrics["finish_reason"] == plain[2]["finish_reason"]


def test_the_work_of_guesses_is_counted(engine, plain):
    """More bytes and rows than a plain run where guesses are read with the weights; none hidden."""
    _, trace, metrics = engine.trace(PROMPT, N_NEW, precision="8", speculate="self:4")
    found = metrics["speculation"]
    n_rounds, n_drafted = found["rounds"], found["drafted"]
    high, low = engine.nested.bytes_read(8), engine.nested.bytes_read(4)
    assert trace.weight_bytes_read == pytest.approx(high * (1 + n_rounds) + low * n_drafted)
    assert trace.extra_rows == 2 * n_drafted + n_rounds - len(trace.step_s)
    assert plain[1].extra_rows == 0
    assert isinstance(plain[2]["speculation"], Unavailable)


def test_what_cannot_pay_is_turned_off_with_a_note(engine):
    """A draft as dear as its target: after the first rounds the run is plain, and says so."""
    _, trace, metrics = engine.trace(PROMPT, 96, precision="8", speculate="draft:tiny-qwen2")
    assert metrics["speculation"]["depths"]["0"] > 48
    assert any(note.startswith("Speculation was turned off for ") for note in trace.notes)


def test_sampling_speculates_too(engine):
    """A seed gives the same text again; the metrics say that tokens were sampled."""
    runs = [engine.trace(PROMPT, 24, precision="8", speculate="self", temperature=0.8, seed=3) for _ in range(2)]
    assert not runs[0][2]["speculation"]["greedy"]
    assert len(runs[0][1].token_ids) == 24


def test_sixteen_bits_can_look_the_text_up(engine):
    """The weights as they were loaded: n-grams need no lower level."""
    text, _, _ = engine.trace(PROMPT, 12, precision="16")
    again, _, metrics = engine.trace(PROMPT, 12, precision="16", speculate="ngram")
    assert again == text
    assert metrics["speculation"]["target_bits"] == 16


def test_every_token_and_round_is_told_and_a_cancel_keeps_the_text(engine, plain):
    """Tokens one by one, guesses that fell never; a cancelled run returns what stood."""
    tokens, rounds = [], []
    engine.generate(
        PROMPT, N_NEW, precision="8", speculate="self", on_token=tokens.append,
        on_round=lambda one, record: rounds.append((one, record.n_tokens)),
    )  # fmt: skip
    assert tuple(event.token_id for event in tokens) == plain[1].token_ids
    assert [event.index for event in tokens] == list(range(len(tokens)))
    sizes = [len(one.token_ids) for one, _ in rounds]
    assert [n for _, n in rounds] == list(itertools.accumulate(sizes))

    class Stop:
        seen = 0

        def stage(self, name, total=None, unit=""):
            self.seen = 0

        def advance(self, steps=1):
            self.seen += steps
            if self.seen == 7:
                raise Cancelled

        def check_cancelled(self):
            pass

    _, trace, metrics = engine.trace("Hi", N_NEW, precision="8", speculate="self", progress=Stop())
    assert metrics["finish_reason"] == "cancelled"
    assert len(trace.token_ids) == 7


def test_a_steady_speedup_is_measured_against_plain_steps_of_the_same_run(engine):
    """A reading with an interval and the number of rounds; never a quotient of the run's own parts."""
    _, _, metrics = engine.trace(PROMPT, 96, precision="8", speculate="ngram")
    speedup = metrics["speculation"]["speedup"]
    assert isinstance(speedup, Reading)
    assert speedup.source == "measured:wall-clock"
    assert speedup.ci95[0] <= speedup.value <= speedup.ci95[1]
    assert set(metrics["speculation"]["certificate"]["speedup_at"]) == {"50", "200", "500"}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"precision": "adaptive:5.5"}, "gives them different ones. Choose precision 8"),
        ({"precision": "16"}, "16 bits are the weights as they were loaded"),
        ({"precision": "4"}, "draft and target would be the same"),
        ({"kv": 8}, "Give the cache 16 bits"),
        ({"speculate": "draft:tiny-llama"}, "is the target itself"),
        ({"speculate": "draft:tiny-random-llama"}, "has another tokenizer"),
        ({"speculate": "self:8"}, "is not a way to speculate"),
        ({"speculate": "draft:"}, "is not a way to speculate"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(engine, options, reason):
    """Before anything is generated, with what to give instead."""
    settings = {"precision": "8", "speculate": "self", "max_new_tokens": 8} | options
    with pytest.raises(UsageError, match=reason):
        engine.generate("Hi", **settings)


def test_a_draft_must_see_as_far_as_the_answer_goes(engine):
    """With both numbers."""
    settings = engine.decode_settings(9000, Sampling())
    with pytest.raises(UsageError, match=r"prompt and answer are 9003\. Ask for fewer new tokens"):
        guesser_for(engine, parse_speculation("draft:tiny-qwen2"), 8, settings, 3, NO_PROGRESS)


def test_rounded_activations_are_refused():
    """Their rounding depends on what is in the pass."""
    engine = TAPEngine(TAPConfig(time_reference=False, activations="int8"))
    engine.load_model("tiny-random-llama")
    with pytest.raises(UsageError, match="Use activations 16"):
        engine.generate("Hi", 4, precision="8", speculate="self")


@pytest.mark.parametrize("text", ["off", "self:4", "self:6", "ngram", "draft:some/model"])
def test_the_grammar_gives_itself_back(text):
    """What is shown can be typed again."""
    assert str(parse_speculation(text)) == text

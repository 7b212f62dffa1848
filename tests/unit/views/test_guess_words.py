"""How speculation went, in the reader's language and without a number that was not measured."""

import re

from tapwb.core.reading import Reading
from tapwb.engine.shelf import RunResult
from tapwb.execution.speculative.depth import DepthController
from tapwb.execution.speculative.records import Round, SpeculationRecord
from tapwb.metrics.speculation import speculation_metrics
from tapwb.views.borrowed_words import note_words
from tapwb.views.guess_words import guess_words
from tapwb.views.i18n import translator
from tapwb.views.run_facts import run_facts

EN, TH = translator("en"), translator("th")
THAI = re.compile("[\u0e01-\u0e5b]")


def record(*rounds):
    """A record of (drafted, accepted) rounds of a second each."""
    made = tuple(
        Round((1,) * (1 + stood), drafted, stood, 0.5 * bool(drafted), 1.0, (0.0,)) for drafted, stood in rounds
    )
    return SpeculationRecord("self:4", 8, made, 1.0, 0.0, True)


def result(one):
    """A run that ended with this record."""
    return RunResult("8", "p", "t", {"speculation": speculation_metrics(one)})


def test_guesses_are_counted_while_the_answer_is_written():
    """No certificate before the end."""
    assert guess_words(record((2, 1), (3, 3)), None, EN) == "self:4: 4 of 5 guesses stood (80%), checked at 8 bits."
    assert guess_words(None, None, EN) == ""


def test_the_certificate_comes_with_its_interval():
    """Speed, interval, rounds, and what an answer of 200 tokens gains."""
    one = record(*[(0, 0)] * 4, *[(2, 2)] * 20)
    said = guess_words(one, result(one), EN)
    assert re.search(r"Certificate: 1\.\d\d times as fast .*95 % interval \d\.\d\d to \d\.\d\d, 24 rounds", said)
    assert "answer of 200 tokens" in said


def test_without_a_baseline_nothing_is_claimed():
    """No plain step, no speedup; no guess, no share."""
    short = record((2, 2), (2, 1))
    assert guess_words(short, result(short), EN).endswith("Too short to say what it brought.")
    assert guess_words(record((0, 0)), None, EN).startswith("No token was guessed")


def test_a_thai_reader_reads_thai():
    """The line and the note that speculation was turned off."""
    one = record(*[(0, 0)] * 4, *[(2, 2)] * 20)
    assert len(THAI.findall(guess_words(one, result(one), TH))) > 40
    controller = DepthController()
    for _ in range(40):
        depth = controller.next_depth()
        controller.observe(depth, 0, float(depth), 1.0 + depth)
    (note,) = controller.notes()
    assert note_words(note, {}, EN) == note
    assert THAI.search(note_words(note, {}, TH))


def test_the_lines_of_a_run_say_how_many_stood():
    """Live metrics and those of a saved run; a run without guesses has no such line."""
    one = record(*[(0, 0)] * 4, *[(2, 2)] * 20)
    live = {"speculation": speculation_metrics(one)}
    saved = {"speculation": {"proposer": "self:4", "rounds": 24, "accepted": 40, "drafted": 40, "speedup": 1.4,
                             "speedup_source": "measured:wall-clock", "speedup_ci95": [1.2, 1.6]}}  # fmt: skip
    rest = {
        "precision": {"mean_bits": 8.0, "bits_histogram": {"8": 3}, "energy_saved_pct": Reading(1.0, "%", "est")},
        "memory": {"weights_bytes": 1, "baseline_weights_bytes": 2, "kv_bytes": 3},
        "speed": {"ttft_s": 0.1, "decode_tok_per_s": Reading(3.0, "token/s", "measured:wall-clock")},
        "energy": {"total_j": Reading(1.0, "J", "estimated:x")},
    }  # fmt: skip
    lines = run_facts(rest | saved)
    assert lines["speculation"] == "self:4, 24 rounds: 40 of 40 guesses stood"
    assert lines["speedup"] == "1.40x (measured:wall-clock), 95 % interval 1.20 to 1.60"
    assert "95 % interval" in run_facts(rest | live)["speedup"]
    assert "speculation" not in run_facts(rest)

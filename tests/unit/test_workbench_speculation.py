"""Speculation on the workbench: chosen like any input, seen while it works, at one level whatever the planner.

Seed features: S3.15
"""

import pytest

from tapwb.core.jobs import JobState
from tapwb.views.guess_words import guess_words
from tapwb.views.i18n import translator
from tapwb.views.panel_app.address import read_address, share_query
from tapwb.workbench import EngineShelf, Workbench

WAIT_S = 120
EN = translator("en")


@pytest.fixture(scope="module")
def workbench():
    """A small trained model; no 16-bit answer."""
    workbench = Workbench(
        shelf=EngineShelf(), model_id="tiny-llama", prompt="the cat and the dog and the", max_new_tokens=40,
        with_reference=False,
    )  # fmt: skip
    workbench.load().wait(WAIT_S)
    return workbench


def ran(workbench, **inputs):
    """The result of a run with these inputs."""
    workbench.param.update(**inputs)
    job = workbench.run()
    job.wait(WAIT_S)
    assert job.state is JobState.DONE, workbench.error
    return workbench.run_result


def test_the_answer_is_that_of_eight_bits_and_guesses_are_seen_while_it_is_written(workbench):
    """A plan gives way to one level; the record on the screen grows and ends with the whole answer."""
    plain = ran(workbench, planner="uniform", mean_bits=8, speculate="off")
    assert workbench.guesses is None
    seen = []
    watcher = workbench.param.watch(lambda event: seen.append(event.new), ["guesses"])
    found = ran(workbench, planner="adaptive", mean_bits=5.5, speculate="self")
    workbench.param.unwatch(watcher)
    assert (found.text, found.precision) == (plain.text, "8")
    sizes = [record.n_tokens for record in seen if record is not None]
    assert sizes == sorted(sizes)
    assert workbench.guesses.n_tokens == found.metrics["speed"]["n_new_tokens"] - 1
    said = guess_words(workbench.guesses, found, EN)
    assert said.startswith("self:4: ")
    assert "checked at 8 bits." in said


def test_a_chosen_level_is_kept(workbench):
    """Six bits are one level already."""
    found = ran(workbench, planner="uniform", mean_bits=6, speculate="ngram")
    assert found.precision == "6"
    assert found.metrics["speculation"]["target_bits"] == 6


def test_turning_it_off_clears_the_line(workbench):
    """Nothing of the last run stays on the screen."""
    ran(workbench, speculate="off")
    assert guess_words(workbench.guesses, workbench.run_result, EN) == ""


def test_the_choice_is_in_the_address(workbench):
    """Whoever opens the link gets it; an unknown one is refused."""
    workbench.speculate = "ngram"
    assert "speculate=ngram" in share_query(workbench)
    other = Workbench(shelf=EngineShelf())
    assert read_address(other, {"speculate": [b"self"]}) == []
    assert other.speculate == "self"
    assert read_address(other, {"speculate": [b"draft:x"]}) == ["speculate"]

"""The headless controller: one state, jobs that change it, models shared by everybody."""

import subprocess
import sys
import threading

import pytest

from tapwb.core.jobs import NO_PROGRESS, JobState
from tapwb.workbench import RUNNER, SAMPLE_PROMPT, EngineShelf, Workbench

MODEL = "tiny-random-llama"
WAIT_S = 120


@pytest.fixture(scope="module")
def shelf() -> EngineShelf:
    """A shelf of this module's own."""
    return EngineShelf()


@pytest.fixture
def loaded(shelf: EngineShelf) -> Workbench:
    """A workbench with a loaded model and a scored prompt."""
    workbench = Workbench(shelf=shelf, model_id=MODEL, prompt="Hello, สวัสดี!", max_new_tokens=5)
    workbench.load().wait(WAIT_S)
    return workbench


def test_loading_scores_and_plans(loaded: Workbench) -> None:
    """After one job there is a card, scores of every signal, and a plan at the budget."""
    assert loaded.card.anatomy.n_layers == 2
    assert loaded.card.weights_bytes.source.startswith("measured:")
    assert {"entropy", "attention", "position"} <= set(loaded.scored.signals)
    assert loaded.plan.mean_bits == pytest.approx(5.5, abs=0.1)
    assert loaded.scored.scored.facts.logits is None


def test_a_run_gives_two_texts_and_their_costs(loaded: Workbench) -> None:
    """The chosen precision first, the 16-bit text after it; a second run finds the reference again."""
    loaded.run().wait(WAIT_S)
    assert loaded.run_result.precision == "adaptive:5.5:entropy"
    assert loaded.reference_result.precision == "16"
    assert loaded.run_text == loaded.run_result.text
    first = loaded.reference_result
    loaded.run().wait(WAIT_S)
    assert loaded.reference_result is first


@pytest.mark.parametrize("planner", ["uniform", "random", "shuffled", "oracle", "threshold"])
def test_every_planner_of_the_sidebar_plans(loaded: Workbench, planner: str) -> None:
    """The oracle scores again by itself; the others use what is there."""
    loaded.planner = planner
    loaded.make_plan().wait(WAIT_S)
    assert loaded.plan.n_tokens == loaded.scored.scored.token_ids.shape[1]
    assert loaded.error == ""


def test_an_error_stays_until_it_is_dismissed(shelf: EngineShelf) -> None:
    """An unknown model ends the job with one line, which the user reads and dismisses."""
    workbench = Workbench(shelf=shelf, model_id="./no-such-folder")
    job = workbench.load()
    with pytest.raises(Exception, match="no-such-folder"):
        job.wait(WAIT_S)
    assert "no-such-folder" in workbench.error
    workbench.dismiss_error()
    assert workbench.error == ""


def test_an_empty_prompt_is_refused(loaded: Workbench) -> None:
    """Blanks are no prompt."""
    loaded.prompt = "  \n"
    with pytest.raises(Exception, match="prompt is empty"):
        loaded.score().wait(WAIT_S)


def test_cancel_stops_a_waiting_job(shelf: EngineShelf) -> None:
    """A job behind another never starts once it is cancelled."""
    gate = threading.Event()
    blocker = RUNNER.submit("block", lambda job: gate.wait(WAIT_S), device="device")
    workbench = Workbench(shelf=shelf, model_id=MODEL)
    job = workbench.load()
    assert workbench.queue_position() >= 1
    workbench.cancel()
    gate.set()
    blocker.wait(WAIT_S)
    with pytest.raises(Exception, match="cancelled"):
        job.wait(WAIT_S)
    assert job.state is JobState.CANCELLED
    assert workbench.error == ""


def test_a_model_is_loaded_once_for_everybody(shelf: EngineShelf, loaded: Workbench) -> None:
    """A second user adopts the card and the scores without a job."""
    second = Workbench(shelf=shelf, model_id=MODEL, prompt=loaded.prompt)
    assert second.adopt()
    assert second.card is loaded.card
    assert second.scored is loaded.scored
    assert second.job is None
    assert not second.adopt()


def test_the_shelf_gives_up_the_least_recently_used() -> None:
    """With room for one, the second model takes the place of the first."""
    shelf = EngineShelf(capacity=1)
    shelf.engine("tiny-random-llama", NO_PROGRESS)
    engine = shelf.engine("tiny-random-gpt2", NO_PROGRESS)
    assert shelf.loaded() == ["tiny-random-gpt2"]
    assert shelf.card("tiny-random-llama") is None
    assert engine.loaded is not None


def test_changing_the_prompt_makes_scores_stale(loaded: Workbench) -> None:
    """The screen can say that what it shows is of another text."""
    assert not loaded.is_stale
    loaded.prompt += " more"
    assert loaded.is_stale


def test_the_controller_imports_no_screen() -> None:
    """Importing it loads neither Panel nor bokeh, anywidget or transformers."""
    code = (
        "import sys, tapwb.workbench; "
        "print([m for m in ('panel','bokeh','anywidget','transformers','plotly') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
    assert SAMPLE_PROMPT


def test_a_use_case_sets_the_inputs_it_stands_for():
    """The edge preset: fewer bits, a 4-bit cache, no 16-bit answer beside it."""
    workbench = Workbench(model_id="tiny-random-llama")
    workbench.apply_preset("edge")
    assert (workbench.precision, workbench.kv, workbench.with_reference) == ("adaptive:4.5:entropy", "4", False)
    workbench.apply_preset("datacenter")
    assert (workbench.precision, workbench.kv, workbench.with_reference) == ("8", "8", True)

"""The quality check in the workbench: a job of its own, after a run if asked for, and its words on the Run page."""

import dataclasses

import pytest

from tapwb.core.reading import Reading, Unavailable
from tapwb.engine.shelf import EngineShelf
from tapwb.evals.quality_verdict import QualityCheck
from tapwb.views.i18n import translator
from tapwb.views.panel_app.pages.run import RunPage
from tapwb.views.panel_app.scope import Scope
from tapwb.workbench import Workbench

WAIT_S = 120
PROMPT = "The river bends twice before it meets the old stone bridge, and nobody remembers who built either of them."


@pytest.fixture(scope="module")
def workbench() -> Workbench:
    """A workbench with a loaded model and one run, followed by a check."""
    bench = Workbench(
        shelf=EngineShelf(), model_id="tiny-random-llama", prompt=PROMPT, max_new_tokens=4, with_guard=True, guard_s=20
    )
    bench.load().wait(WAIT_S)
    bench.run().wait(WAIT_S)
    return bench


def test_a_run_is_followed_by_a_check_of_what_was_run(workbench):
    """On the prompt and the 16-bit answer; within its time."""
    check = workbench.quality
    assert isinstance(check, QualityCheck)
    assert check.asked.precision == workbench.run_result.precision
    assert check.n_text_tokens >= len(PROMPT)
    assert isinstance(check.asked.perplexity_ratio, Reading)


def test_the_check_is_a_job_of_its_own_and_a_new_run_forgets_it(workbench):
    """Named for the status bar; without the switch a run is not checked."""
    job = workbench.check_quality()
    job.wait(WAIT_S)
    assert (job.name, job.stages[-1].name, job.stages[-1].unit) == ("check quality", "check quality", "second") or any(
        stage.name == "check quality" for stage in job.stages
    )
    assert workbench.quality is not None
    workbench.with_guard = False
    workbench.run().wait(WAIT_S)
    assert workbench.quality is None
    workbench.with_guard = True


@pytest.mark.parametrize(("language", "safe_word"), [("en", "is safe"), ("th", "ปลอดภัย")])
def test_the_run_page_shows_the_verdict_as_text(workbench, language, safe_word):
    """What to press before a check, the verdict after it; the button needs a run and no job under way."""
    page = RunPage(Scope(workbench, translator(language)))
    assert not page.check.disabled
    workbench.quality = None
    before = page.quality.text
    assert before
    check = _check(workbench)
    workbench.quality = check
    assert safe_word in page.quality.text
    assert page.quality.text != before
    hostile = dataclasses.replace(check.asked, precision="<img onerror=x>", verdict="gibberish")
    workbench.quality = dataclasses.replace(check, asked=hostile, first_safe=Unavailable("none"))
    assert "<img onerror=x>" in page.quality.text
    workbench.quality = None


def _check(workbench: Workbench) -> QualityCheck:
    workbench.check_quality().wait(WAIT_S)
    check = workbench.quality
    return dataclasses.replace(check, asked=dataclasses.replace(check.asked, verdict="safe"))

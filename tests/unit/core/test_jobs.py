"""Jobs: stages, remaining time, cancel, errors that stay, one worker per device."""

import threading
import time

import pytest

from tapwb.core.errors import Cancelled, ModelNotFound
from tapwb.core.jobs import NO_PROGRESS, Job, JobRunner, JobState, Stage


@pytest.fixture
def runner():
    """A runner that is shut down afterwards."""
    runner = JobRunner()
    yield runner
    runner.shutdown()


def test_a_job_returns_its_result_and_counts_its_steps(runner):
    """The watcher sees the stages the function named."""

    def work(job: Job) -> int:
        job.stage("add", total=4, unit="step")
        for _ in range(4):
            job.advance()
        return 10

    job = runner.submit("sum", work)
    assert job.wait(5) == 10
    assert job.state is JobState.DONE
    assert [(s.name, s.done, s.fraction) for s in job.stages] == [("add", 4, 1.0)]


def test_remaining_time_follows_the_pace():
    """A quarter done after two seconds leaves six."""
    stage = Stage("read", total=8, done=2, started_s=100.0)
    assert stage.eta_s(now_s=102.0) == pytest.approx(6.0)
    assert Stage("read", total=8).eta_s() is None
    assert Stage("read").fraction is None


def test_cancel_stops_a_running_job_at_its_next_report(runner):
    """The function is told by an exception, not killed."""
    running, cleaned = threading.Event(), threading.Event()

    def work(job: Job) -> None:
        try:
            while True:
                running.set()
                time.sleep(0.005)
                job.advance()
        finally:
            cleaned.set()

    job = runner.submit("endless", work)
    assert running.wait(5)
    job.cancel()
    with pytest.raises(Cancelled):
        job.wait(5)
    assert job.state is JobState.CANCELLED
    assert cleaned.is_set()


def test_a_queued_job_that_is_cancelled_never_starts(runner):
    """Cancel works while another job holds the device."""
    gate, ran = threading.Event(), threading.Event()
    first = runner.submit("first", lambda job: gate.wait(5))
    second = runner.submit("second", lambda job: ran.set())
    second.cancel()
    gate.set()
    first.wait(5)
    with pytest.raises(Cancelled):
        second.wait(5)
    assert not ran.is_set()


def test_an_error_stays_until_it_is_dismissed(runner):
    """The status bar can show it for as long as the user needs."""

    def work(job: Job) -> None:
        raise ModelNotFound("no model 'x'. Try 'smollm2-135m'.")

    job = runner.submit("load", work)
    with pytest.raises(ModelNotFound):
        job.wait(5)
    assert job.state is JobState.ERROR
    assert job.describe_error() == "no model 'x'. Try 'smollm2-135m'."
    job.dismiss_error()
    assert job.describe_error() == ""


def test_a_foreign_error_keeps_its_type_for_the_reader(runner):
    """A bug in a library is shown, not swallowed."""
    job = runner.submit("divide", lambda job: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        job.wait(5)
    assert job.describe_error() == "ZeroDivisionError: division by zero"


def test_one_device_runs_one_job_at_a_time_and_io_runs_side_by_side(runner):
    """Two users never load two models into one card at once, but two downloads do not wait for each other."""
    active, most = 0, {"cpu": 0, "io": 0}
    lock = threading.Lock()

    def work(kind: str):
        def run(job: Job) -> None:
            nonlocal active
            with lock:
                active += 1
                most[kind] = max(most[kind], active)
            time.sleep(0.05)
            with lock:
                active -= 1

        return run

    for kind in ("cpu", "io"):
        for job in [runner.submit(kind, work(kind), device=kind) for _ in range(3)]:
            job.wait(5)
    assert most["cpu"] == 1
    assert most["io"] > 1


def test_watchers_hear_of_every_change_of_state():
    """Queued, running and done are each told once at least, from the working thread."""
    seen: list[JobState] = []
    runner = JobRunner(on_change=lambda job: seen.append(job.state))
    runner.submit("quick", lambda job: None).wait(5)
    runner.shutdown()
    assert seen[0] is JobState.RUNNING
    assert seen[-1] is JobState.DONE


def test_the_silent_progress_accepts_everything():
    """Library functions can report without knowing whether anyone listens."""
    NO_PROGRESS.stage("x", total=3)
    NO_PROGRESS.advance(2)
    NO_PROGRESS.check_cancelled()

"""Energy of windows: arithmetic, honesty about what could not be read, and what is never added.

Seed features: S1.23
"""

import math

import pytest

from tapwb.core.errors import UnknownName, UsageError
from tapwb.core.reading import Reading, Unavailable
from tapwb.monitors import EnergyMonitor, Work, estimate_energy_j
from tapwb.monitors.energy_probes.estimate import EstimateProbe
from tapwb.monitors.energy_probes.replay import ReplayProbe, open_replay


class Clock:
    """A clock that a test moves by hand."""

    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        """The time."""
        return self.now_s

    def wait(self, seconds):
        """Let time pass."""
        self.now_s += seconds


def card(power_w=200.0, seconds=60, label="card"):
    """A counter that ticks every 0.1 s at constant power."""
    ticks = range(round(seconds * 10) + 1)
    return ReplayProbe([tick / 10 for tick in ticks], [500 + power_w * tick / 10 for tick in ticks], label)


@pytest.fixture
def clock():
    """A clock at some moment."""
    return Clock()


def test_a_window_is_the_difference_of_the_counter_at_its_ends(clock):
    """5 s at 200 W are 1000 J, 200 W, with the source of the counter."""
    monitor = EnergyMonitor([card()], clock=clock)
    monitor.begin()
    clock.wait(5)
    reading = monitor.end()
    assert reading.total_j.value == pytest.approx(1000)
    assert reading.mean_power_w.value == pytest.approx(200)
    assert reading.duration_s == 5
    assert reading.source == reading.total_j.source == "measured:replay-card"
    assert not reading.warnings


def test_uncertainty_is_that_of_two_missed_ticks(clock):
    """Each end lies anywhere within an update interval, so the error is power x interval / sqrt(6)."""
    monitor = EnergyMonitor([card()], clock=clock)
    monitor.begin()
    clock.wait(5)
    assert monitor.end().total_j.uncertainty == pytest.approx(200 * 0.1 / math.sqrt(6))


def test_a_window_shorter_than_an_update_has_no_reading(clock):
    """A counter that moves every 100 ms says nothing about 40 ms, least of all zero."""
    monitor = EnergyMonitor([card()], clock=clock)
    monitor.begin()
    clock.wait(0.04)
    reading = monitor.end()
    assert isinstance(reading.total_j, Unavailable)
    assert "0.04 s is shorter" in reading.total_j.reason
    assert reading.source == "unavailable"


def test_a_short_but_readable_window_carries_a_warning(clock):
    """Half a second can be read, and the reader is told that it is short."""
    monitor = EnergyMonitor([card()], clock=clock)
    monitor.begin()
    clock.wait(0.5)
    reading = monitor.end()
    assert reading.total_j.value == pytest.approx(100)
    assert "short for an energy counter" in reading.warnings[0]


def test_idle_energy_is_subtracted_only_after_it_was_measured(clock):
    """Total and idle-subtracted stand side by side; an unknown idle power is not taken for zero."""
    idle_then_busy = ReplayProbe([0, 1, 2, 3, 4], [0, 50, 100, 400, 700], "card")
    monitor = EnergyMonitor([idle_then_busy], clock=clock)
    monitor.begin("all")
    assert isinstance(monitor.probes[0].idle_power_w, Unavailable)
    idle = monitor.measure_idle(2.0, sleep=clock.wait)
    assert idle["replay"].value == pytest.approx(50)
    monitor.begin()
    clock.wait(2)
    reading = monitor.end()
    assert reading.total_j.value == pytest.approx(600)
    assert reading.idle_subtracted_j.value == pytest.approx(500)
    assert monitor.end("all").total_j.value == pytest.approx(700)


def test_without_an_idle_measurement_the_subtracted_energy_says_what_to_do(clock):
    """The reason names the call that makes it available."""
    monitor = EnergyMonitor([card()], clock=clock)
    monitor.begin()
    clock.wait(3)
    assert "measure_idle()" in monitor.end().idle_subtracted_j.reason


def test_the_estimate_is_labelled_and_follows_its_formula(clock):
    """Busy power x time + traffic + arithmetic, with the documented constants, and never 'measured'."""
    monitor = EnergyMonitor(["estimate"], clock=clock)
    monitor.begin()
    clock.wait(2)
    reading = monitor.end(bytes_moved=10**9, operations=10**10)
    assert reading.source == "estimated:bytes-and-ops"
    assert not reading.total_j.is_measured
    assert reading.total_j.value == pytest.approx(42.5 * 2 + 8e9 * 20e-12 + 1e10 * 2.3e-12)
    assert reading.idle_subtracted_j.value == pytest.approx(reading.total_j.value - 8.5 * 2)
    assert reading.total_j.value == pytest.approx(estimate_energy_j(10**9, 10**10, 2).value)


def test_an_estimate_without_reported_work_is_unavailable(clock):
    """Time alone is no estimate of a run."""
    monitor = EnergyMonitor(["estimate"], clock=clock)
    monitor.begin()
    clock.wait(2)
    assert "add_work()" in monitor.end().total_j.reason


def test_estimated_joules_are_never_added_to_measured_ones(clock):
    """With both at hand the total is the counter's alone; the estimate stays beside it."""
    monitor = EnergyMonitor([card(), EstimateProbe("cpu")], clock=clock)
    monitor.begin()
    clock.wait(5)
    reading = monitor.end(bytes_moved=10**12, operations=10**12)
    assert reading.total_j.value == pytest.approx(1000)
    assert "estimated" not in reading.source
    assert reading.parts["estimate"].value > 0


def test_counters_of_different_parts_add_up_by_name(clock):
    """Card plus processor is one measured total whose source names both."""
    processor = card(40, label="cpu")
    processor.name = "cpu"
    monitor = EnergyMonitor([card(), processor], clock=clock)
    monitor.begin()
    clock.wait(5)
    reading = monitor.end()
    assert reading.total_j.value == pytest.approx(1200)
    assert reading.source == "measured:replay-card+replay-cpu"


def test_one_counter_that_fails_leaves_no_partial_total(clock):
    """A sum without one of its parts would look like a saving."""
    short = card(40, seconds=1, label="cpu")
    short.name = "cpu"
    monitor = EnergyMonitor([card(), short], clock=clock)
    monitor.begin()
    clock.wait(5)
    reading = monitor.end()
    assert isinstance(reading.total_j, Unavailable)
    assert "recording ends" in reading.total_j.reason
    assert isinstance(reading.parts["replay"], Reading)


def test_a_counter_that_stands_still_is_not_zero_joules(clock):
    """No machine runs on nothing."""
    monitor = EnergyMonitor([ReplayProbe([0, 10], [7, 7], "stuck")], clock=clock)
    monitor.begin()
    clock.wait(10)
    assert "did not advance" in monitor.end().total_j.reason


def test_the_default_monitor_on_a_cpu_always_has_a_reading():
    """Without a counter there is still the estimate, and every missing instrument says why."""
    with EnergyMonitor() as monitor:
        monitor.add_work(bytes_moved=1000, operations=1000)
    assert monitor.reading.total_j.value > 0
    assert all(why.reason for why in monitor.unavailable.values())
    if "rapl" in monitor.unavailable:
        assert monitor.reading.source == "estimated:bytes-and-ops"
    monitor.close()


def test_on_a_card_without_its_counter_the_processor_does_not_stand_in(monkeypatch):
    """RAPL alone would be read as the energy of a run that happened on the card."""
    from tapwb.monitors import probes

    rapl = card(40, label="cpu")
    rapl.name = "rapl"
    entries = probes._entries
    kept = entries["rapl"]
    monkeypatch.setitem(entries, "rapl", type(kept)("rapl", lambda: rapl, kept.summary, kept.metadata))
    for name in ("nvml", "amd"):
        entry = entries[name]
        monkeypatch.setitem(
            entries, name, type(entry)(name, lambda **_: Unavailable("no driver"), entry.summary, entry.metadata)
        )
    assert [probe.name for probe in EnergyMonitor(device="cuda").probes] == ["estimate"]
    assert "whole machine" in EnergyMonitor(device="cuda").unavailable["rapl"].reason
    assert [probe.name for probe in EnergyMonitor(device="cpu").probes] == ["rapl", "estimate"]


def test_the_window_is_closed_when_the_code_in_it_fails(clock):
    """The energy of a failed run was spent all the same."""
    monitor = EnergyMonitor([card()], clock=clock)

    def run():
        clock.wait(3)
        return 1 / 0

    with pytest.raises(ZeroDivisionError), monitor:
        run()
    assert monitor.reading.total_j.value == pytest.approx(600)


@pytest.mark.parametrize(
    ("mistake", "advice"),
    [
        (lambda monitor: monitor.end("never"), "begin('never') first"),
        (lambda monitor: (monitor.begin(), monitor.begin()), "already open"),
        (lambda monitor: monitor.add_work(-1), "at least 0"),
    ],
)
def test_wrong_use_is_told_in_one_line(mistake, advice, clock):
    """What came, and what to do instead."""
    with pytest.raises(UsageError) as told:
        mistake(EnergyMonitor([card()], clock=clock))
    assert advice in str(told.value)


def test_an_unknown_probe_gets_a_suggestion():
    """The registry knows the nearest name."""
    with pytest.raises(UnknownName, match="nvml"):
        EnergyMonitor(["nvmll"])


def test_a_reading_goes_to_json_with_reasons(clock):
    """Missing parts are reasons, never null."""
    monitor = EnergyMonitor([card()], clock=clock)
    monitor.begin()
    clock.wait(3)
    out = monitor.end().to_json()
    assert out["total_j"]["value"] == pytest.approx(600)
    assert "unavailable" in out["idle_subtracted_j"]


def test_less_traffic_at_the_same_time_saves_little_by_the_estimate():
    """The model shows what is known: halving bytes without halving time hardly saves energy."""
    full = estimate_energy_j(13_200_000_000, 13_000_000_000, 1 / 290, "cuda")
    half_bytes = estimate_energy_j(6_600_000_000, 13_000_000_000, 1 / 290, "cuda")
    half_both = estimate_energy_j(6_600_000_000, 13_000_000_000, 0.5 / 290, "cuda")
    assert full.value == pytest.approx(1.4, rel=0.05)
    assert 0.15 < 1 - half_bytes.value / full.value < 0.25
    assert 0.45 < 1 - half_both.value / full.value < 0.5


@pytest.mark.parametrize(("device", "bytes_moved"), [("tpu", 1), ("cpu", -1)])
def test_an_impossible_estimate_is_refused(device, bytes_moved):
    """No constants, no number."""
    with pytest.raises(UsageError):
        estimate_energy_j(bytes_moved, 0, 1.0, device)


@pytest.mark.parametrize(
    "text",
    ["time_s,joule\n0,1\n1,2\n", "time_s,energy_j\n0,1\n", "time_s,energy_j\n0,5\n1,4\n", "time_s,energy_j\n0,x\n"],
)
def test_a_bad_recording_is_refused(text, tmp_path):
    """Wrong columns, one row, falling energy, and text for a number."""
    file = tmp_path / "bad.csv"
    file.write_text(text)
    with pytest.raises(UsageError, match=r"bad\.csv"):
        open_replay(file)


def test_work_adds_up():
    """Two pieces of work are one bigger piece."""
    assert Work(1, 2) + Work(3, 4) == Work(4, 6)

"""Measurements that stay: found again by model, text and settings, and a saved run behind every point.

Seed features: S1.8, S1.34
"""

import dataclasses
import json
import time

import pytest

from tapwb.core.errors import StoreError, TapError
from tapwb.evals.pareto import ParetoSettings, measure_pareto
from tapwb.evals.pareto_runs import (
    Measurement,
    Subject,
    find_measurement,
    has_settings,
    keep_measurement,
    n_passes,
    open_measurement,
)
from tapwb.store import RunStore

TEXT = "".join(chr(33 + (i * i * 7 + i // 5) % 90) for i in range(200))
SETTINGS = ParetoSettings(means=(4.5, 5.5), signals=("entropy",), context=40, windows=2)
SUBJECT = Subject.of("tiny-random-llama", "abc", "sample", TEXT)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """One measurement with the plans of its windows."""
    plans = {}
    return measure_pareto("tiny-random-llama", TEXT, SETTINGS, plans=plans), plans


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A cache and a folder of runs of this test's own."""
    monkeypatch.setenv("TAPWB_CACHE_DIR", str(tmp_path / "cache"))
    return RunStore(tmp_path / "runs")


def test_every_point_is_a_saved_run_with_the_plans_of_its_windows(measured, places):
    """Precision, settings, windows and provenance can be read back; the bits are those that were run."""
    table, plans = measured
    kept = keep_measurement(table, plans, SUBJECT, SETTINGS, places)
    assert {point.precision for point in table.points} == set(kept.runs)
    assert len(set(kept.runs.values())) == len(table.points)
    for point in kept.points:
        record = kept.record(point.precision, places)
        assert record.run_id == point.run_id
        assert record.settings["precision"] == point.precision
        assert record.settings["text"] == "sample"
        assert record.results["kl_mean"] == pytest.approx(point.kl.value)
        assert len(record.results["windows"]["kl"]) == 2
        assert record.provenance == table.provenance
    name = "layers:5.5:entropy"
    assert kept.record(name, places).settings["levels"] == [3, 4, 5, 6, 8]
    bits = places.load_arrays(kept.runs[name])
    assert sorted(bits) == ["bits_window_0", "bits_window_1"]
    assert (bits["bits_window_1"] == plans[name][1].bits.numpy()).all()
    assert places.load_arrays(kept.runs["5"]) == {}  # uniform: the precision says it all


def test_a_measurement_is_found_again_by_what_it_depends_on(measured, places):
    """Same weights, text and settings: at once. Other settings: shown, and told apart. Another text: nothing."""
    assert find_measurement(SUBJECT, SETTINGS) is None
    kept = keep_measurement(*measured, SUBJECT, SETTINGS, places)
    found = find_measurement(SUBJECT, SETTINGS)
    assert found.source == "cache"
    assert found.runs == kept.runs
    assert found.points == kept.points
    assert has_settings(found, SETTINGS)
    other = dataclasses.replace(SETTINGS, windows=7)
    assert not has_settings(find_measurement(SUBJECT, other), other)
    assert find_measurement(Subject.of("tiny-random-llama", "abc", "sample", TEXT + "!"), SETTINGS) is None
    assert find_measurement(dataclasses.replace(SUBJECT, checksum_sha256="other"), SETTINGS) is None


def test_a_damaged_file_is_measured_again(measured, places, tmp_path):
    """Half a file in the cache is as good as none."""
    keep_measurement(*measured, SUBJECT, SETTINGS, places)
    (file,) = (tmp_path / "cache" / "pareto").glob("*.json")
    file.write_text(file.read_text(encoding="utf-8")[:100], encoding="utf-8")
    assert find_measurement(SUBJECT, SETTINGS) is None


def test_a_new_budget_is_read_off_in_well_under_a_second(measured, places):
    """Between two widths the logarithm is interpolated; outside the curve there is a reason and no number."""
    kept = keep_measurement(*measured, SUBJECT, SETTINGS, places)
    kept.points, kept.curves  # noqa: B018 - drawn once; what is timed is the change of the budget
    started_s = time.perf_counter()
    rows = {(row.family, row.signal): row for row in kept.at(5.0)}
    assert time.perf_counter() - started_s < 0.1
    low, high = (kept.point(f"layers:{mean:g}").kl.value for mean in (4.5, 5.5))
    assert rows["layers", None].kl.value == pytest.approx((low * high) ** 0.5, rel=0.01)
    assert rows["uniform", None].relative.value == 1
    outside = {(row.family, row.signal): row for row in kept.at(7.0)}
    assert "outside what was measured" in outside["layers", None].kl.reason
    assert outside["uniform", None].kl.value > 0


def test_files_of_the_command_line_and_of_the_page_are_opened(measured, places):
    """Without saved runs a point opens what the file says of it; numbers are computed again from the windows."""
    table, plans = measured
    bare = open_measurement(json.dumps(table.to_json()), "out.json")
    assert bare.source == "out.json"
    assert bare.point("layers:5.5").run_id is None
    assert bare.record("layers:5.5", places).results["windows"]["kl"] == list(
        next(p.kl for p in table.points if p.precision == "layers:5.5")
    )
    kept = keep_measurement(table, plans, SUBJECT, SETTINGS, places)
    edited = json.loads(json.dumps(kept.to_json()))
    edited["table"]["points"][-1]["adaptivity_gain_bits"] = {"value": 9.0, "unit": "bit", "source": "made up"}
    again = open_measurement(json.dumps(edited), "saved.json")
    assert again.points == kept.points


@pytest.mark.parametrize("content", ["", "[1", "{}", '{"format": "tapwb.pareto_measurement", "format_version": 9}'])
def test_what_is_no_measurement_is_refused(content):
    """The message says what to do."""
    with pytest.raises(TapError, match=r"easure again|Choose a file"):
        open_measurement(content, "x.json")


def test_a_deleted_run_and_an_unknown_point_say_so(measured, places):
    """The point stays on the chart; opening it gives the reason."""
    kept = keep_measurement(*measured, SUBJECT, SETTINGS, places)
    places.delete(kept.runs["layers:5.5"])
    with pytest.raises(StoreError, match="no run"):
        kept.record("layers:5.5", places)
    with pytest.raises(TapError, match="no point"):
        kept.record("layers:9", places)


def test_the_cost_is_told_before_it_is_paid(measured):
    """Passes: one for each plan, width and window, and the reference."""
    table, _ = measured
    assert n_passes(SETTINGS, 2) == 2 * (len(table.points) + 1)
    assert isinstance(Measurement.from_json(table.to_json(), "x"), Measurement)

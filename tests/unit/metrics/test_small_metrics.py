"""Speed, memory, effective bits, and the report that holds them."""

import pytest

from tapwb.core.errors import ReportError, UsageError
from tapwb.core.provenance import Provenance
from tapwb.core.reading import Reading, Unavailable
from tapwb.metrics.effective_bits import effective_bits, format_bits
from tapwb.metrics.memory import memory_ratio, memory_saved_pct
from tapwb.metrics.report import Report, reading_from_json
from tapwb.metrics.speed import speed_from_times


def test_the_first_token_is_not_counted_as_decoding():
    """TTFT 2 s, then four tokens 0.5 s apart: TPOT 0.5 s, 2 tokens/s."""
    speed = speed_from_times(10.0, [12.0, 12.5, 13.0, 13.5, 14.0])
    assert speed.ttft_s.value == pytest.approx(2)
    assert speed.tpot_s.value == pytest.approx(0.5)
    assert speed.decode_tok_per_s.value == pytest.approx(2)
    assert speed.decode_tok_per_s.n == 4
    assert speed.end_to_end_s.value == pytest.approx(4)
    assert speed.n_tokens == 5


def test_percentiles_are_given_only_where_n_allows():
    """100 gaps carry a 95th percentile with its interval, and no 99th."""
    times = [0.0]
    for gap in range(1, 101):
        times.append(times[-1] + gap / 1000)
    speed = speed_from_times(-1.0, times)
    assert speed.itl_p50_s.value == pytest.approx(0.0505)
    assert speed.itl_p95_s.n == 100
    low, high = speed.itl_p95_s.ci95
    assert low < speed.itl_p95_s.value < high
    assert "368" in speed.itl_p99_s.reason
    assert set(speed.to_json()) == set(speed.__slots__)


@pytest.mark.parametrize(
    ("times", "reason"), [([], "no token"), ([1.0], "only one token"), ([1.0, 1.0], "did not advance")]
)
def test_too_short_an_answer_has_no_rate(times, reason):
    """None of them is zero tokens per second."""
    assert reason in speed_from_times(0.0, times).decode_tok_per_s.reason


def test_times_that_run_backwards_are_refused():
    """Two clocks, or a wrong order."""
    with pytest.raises(UsageError, match="monotonic"):
        speed_from_times(5.0, [4.0])


def test_memory_is_a_ratio_and_a_saving():
    """56 of 100 bytes: 0.56 and 44 %."""
    assert memory_ratio(56, 100).value == pytest.approx(0.56)
    assert memory_saved_pct(56, 100).value == pytest.approx(44)
    assert memory_saved_pct(150, 100).value == pytest.approx(-50)


def test_memory_that_was_read_in_two_ways_is_not_compared():
    """A measured size over a computed one says nothing."""
    computed = Reading(100.0, "byte", "estimated:anatomy")
    assert "same way" in memory_ratio(56, computed).reason
    assert memory_saved_pct(56, Unavailable("not loaded")) == Unavailable("no baseline: not loaded")
    assert memory_ratio(Unavailable("gone"), 100) == Unavailable("gone")
    with pytest.raises(UsageError):
        memory_ratio(56, 0)


def test_metadata_counts_in_effective_bits():
    """Four bits in groups of 64 with four bytes each are 4.5 bits, described or stored."""
    assert format_bits(4, 64).value == pytest.approx(4.5)
    assert effective_bits(7 * (32 + 4), 7 * 64).value == pytest.approx(4.5)
    assert format_bits(8, 128).source.startswith("estimated:")


@pytest.mark.parametrize("call", [lambda: effective_bits(8, 0), lambda: format_bits(4, 0), lambda: format_bits(0, 64)])
def test_bits_of_nothing_are_refused(call):
    """No values, no group, no bits."""
    with pytest.raises(UsageError):
        call()


@pytest.fixture
def report():
    """A report with one reading missing."""
    return Report(
        {
            "speed.ttft_s": Reading(0.5, "s", "measured:monotonic-clock", 0.1, 3, (0.4, 0.6)),
            "speed.tpot_s": Unavailable("only one token was generated"),
            "energy.total_j": Reading(12.0, "J", "estimated:bytes-and-ops"),
        },
        Provenance.collect(seed=3),
        "a run",
    )


def test_a_report_knows_its_sections_and_what_is_missing(report):
    """By dotted name, with the reason for every gap."""
    assert [name for name, _ in report.section("speed")] == ["ttft_s", "tpot_s"]
    assert report.unavailable() == {"speed.tpot_s": "only one token was generated"}
    assert report["energy.total_j"].value == 12.0
    with pytest.raises(ReportError, match=r"energy\.total_j"):
        report["energy"]


def test_readings_survive_json(report):
    """Every part of a reading comes back, and so does a reason."""
    out = report.to_json()
    assert {name: reading_from_json(data) for name, data in out["readings"].items()} == dict(report.readings)
    assert out["provenance"]["seed"] == 3


@pytest.mark.parametrize("data", [{}, {"value": 1}, {"value": "x", "unit": "s", "source": "measured:y"}])
def test_json_that_is_no_reading_is_refused(data):
    """Missing parts and text for a number."""
    with pytest.raises(ReportError):
        reading_from_json(data)

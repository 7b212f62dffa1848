"""Quantities for people: round trips, prefixes, and refusals that say what to write."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapwb.core.errors import UsageError
from tapwb.core.units import (
    format_bytes,
    format_count,
    format_joules,
    format_seconds,
    parse_bytes,
    parse_parameters,
)


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (141_200_000, "141 MB"), (999_600, "1.00 MB"), (13e12, "13.0 TB")],
)
def test_bytes_have_three_digits_and_a_decimal_prefix(n_bytes, text):
    """No "1000 kB", no "1e+06"."""
    assert format_bytes(n_bytes) == text


@given(st.integers(min_value=1000, max_value=10**13))
def test_formatted_bytes_parse_back_to_within_their_digits(n_bytes):
    """What is printed is what is meant, to three digits."""
    assert parse_bytes(format_bytes(n_bytes)) == pytest.approx(n_bytes, rel=0.006)


def test_binary_and_decimal_prefixes_differ():
    """A GiB is not a GB."""
    assert parse_bytes("1 GiB") - parse_bytes("1GB") == 2**30 - 10**9


@pytest.mark.parametrize("text", ["", "many", "12 parsecs", "-3GB", "1e3"])
def test_what_is_not_a_size_is_refused_with_an_example(text):
    """The message shows how to write one."""
    with pytest.raises(UsageError, match="24GB"):
        parse_bytes(text)


def test_parameter_counts_read_as_people_write_them():
    """13B, 135M, plain digits."""
    assert [parse_parameters(t) for t in ("13B", "135m", "7000", "1.5b")] == [13 * 10**9, 135 * 10**6, 7000, 15 * 10**8]
    with pytest.raises(UsageError, match="13B"):
        parse_parameters("large")


def test_counts_seconds_and_joules_read_well():
    """One example of every size."""
    assert [format_count(n) for n in (7, 49_152, 134_515_008, 7.1e9)] == ["7", "49.2K", "135M", "7.10B"]
    assert [format_seconds(s) for s in (2e-5, 0.0032, 4.56, 125, 7300)] == [
        "20 µs",
        "3.20 ms",
        "4.56 s",
        "2 min 05 s",
        "2 h 01 min",
    ]
    assert [format_joules(e) for e in (0.0123, 4.56, 7890)] == ["12.3 mJ", "4.56 J", "7.89 kJ"]

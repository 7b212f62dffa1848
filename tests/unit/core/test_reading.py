"""A reading prints its number; a missing one prints its reason and is never zero."""

import pytest

from tapwb.core.reading import Reading, Unavailable, value_or


def test_a_reading_formats_like_its_number():
    """The source documents print a saving with two decimals; that must keep working."""
    saved = Reading(12.345, "%", "estimated:bytes-and-ops", n=29)
    assert f"{saved:.2f}" == "12.35" or f"{saved:.2f}" == "12.34"
    assert str(saved) == "12.345 % (estimated:bytes-and-ops)"
    assert float(saved) == 12.345
    assert not saved.is_measured


def test_a_missing_reading_survives_the_same_format_and_says_why():
    """``f"{x:.2f}"`` must not raise where no counter exists."""
    missing = Unavailable("no energy counter")
    assert f"{missing:.2f}%" == "unavailable (no energy counter)%"
    assert missing.to_json() == {"unavailable": "no energy counter"}
    assert not missing


def test_a_missing_reading_is_no_number():
    """Nobody can add it up by accident."""
    with pytest.raises(TypeError):
        float(Unavailable("none"))  # type: ignore[arg-type]
    assert value_or(Unavailable("none"), -1.0) == -1.0


def test_json_leaves_unknown_parts_out():
    """A reader can tell "not known" from "zero"."""
    assert Reading(1.0, "s", "measured:clock").to_json() == {"value": 1.0, "unit": "s", "source": "measured:clock"}
    full = Reading(1.0, "s", "measured:clock", uncertainty=0.1, n=3, ci95=(0.8, 1.2)).to_json()
    assert (full["uncertainty"], full["n"], full["ci95"]) == (0.1, 3, [0.8, 1.2])

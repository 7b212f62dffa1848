"""`tapwb eval tasks` on files as they are published: numbers beside claims, and one line where a file is no use.

Seed features: S1.34
"""

import json

import pytest

TINY = "tiny-random-llama"
ITEM = {"ctx": "One, two,", "endings": [" three", " seven and a half"], "label": 0}


@pytest.fixture
def items(tmp_path):
    """Three items of HellaSwag's shape."""
    file = tmp_path / "items.jsonl"
    file.write_text("\n".join([json.dumps(ITEM)] * 3), encoding="utf-8")
    return file


def test_tasks_print_what_they_promise(tapwb, items):
    """Rows with paired differences, the claims, what is missing, and provenance, as one JSON object."""
    words = ("eval", "tasks", "--model", TINY, "--task", f"hellaswag={items}", "-p", "4", "--limit", "2", "--json")
    found = tapwb(*words).json
    assert [(row["precision"], row["n"]) for row in found["results"]] == [("16", 2), ("4", 2)]
    low = found["results"][1]
    assert low["difference_ci95"][0] <= low["difference"] <= low["difference_ci95"][1]
    assert len(found["claimed"]) == 7
    assert set(found["missing"]) == {"mmlu", "gsm8k", "humaneval"}
    assert found["provenance"]["model_id"] == TINY


def test_people_see_claims_apart_from_measurements(tapwb, items):
    """Two tables under two headings, and the reasons of what is missing."""
    shown = tapwb("eval", "tasks", "--model", TINY, "--task", f"hellaswag={items}", "-p", "4", "--limit", "1").out
    assert shown.index("Measured here") < shown.index("Claimed by the source document")
    assert "Not measured" in shown


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("hellaswag", "NAME=FILE"),
        ("arc={items}", "Known: hellaswag"),
        ("mmlu={items}", "item 1 is not of the shape"),
        ("mmlu=/nowhere/at/all", "cannot be read"),
    ],
)
def test_a_file_that_is_no_use_is_one_line(tapwb, items, word, message):
    """On standard error, with what to write instead."""
    found = tapwb("eval", "tasks", "--model", TINY, "--task", word.format(items=items), "-p", "8")
    assert found.status != 0
    assert message in found.err
    assert found.out == ""

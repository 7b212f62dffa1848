"""The plan record proves its own consistency and survives files."""

import dataclasses
import json

import pytest
import torch

from tapwb.core.errors import PlanError, PlanFileError
from tapwb.plan import Floor, PrecisionPlan, override_bits, plan_diff, text_fingerprint, uniform_plan


def a_plan(**changes) -> PrecisionPlan:
    """A small plan in two groups of layers."""
    fields = {
        "bits": torch.tensor([[4, 5, 8], [4, 4, 6]]),
        "levels": (4, 5, 6, 8),
        "planner": "budget",
        "signal": "entropy",
        "target_mean_bits": 5.5,
        "floors": (Floor("first tokens", (2,), 6),),
        "seed": 7,
    }
    return PrecisionPlan(**{**fields, **changes})


def test_mean_and_histogram():
    """Over tokens and layer groups; empty levels are listed."""
    plan = a_plan()
    assert plan.mean_bits == pytest.approx(31 / 6)
    assert plan.histogram() == {4: 3, 5: 1, 6: 1, 8: 1}
    assert plan.token_mean_bits(2) == 7
    assert plan.bits.dtype == torch.uint8
    assert uniform_plan(3, 6).histogram() == {6: 3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": torch.tensor([[4, 7, 8]])}, r"bits \[7\] are not among the levels"),
        ({"bits": torch.tensor([4, 5])}, r"bits\[None\]"),
        ({"bits": torch.zeros(1, 0, dtype=torch.long)}, "at least one"),
        ({"bits": torch.tensor([[4.0, 5.0]])}, "whole numbers"),
        ({"levels": (8, 6, 5, 4)}, "ascending"),
        ({"levels": (4, 4, 5, 6, 8)}, "distinct"),
        ({"levels": (4, 5.5, 6, 8)}, "whole"),
        ({"levels": ()}, "levels"),
        ({"target_mean_bits": 9.0}, "outside the levels"),
        ({"floors": (Floor("x", (3,), 6),)}, "tokens 0 to 2"),
        ({"overrides": (-1,)}, "tokens 0 to 2"),
    ],
)
def test_an_inconsistent_plan_is_refused(changes, message):
    """Each broken promise has its own one-line message."""
    with pytest.raises(PlanError, match=message) as caught:
        a_plan(**changes)
    assert "\n" not in str(caught.value)


def test_an_empty_uniform_plan_is_refused():
    """No token, no plan."""
    with pytest.raises(PlanError, match="empty"):
        uniform_plan(0, 8)


def test_save_and_load_give_the_plan_back(tmp_path):
    """Through a file in a folder that did not exist, replacing an older plan, leaving no draft behind."""
    path = tmp_path / "new" / "plan.json"
    uniform_plan(2, 4).save(path)
    a_plan().save(path)
    assert PrecisionPlan.load(path) == a_plan()
    assert [p.name for p in path.parent.iterdir()] == ["plan.json"]


def test_a_missing_or_garbled_plan_file_is_explained(tmp_path):
    """No file, no JSON, no text, another JSON: each one line with the way out."""
    path = tmp_path / "plan.json"
    with pytest.raises(PlanFileError, match="no plan file"):
        PrecisionPlan.load(path)
    path.write_text(json.dumps(a_plan().to_json())[:-40])
    with pytest.raises(PlanFileError, match="not JSON"):
        PrecisionPlan.load(path)
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(PlanFileError, match="cannot be read"):
        PrecisionPlan.load(path)
    path.write_text("[1, 2]")
    with pytest.raises(PlanFileError, match="not a precision plan"):
        PrecisionPlan.load(path)
    with pytest.raises(PlanFileError, match="cannot be read"):
        PrecisionPlan.load(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format_version", 99, "version 99"),
        ("bits", [[4, 7]], "inconsistent"),
        ("bits", "many", "wrong type"),
        ("bits", [[4, 5], [4]], "wrong type"),
        ("bits", [[400]], "inconsistent"),
        ("levels", 4, "wrong type"),
        ("levels", ["a"], "wrong type"),
        ("floors", [{"reason": "x"}], "no 'tokens'"),
        ("target_mean_bits", "high", "wrong type"),
        ("overrides", ["x"], "wrong type"),
    ],
)
def test_a_plan_file_with_a_bad_field_names_the_fault(key, value, message):
    """What is wrong is said, and it is always a plan file error."""
    with pytest.raises(PlanFileError, match=message):
        PrecisionPlan.from_json({**a_plan().to_json(), key: value})


@pytest.mark.parametrize("key", ["bits", "levels", "planner", "signal"])
def test_a_plan_file_without_a_field_names_it(key):
    """Missing fields are not guessed."""
    data = a_plan().to_json()
    del data[key]
    with pytest.raises(PlanFileError, match=key):
        PrecisionPlan.from_json(data)


def test_saving_where_nothing_can_be_written_is_explained(tmp_path):
    """A file where a folder should be."""
    (tmp_path / "file").write_text("")
    with pytest.raises(PlanFileError, match="cannot be written"):
        a_plan().save(tmp_path / "file" / "plan.json")


def test_override_in_one_layer_group_and_with_a_level_the_plan_did_not_use():
    """The other group stays; a level stored by the model but not in the plan can be allowed."""
    edited = override_bits(a_plan(), 0, 2, layer_group=1, levels=(2, 4, 8))
    assert edited.bits.tolist() == [[4, 5, 8], [2, 4, 6]]
    assert edited.levels == (2, 4, 5, 6, 8)
    assert edited.overrides == (0,)
    assert a_plan().bits.tolist() == [[4, 5, 8], [4, 4, 6]]


@pytest.mark.parametrize(
    ("tokens", "bits", "group"), [(3, 4, None), (-1, 4, None), (0, 7, None), (0, 16, None), (0, 4, 2)]
)
def test_impossible_overrides_are_refused(tokens, bits, group):
    """A token, level or layer group that does not exist."""
    with pytest.raises(PlanError):
        override_bits(a_plan(), tokens, bits, layer_group=group)


def test_diff_counts_changes_up_and_down():
    """One sentence and the cells behind it; plans of other shapes are refused."""
    other = dataclasses.replace(a_plan(), bits=torch.tensor([[5, 5, 8], [4, 4, 4]]))
    difference = plan_diff(a_plan(), other)
    assert [(c.layer_group, c.token, c.before, c.after) for c in difference.changes] == [(0, 0, 4, 5), (1, 2, 6, 4)]
    assert str(difference).startswith("2 of 6 entries differ (1 up, 1 down)")
    assert plan_diff(a_plan(), a_plan()).changes == ()
    with pytest.raises(PlanError, match="same text"):
        plan_diff(a_plan(), uniform_plan(3, 8))


def test_fingerprint_tells_texts_apart():
    """Other ids or another order is another text."""
    assert text_fingerprint(torch.tensor([1, 23])) != text_fingerprint(torch.tensor([12, 3]))
    assert text_fingerprint(torch.tensor([1, 2])) == text_fingerprint(torch.tensor([[1, 2]]))

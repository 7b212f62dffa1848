"""The research roadmap is read off the ledger and the saved results, not written down.

Seed features: S1.38
"""

import dataclasses

from tapwb.evals.roadmap import ROADMAP, roadmap
from tapwb.evals.seed_ledger import SeedLedger, load_ledger


def test_every_direction_of_the_document_is_there():
    """Five, each with features of the ledger and a word on what is missing."""
    states = roadmap()
    assert [state.item.title for state in states] == [
        "Better importance", "Precision by task", "Importance by architecture",
        "More architectures and frameworks", "Tuning for hardware",
    ]  # fmt: skip
    assert all(state.works or state.planned for state in states)
    assert all(item.missing.endswith(".") for item in ROADMAP)


def test_what_works_is_what_the_ledger_says(tmp_path):
    """A feature that is only planned moves to the other side, and a result that is not there is not named."""
    ledger = load_ledger()
    planned = SeedLedger(tuple(dataclasses.replace(feature, status="planned") for feature in ledger.features))
    (tmp_path / "pareto-other.jsonl").touch()
    for now, then in zip(roadmap(), roadmap(planned, tmp_path), strict=True):
        assert {*now.works} == {name for name in now.item.features if ledger[name].status == "works"}
        assert then.works == ()
        assert {*then.planned} == {*now.works, *now.planned}
    assert roadmap(planned, tmp_path)[0].measured == ("pareto-other.jsonl",)
    assert roadmap(planned, tmp_path)[1].measured == ()


def test_an_answer_needs_a_feature_that_works_and_a_measurement(tmp_path):
    """Either alone is not enough."""
    now = roadmap()
    assert [state.is_answered for state in now] == [bool(state.works and state.measured) for state in now]
    assert now[0].is_answered
    assert not any(state.is_answered for state in roadmap(None, tmp_path))

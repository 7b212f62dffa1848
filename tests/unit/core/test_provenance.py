"""Provenance: every part is there or says why it is not."""

import json

from tapwb.core.provenance import Provenance, git_commit
from tapwb.core.reading import Unavailable


class _Model:
    id, revision, checksum_sha256 = "tiny", "r1", "ab" * 32


def test_a_result_knows_versions_machine_seed_and_model():
    """The JSON of a result can be read years later."""
    found = Provenance.collect(seed=7, model=_Model()).to_json()
    assert found["seed"] == 7
    assert (found["model_id"], found["model_revision"]) == ("tiny", "r1")
    assert found["device"].startswith("cpu: ")
    assert found["threads"] >= 1
    assert found["utc"].endswith("+00:00")
    assert {"torch", "transformers", "numpy", "python", "tapwb", "commit"} <= set(found)
    json.dumps(found, allow_nan=False)


def test_a_commit_is_a_hash_or_a_reason():
    """Outside a checkout the commit is unavailable, not empty."""
    commit = git_commit()
    assert isinstance(commit, Unavailable) or len(commit.removesuffix("+dirty")) == 40

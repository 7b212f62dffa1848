"""Runs on disk: whole or not at all, newest first, one bad run spoils nothing, no credentials."""

import errno
import json
import multiprocessing
import os
from enum import Enum
from pathlib import Path

import numpy as np
import pytest

from tapwb.core.errors import DiskFull, StoreError
from tapwb.core.provenance import Provenance
from tapwb.core.reading import Reading, Unavailable
from tapwb.store import SCHEMA_VERSION, RunRecord, RunStore
from tapwb.store import folder as folder_module
from tapwb.store.lock import folder_lock
from tapwb.store.redact import MARKER, redact, redact_text


def record(kind="run", **results):
    """A small run."""
    return RunRecord.create(kind, provenance={"seed": 0}, settings={"precision": "adaptive:5.5"}, results=results)


@pytest.fixture
def store(tmp_path):
    """An empty shelf."""
    return RunStore(tmp_path / "runs")


def test_a_run_comes_back_as_it_was_saved(store):
    """Record and arrays, the latter of odd shapes and small types."""
    saved = record(text="ไทย", ratio=0.5)
    arrays = {"bits": np.arange(21, dtype=np.uint8).reshape(3, 7), "empty": np.zeros((0, 4), np.float32)}
    store.save(saved, arrays=arrays)
    assert store.load(saved.run_id) == saved
    found = store.load_arrays(saved.run_id)
    assert {name: (array.dtype, array.shape) for name, array in found.items()} == {
        name: (array.dtype, array.shape) for name, array in arrays.items()
    }
    np.testing.assert_array_equal(found["bits"], arrays["bits"])


def test_results_become_plain_json(store):
    """Readings, reasons, provenance, NumPy numbers, enumerations, tuples and paths."""

    class Mode(Enum):
        FAST = "fast"

    saved = RunRecord.create(
        "run",
        provenance=Provenance.collect(seed=1),
        settings={"mode": Mode.FAST, "levels": (4, 5), "file": Path("a/b"), 8: "eight"},
        results={
            "energy": Reading(1.5, "J", "estimated:x"),
            "speed": Unavailable("not timed"),
            "n": np.int64(3),
            "mean": np.float32(0.5),
            "is_done": np.bool_(True),
            "scores": np.array([[1, 2]]),
        },
    )
    store.save(saved)
    back = store.load(saved.run_id)
    assert back.settings == {"mode": "fast", "levels": [4, 5], "file": "a/b", "8": "eight"}
    assert back.results["energy"] == {"value": 1.5, "unit": "J", "source": "estimated:x"}
    assert back.results["speed"] == {"unavailable": "not timed"}
    assert (back.results["n"], back.results["mean"], back.results["is_done"]) == (3, 0.5, True)
    assert back.results["scores"] == [[1, 2]]
    assert back.provenance["seed"] == 1


@pytest.mark.parametrize(
    ("bad", "where"),
    [(float("nan"), "results.x is nan"), (object(), "results.x is a object"), ({1.5: {2j: 1}}, "name")],
)
def test_what_json_cannot_hold_is_refused_with_its_place(bad, where):
    """A NaN would come back as an error of the reader, much later."""
    with pytest.raises(StoreError, match=where):
        record(x=bad)


def test_runs_are_listed_newest_first_and_by_kind(store):
    """Also those made within one second."""
    saved = [record(kind) for kind in ("run", "tokens", "run", "run")]
    for one in saved[::-1]:
        store.save(one)
    assert [run.run_id for run in store.list().runs] == [one.run_id for one in reversed(saved)]
    assert [run.kind for run in store.list("tokens").runs] == ["tokens"]


def test_an_absent_folder_is_an_empty_shelf(store):
    """Nothing is created by looking."""
    assert store.list().runs == ()
    assert not store.path.exists()


def test_a_corrupted_run_is_reported_and_does_not_hide_the_others(store):
    """Truncated, empty, missing, of the wrong type, renamed: each with its reason."""
    good = record()
    store.save(good)
    for name, text in {
        "truncated": '{"schema_version": 1, "run',
        "empty": "",
        "list": "[1]",
        "fields": '{"schema_version": 1, "run_id": "fields"}',
        "binary": "\x00\x01",
    }.items():
        (store.path / name).mkdir()
        (store.path / name / "run.json").write_text(text)
    (store.path / "bare").mkdir()
    (store.path / "renamed").mkdir()
    (store.path / "renamed" / "run.json").write_text(json.dumps(good.to_json()))
    listing = store.list()
    assert [run.run_id for run in listing.runs] == [good.run_id]
    assert {problem.run_id for problem in listing.problems} == {
        "truncated", "empty", "list", "fields", "binary", "bare", "renamed",
    }  # fmt: skip
    assert all(problem.reason and "\n" not in problem.reason for problem in listing.problems)


@pytest.mark.parametrize("version", [0, SCHEMA_VERSION + 1, "1", None])
def test_a_run_of_another_schema_is_refused_with_advice(store, version):
    """Read wrongly would be worse than not read."""
    saved = record()
    file = store.save(saved) / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema_version": version}))
    with pytest.raises(StoreError, match="Update tapwb"):
        store.load(saved.run_id)


def test_a_saved_run_is_replaced_only_on_purpose(store):
    """Arrays of the old run go with it."""
    saved = record(x=1)
    folder = store.save(saved, arrays={"a": np.arange(5)})
    with pytest.raises(StoreError, match="overwrite=True"):
        store.save(saved)
    store.save(RunRecord.from_json(saved.to_json() | {"results": {"x": 2}}), arrays={"a": np.arange(6)}, overwrite=True)
    assert store.load(saved.run_id).results == {"x": 2}
    assert store.load_arrays(saved.run_id)["a"].shape == (6,)
    assert len(list(folder.glob("arrays-*.npz"))) == 1
    store.save(saved, overwrite=True)
    assert store.load_arrays(saved.run_id) == {}


def test_a_deleted_run_is_gone(store):
    """Readable or not; deleting twice says that it is gone."""
    saved = record()
    store.save(saved, arrays={"a": np.arange(3)})
    (store.path / "broken").mkdir()
    store.delete(saved.run_id)
    store.delete("broken")
    assert store.list() == type(store.list())((), ())
    assert [path.name for path in store.path.iterdir()] == [".lock"]
    with pytest.raises(StoreError, match="no run"):
        store.delete(saved.run_id)


@pytest.mark.parametrize("run_id", ["../escape", "", ".hidden", "a/b", "a" * 101])
def test_an_id_that_leaves_the_folder_is_refused(store, run_id):
    """For reading, writing and deleting."""
    outside = RunRecord(run_id, "run", "2026-01-01T00:00:00+00:00", {}, {}, {})
    for act in (lambda: store.save(outside), lambda: store.load(run_id), lambda: store.delete(run_id)):
        with pytest.raises(StoreError, match="no run id"):
            act()


def test_truncated_arrays_are_an_error_of_the_run(store):
    """The record stays readable."""
    saved = record()
    folder = store.save(saved, arrays={"a": np.arange(1000)})
    file = next(folder.glob("arrays-*.npz"))
    file.write_bytes(file.read_bytes()[:100])
    assert store.load(saved.run_id) == saved
    with pytest.raises(StoreError, match="cannot be read"):
        store.load_arrays(saved.run_id)
    file.unlink()
    with pytest.raises(StoreError, match="are gone"):
        store.load_arrays(saved.run_id)


@pytest.mark.parametrize("array", [np.array(["sk-text"]), np.array([{"a": 1}], dtype=object)])
def test_arrays_hold_numbers_only(store, array):
    """Texts would dodge the search for credentials, objects would need pickle."""
    with pytest.raises(StoreError, match="not numbers"):
        store.save(record(), arrays={"a": array})


def test_a_full_disk_leaves_nothing_half_written(store, monkeypatch):
    """The run is absent, the others stay, and the message says where to make room."""
    kept = record()
    store.save(kept)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(folder_module.os, "fsync", full)
    lost = record(x=1)
    with pytest.raises(DiskFull, match="TAPWB_RUNS_DIR"):
        store.save(lost, arrays={"a": np.arange(9)})
    with pytest.raises(DiskFull):
        store.save(RunRecord.from_json(kept.to_json() | {"results": {"x": 2}}), overwrite=True)
    monkeypatch.undo()
    assert [run.run_id for run in store.list().runs] == [kept.run_id]
    assert store.list().problems == ()
    assert store.load(kept.run_id) == kept
    assert not list(store.path.glob("**/.tmp-*"))


def test_a_folder_that_cannot_be_made_is_told_with_the_way_out(tmp_path):
    """A file stands where the folder should be."""
    (tmp_path / "runs").write_text("")
    with pytest.raises(StoreError, match="TAPWB_RUNS_DIR"):
        RunStore(tmp_path / "runs").save(record())


def test_what_a_killed_writer_left_is_hidden_and_swept(store):
    """Half a file and half a deletion."""
    saved = record()
    folder = store.save(saved)
    (folder / ".tmp-run.json").write_text("{")
    (store.path / ".deleted-old").mkdir()
    (store.path / ".deleted-old" / "run.json").write_text("{}")
    assert len(store.list().runs) == 1
    assert store.list().problems == ()
    store.save(record())
    assert not (folder / ".tmp-run.json").exists()
    assert not (store.path / ".deleted-old").exists()


def _write_many(path, writer, shared_id, start):
    start.wait()
    store = RunStore(path)
    for turn in range(8):
        store.save(record(writer=writer, turn=turn), arrays={"a": np.full(500, writer)})
        both = RunRecord(
            shared_id, "run", "2026-01-01T00:00:00+00:00", {}, {}, {"writer": writer, "filler": "x" * 20_000}
        )
        store.save(both, arrays={"writer": np.full(5_000, writer)}, overwrite=True)


def test_processes_that_write_at_once_lose_nothing_and_mix_nothing(tmp_path):
    """Three real processes save their own runs and fight over one; a reader in between sees whole records only."""
    spawn = multiprocessing.get_context("spawn")
    start = spawn.Event()
    writers = [spawn.Process(target=_write_many, args=(tmp_path, writer, "shared", start)) for writer in range(3)]
    for writer in writers:
        writer.start()
    start.set()
    store = RunStore(tmp_path)
    while any(writer.is_alive() for writer in writers):
        assert all(problem.run_id for problem in store.list().problems)
        for run in store.list("run").runs:
            if run.run_id == "shared":
                assert len(run.results["filler"]) == 20_000
        writers[0].join(0.02)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    listing = store.list()
    assert listing.problems == ()
    assert len(listing.runs) == 3 * 8 + 1
    by_writer = [(run.results["writer"], run.results["turn"]) for run in listing.runs if run.run_id != "shared"]
    assert sorted(by_writer) == [(writer, turn) for writer in range(3) for turn in range(8)]
    last = store.load("shared").results["writer"]
    assert set(store.load_arrays("shared")["writer"].tolist()) == {last}


def test_a_writer_that_never_lets_go_is_an_error_not_a_hang(tmp_path):
    """The message says what to do."""
    with folder_lock(tmp_path), pytest.raises(StoreError, match="another process"):
        RunStore(tmp_path, lock_timeout_s=0.05).save(record())
    RunStore(tmp_path, lock_timeout_s=0.05).save(record())


SECRETS = [
    "sk-proj-4f9aB3kd02LmQz81xYtW",
    "sk-ant-api03-AbCd1234EfGh5678",
    "Bearer abc123def456ghi789",
    "hf_AbCdEfGhIjKlMnOpQrStUvWx12",
    "ghp_0123456789abcdefghijABCDEFGHIJ012345",
    "AKIAIOSFODNN7EXAMPLE",
    "AIzaSyA1234567890abcdefghijklmnopqrstuv",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIB\n-----END RSA PRIVATE KEY-----",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_no_credential_reaches_the_disk(store, secret):
    """Wherever it stands: a value, a sentence, a list, a name, the settings, the kind."""
    saved = RunRecord.create(
        f"run {secret}",
        provenance={"note": secret},
        settings={"headers": [{"x": f"use {secret} please"}]},
        results={secret: 1, "deep": {"er": (secret,)}},
    )
    folder = store.save(saved)
    written = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file()).decode()
    assert json.dumps(secret)[1:-1] not in written
    assert written.count(MARKER) >= 5


def test_fields_that_are_named_like_secrets_are_masked_whatever_they_hold():
    """A password looks like nothing in particular."""
    assert redact({"api_key": "swordfish", "OPENAI_API_KEY": "x", "password": "", "n": {"Authorization": "y"}}) == {
        "api_key": MARKER,
        "OPENAI_API_KEY": MARKER,
        "password": "",
        "n": {"Authorization": MARKER},
    }
    assert "hunter2" not in redact_text("https://me:hunter2@host/v1")


@pytest.mark.parametrize(
    "text",
    [
        "task-based-learning-2024 and sk-learn-compatible-estimators",
        "The bearer of good news arrived.",
        "https://huggingface.co/HuggingFaceTB/SmolLM2-135M",
        "12:30:45 me@host",
        "basic understanding of quantization",
        "adaptive:5.5:entropy",
        "token_ids, top1_agreement, monkey",
    ],
)
def test_ordinary_text_is_left_alone(text):
    """A run that loses its prompts is no use."""
    assert redact_text(text) == text
    assert redact({"token": text}) == {"token": text}

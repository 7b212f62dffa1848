"""Kernels side by side on the shapes of a model: times only behind a green gate, ratios in pairs, the reason beside.

Seed features: S1.15
"""

import pytest
import torch

from tapwb.core.errors import UsageError
from tapwb.evals import kernel_bench
from tapwb.evals.kernel_bench import PEER, measure_kernels
from tapwb.execution import dispatch
from tapwb.models.load import load_model

MODEL = "tiny-random-llama"


@pytest.fixture(scope="module")
def measured():
    """Two levels, four turns."""
    return measure_kernels(MODEL, levels=[8, 4], repeats=4)


def test_every_matrix_of_a_step_is_counted_once(measured):
    """The shapes add up to the weights of all layers and of the head."""
    handle = load_model(MODEL)
    linear = [m for m in handle.model.modules() if isinstance(m, torch.nn.Linear)]
    rows = [row for row in measured.rows if row["kernel"] == PEER]
    sizes = {row["shape"]: row["bytes_read"] // 2 for row in rows}
    assert sum(row["matrices"] for row in rows) == len(linear)
    assert sum(sizes[row["shape"]] * row["matrices"] for row in rows) == sum(m.weight.numel() for m in linear)
    assert rows[-1]["shape"].startswith("head")


def test_rows_hold_times_bandwidth_and_the_reason(measured):
    """Bandwidth is bytes over time; one kernel of each shape and level is the used one, and says why."""
    for row in measured.rows:
        assert row["gb_per_s"] == pytest.approx(row["bytes_read"] / row["us"] / 1e3)
    ours = [row for row in measured.rows if row["kernel"] != PEER]
    assert {row["bits"] for row in ours if not row["shape"].startswith("head")} == {8, 4}
    for shape, bits in {(row["shape"], row["bits"]) for row in ours}:
        (used,) = [row for row in ours if (row["shape"], row["bits"]) == (shape, bits) and row["chosen"]]
        assert "microseconds" in used["why"] or "no native kernel" in used["why"]
    fewer = {row["bits"]: row["bytes_read"] for row in ours if row["shape"] == "64 x 64"}
    assert fewer[4] < fewer[8]


def test_ratios_are_paired_and_cover_a_whole_step(measured):
    """One pair a turn; each level has the sum over all matrices."""
    names = [ratio["name"] for ratio in measured.ratios]
    assert [name for name in names if "all matrices" in name] == [
        f"time used / {PEER}, all matrices of a step, {bits} bits" for bits in (8, 4)
    ]
    for ratio in measured.ratios:
        assert ratio["n"] == 4
        assert ratio["ci95"][0] <= ratio["ratio"] <= ratio["ci95"][1]
    assert measured.gate["met"]
    assert measured.to_json()["kernel"]["name"] == dispatch.current().name


def test_a_wrong_kernel_gets_no_time(monkeypatch):
    """A fault planted into one kernel: no kernel's speed is given, and the gate names the wrong one."""
    real = dispatch.linear

    def faulty(x, weight, bits):
        y = real(x, weight, bits)
        return y * 1.01 if dispatch.current().name == "grouped" and bits == 4 else y

    monkeypatch.setattr(kernel_bench.dispatch, "linear", faulty)
    monkeypatch.setattr(kernel_bench, "_sweep", lambda *_: pytest.fail("a time was taken"))
    found = measure_kernels(MODEL, levels=[8, 4], repeats=2)
    assert not found.gate["met"]
    assert {check["name"].split(",")[0] for check in found.gate["checks"] if not check["met"]} == {"error of grouped"}
    assert found.ratios == ()
    assert all("the gate is not met" in row["us"]["unavailable"] for row in found.rows)


def test_a_kernel_that_answers_nan_gets_no_time(monkeypatch):
    """NaN is over every limit."""
    real = dispatch.linear
    monkeypatch.setattr(kernel_bench.dispatch, "linear", lambda *args: real(*args) * float("nan"))
    assert not measure_kernels(MODEL, levels=[8], repeats=2).gate["met"]


@pytest.mark.parametrize("options", [{"levels": []}, {"levels": [2]}, {"repeats": 1}, {"n_rows": 0}], ids=str)
def test_what_cannot_be_measured_is_refused(options):
    """With what is allowed."""
    with pytest.raises(UsageError, match="Give levels of 3 to 8"):
        measure_kernels(MODEL, **{"levels": [8], "repeats": 2, **options})

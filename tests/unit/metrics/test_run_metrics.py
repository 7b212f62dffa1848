"""From a trace to the numbers of a run, each with its source; nothing is derived from bit-widths.

Seed features: S1.28, S1.29
"""

import dataclasses
from typing import Any

import pytest

from tapwb.core.reading import Reading, Unavailable
from tapwb.execution.dispatch import KernelChoice
from tapwb.execution.trace import Trace
from tapwb.metrics.run_metrics import ReferencePace, run_metrics, work_of
from tapwb.models.anatomy import ModelAnatomy
from tapwb.models.tiny import tiny_model

TRACE = Trace(
    prompt_ids=(1, 2, 3),
    token_ids=(4, 5, 6),
    prompt_bits=(4.0, 8.0, 5.5),
    token_bits=(5, 4, 8),
    entropy_nats=(1.0, 2.0, 0.5),
    prefill_s=0.3,
    step_s=(0.1, 0.3),
    weight_bytes_read=3000.0,
    kv_bytes=100,
    kv_baseline_bytes=400,
    finish_reason="length",
    kernel=KernelChoice("grouped", "why"),
    notes=("a note",),
)


@pytest.fixture(scope="module")
def anatomy() -> ModelAnatomy:
    """Shapes of a tiny model."""
    return tiny_model("llama").anatomy


def _metrics(anatomy: ModelAnatomy, trace: Trace = TRACE, **changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "anatomy": anatomy,
        "weights_bytes": 90_000,
        "energy": None,
        "pace": ReferencePace(0.2, 0.4),
        "scoring_s": 0.05,
        "device": "cpu",
        "request": "adaptive:5.5",
    }
    return run_metrics(trace, **(given | changes))


def test_the_mean_counts_what_went_through_the_model(anatomy):
    """The prompt and every answer token but the last, at the level of the step that processed it."""
    precision = _metrics(anatomy)["precision"]
    assert precision["mean_bits"] == pytest.approx((4 + 8 + 5.5 + 4 + 8) / 5)
    assert precision["bits_histogram"] == {"4": 2, "5.5": 1, "8": 2}
    assert list(precision["bits_histogram"]) == ["4", "5.5", "8"]


def test_speed_counts_steps_and_scoring(anatomy):
    """Two steps in 0.4 s; the first token took scoring and prefill."""
    speed = _metrics(anatomy)["speed"]
    assert speed["decode_tok_per_s"].value == pytest.approx(5)
    assert speed["decode_tok_per_s"].source.startswith("measured")
    assert speed["ttft_s"] == pytest.approx(0.35)
    assert speed["n_new_tokens"] == 3


def test_a_single_token_has_no_speed_and_no_pace(anatomy):
    """And the reason, not a zero."""
    single = dataclasses.replace(TRACE, token_ids=(4,), token_bits=(5,), entropy_nats=(1.0,), step_s=())
    assert isinstance(_metrics(anatomy, single)["speed"]["decode_tok_per_s"], Unavailable)
    assert ReferencePace.of(single) is None
    assert ReferencePace.of(TRACE) == ReferencePace(pytest.approx(0.1), pytest.approx(0.2))


def test_the_saving_is_estimated_against_a_timed_run(anatomy):
    """Faster and with fewer bytes saves; slower than the reference loses, and is shown as a loss."""
    saved = _metrics(anatomy)["precision"]["energy_saved_pct"]
    assert isinstance(saved, Reading)
    assert saved.source.startswith("estimated")
    assert 0 < saved.value < 100
    slow = _metrics(anatomy, pace=ReferencePace(1e-6, 1e-6))["precision"]["energy_saved_pct"]
    assert slow.value < 0
    assert f"{saved:.2f}" == f"{saved.value:.2f}"


def test_without_a_reference_there_is_no_saving(anatomy):
    """And the 16-bit run itself saves nothing."""
    for changes, word in (({"pace": None}, "generate once with precision 16"), ({"request": "16"}, "compared with")):
        precision = _metrics(anatomy, **changes)["precision"]
        assert isinstance(precision["energy_saved_pct"], Unavailable)
        assert word in precision["energy_saved_pct"].reason
        assert precision["energy_source"] == "unavailable"
        assert "unavailable" in f"{precision['energy_saved_pct']:.2f}%"


def test_work_is_bytes_read_and_two_operations_per_parameter(anatomy):
    """Weights of every pass, the cache once per step, five processed tokens."""
    work = work_of(TRACE, anatomy)
    assert work.bytes_moved == 3000 + 2 * 100
    assert work.operations == 2 * anatomy.n_parameters * 5


def test_memory_is_beside_its_baseline(anatomy):
    """16-bit weights of the same model, and the same cache at 16 bits."""
    memory = _metrics(anatomy)["memory"]
    assert memory["baseline_weights_bytes"] == 2 * anatomy.n_parameters
    assert memory["weights_ratio"] == pytest.approx(90_000 / (2 * anatomy.n_parameters))
    assert (memory["kv_bytes"], memory["baseline_kv_bytes"]) == (100, 400)
    assert _metrics(anatomy)["notes"] == ["a note"]
    assert "unavailable" in _metrics(anatomy)["energy"]

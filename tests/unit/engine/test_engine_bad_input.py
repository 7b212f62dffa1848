"""Whatever cannot be run is refused in one line that says what came, what is allowed and what to do.

Seed features: S1.25, S1.26
"""

import pytest
import torch

from tapwb.core.errors import (
    BudgetError,
    EmptyPrompt,
    ExecutionError,
    OutOfMemory,
    PlanFileError,
    PrecisionSpecError,
    PromptTooLong,
    SettingsError,
    TapError,
    UnknownName,
    UsageError,
)
from tapwb.engine import TAPConfig, TAPEngine
from tapwb.models.tiny import tiny_model

PROMPT = "Light bends"


@pytest.fixture(scope="module")
def engine() -> TAPEngine:
    """Ready to refuse."""
    engine = TAPEngine(TAPConfig(time_reference=False))
    engine.load_model("tiny-random-llama")
    return engine


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        ({"prompt": ""}, EmptyPrompt),
        ({"prompt": "x" * 600}, PromptTooLong),
        ({"max_new_tokens": 510}, PromptTooLong),
        ({"max_new_tokens": 0}, SettingsError),
        ({"max_new_tokens": -3}, SettingsError),
        ({"precision": "fast"}, PrecisionSpecError),
        ({"precision": "7"}, PrecisionSpecError),
        ({"precision": "adaptive:9"}, PrecisionSpecError),
        ({"precision": "adaptive:5.5:nonsense"}, UnknownName),
        ({"precision": "plan:/no/such/file.json"}, PlanFileError),
        ({"kv": 7}, UsageError),
        ({"kv": "adaptive:99"}, UsageError),
        ({"temperature": -1}, UsageError),
        ({"top_p": 0}, UsageError),
    ],
)
def test_a_bad_call_is_refused_and_the_engine_goes_on(engine, call, kind):
    """The right error, one line with advice, and the next call works."""
    arguments = {"prompt": PROMPT, "max_new_tokens": 3, "precision": "8"} | call
    with pytest.raises(kind) as caught:
        engine.generate(**arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) > 20
    assert engine.generate(PROMPT, 2, precision="8")[1]["finish_reason"] in ("length", "stop")


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"precision_levels": [8, 4]}, PrecisionSpecError),
        ({"precision_levels": [4, 4, 8]}, PrecisionSpecError),
        ({"precision_levels": []}, PrecisionSpecError),
        ({"precision_levels": [4, 7]}, PrecisionSpecError),
        ({"precision_levels": [4, 8], "precision_thresholds": [0.3, 0.7]}, PrecisionSpecError),
        ({"precision_levels": [4, 5, 8], "precision_thresholds": [0.7, 0.3]}, PrecisionSpecError),
        ({"precision_levels": [4, 8], "precision_thresholds": [1.0]}, PrecisionSpecError),
        ({"precision_levels": [4, 8], "precision_thresholds": [-0.1]}, PrecisionSpecError),
        ({"precision_mode": "sometimes"}, SettingsError),
        ({"precision_mode": "uniform", "mean_bits": 5.5}, SettingsError),
        ({"mean_bits": 3}, PrecisionSpecError),
        ({"group_size": 12}, SettingsError),
        ({"group_size": 0}, SettingsError),
        ({"kv_bits": 5}, SettingsError),
    ],
)
def test_settings_that_do_not_fit_are_refused_when_they_are_made(options, kind):
    """Not at the first run."""
    with pytest.raises(kind) as caught:
        TAPConfig(**options)
    assert "\n" not in str(caught.value)


def test_a_model_is_needed_first():
    """With the call that loads one."""
    with pytest.raises(ExecutionError, match=r"load_model\('smollm2-135m'\)"):
        TAPEngine().generate(PROMPT, 3)
    with pytest.raises(ExecutionError):
        _ = TAPEngine().anatomy


def test_a_plan_of_another_text_is_refused(engine, tmp_path):
    """Of the same length, too."""
    plan = engine.plan(engine.score(PROMPT), "adaptive:5.5:entropy")
    plan.save(tmp_path / "plan.json")
    for other in ("Light", PROMPT[::-1]):
        with pytest.raises(PlanFileError):
            engine.generate(other, 2, precision=f"plan:{tmp_path / 'plan.json'}")


def test_a_model_that_does_not_fit_at_all_is_refused(tmp_path, monkeypatch):
    """Not one layer in the memory given."""
    monkeypatch.setenv("TAPWB_CACHE_DIR", str(tmp_path))
    engine = TAPEngine(TAPConfig(offload_to_cpu=True, max_memory_bytes=10, time_reference=False))
    with pytest.raises(OutOfMemory, match="not one layer"):
        engine.adopt(tiny_model("llama"))


def test_an_unreachable_mean_in_a_plan_is_a_plan_error(engine):
    """A request built by hand skips the grammar, and the planner still refuses."""
    from tapwb.core.precision import PrecisionRequest

    scored = engine.score(PROMPT)
    with pytest.raises((BudgetError, TapError)):
        engine.plan(scored, PrecisionRequest("adaptive", mean_bits=9, signal="entropy", levels=(4, 8)))


def test_an_empty_batch_of_ids_is_refused(engine):
    """Scoring takes ids as well as text."""
    with pytest.raises(EmptyPrompt):
        engine.score(torch.zeros(1, 0, dtype=torch.long), "entropy")

"""The engine runs the source documents' snippets and keeps its promises on tiny models.

Seed features: S1.8, S1.25, S1.26, S1.27, S1.28, S1.29, S1.30, S1.31
"""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from tapwb.core.errors import Cancelled, ExecutionError
from tapwb.core.jobs import JobRunner, JobState
from tapwb.core.precision import parse_precision
from tapwb.core.reading import Reading, Unavailable
from tapwb.engine import PrecisionMode, TAPConfig, TAPEngine
from tapwb.engine.stages import measure, run, score_importance
from tapwb.execution.trace import TokenEvent
from tapwb.models.load import load_model
from tapwb.models.tiny import tiny_model
from tapwb.plan.request import make_plan

PROMPT = "Light bends around stars and we see"


@pytest.fixture(scope="module")
def engine() -> TAPEngine:
    """One engine that times no reference."""
    engine = TAPEngine(TAPConfig(time_reference=False))
    engine.load_model("tiny-random-llama")
    return engine


def test_the_first_snippet_runs_with_only_the_import_and_the_model_changed():
    """Thresholds over the seed's four levels; the saving prints with two decimals and says that it is estimated."""
    config = TAPConfig(
        precision_mode=PrecisionMode.ADAPTIVE,
        precision_levels=[4, 8, 16, 32],
        precision_thresholds=[0.25, 0.5, 0.75],
    )
    engine = TAPEngine(config=config)
    engine.load_model("tiny-random-mistral")
    text, metrics = engine.generate(prompt="Explain quantum computing in simple terms", max_new_tokens=12)
    assert isinstance(text, str)
    printed = f"{metrics['precision']['energy_saved_pct']:.2f}%"
    float(printed.rstrip("%"))
    assert metrics["precision"]["energy_source"].startswith("estimated")
    assert set(metrics["precision"]["bits_histogram"]) <= {"4", "8"}
    assert any("16 and 32 run at 8 bits" in note for note in metrics["notes"])


def test_the_second_snippet_runs_within_little_memory():
    """Memory-efficient, with offloading: the cache is at 8 bits and no reference weights stay."""
    config = TAPConfig(
        precision_mode=PrecisionMode.ADAPTIVE,
        precision_levels=[4, 8, 16],
        precision_thresholds=[0.3, 0.7],
        memory_efficient_mode=True,
        offload_to_cpu=True,
    )
    engine = TAPEngine(config=config)
    engine.load_model("tiny-random-llama")
    _, metrics = engine.generate(prompt="Write a story. " * 16, max_new_tokens=6)
    assert f"{metrics['precision']['energy_saved_pct']:.2f}%".endswith("%")
    assert metrics["memory"]["kv_bytes"] < metrics["memory"]["baseline_kv_bytes"]
    gc.collect()
    assert engine._loaded is not None
    assert engine._loaded.reference is None


def test_the_metrics_carry_every_key_of_the_contract(engine):
    """Numbers with units in their names; what was not measured says why."""
    text, metrics = engine.generate(PROMPT, 5, precision="6")
    assert set(metrics) >= {"precision", "memory", "speed", "energy", "speculation", "kernel", "notes"}
    assert set(metrics["precision"]) >= {"mean_bits", "bits_histogram", "energy_saved_pct", "energy_source"}
    assert set(metrics["memory"]) >= {"weights_bytes", "kv_bytes", "baseline_weights_bytes", "baseline_kv_bytes"}
    assert set(metrics["speed"]) >= {"ttft_s", "decode_tok_per_s", "prefill_s", "weight_bytes_read"}
    assert isinstance(metrics["precision"]["energy_saved_pct"], Unavailable)
    assert metrics["precision"]["energy_source"] == "unavailable"
    assert isinstance(metrics["speculation"], Unavailable)
    assert metrics["precision"]["mean_bits"] == 6
    assert metrics["memory"]["weights_bytes"] == engine.weights_bytes()
    assert isinstance(metrics["speed"]["decode_tok_per_s"], Reading)
    assert text


def test_a_later_reference_run_makes_the_saving_available():
    """Measured against a run at 16 bits in this process, never derived from bit-widths."""
    engine = TAPEngine(TAPConfig(time_reference=False))
    engine.load_model("tiny-random-llama")
    _, before = engine.generate(PROMPT, 4, precision="8")
    _, own = engine.generate(PROMPT, 4, precision="16")
    _, after = engine.generate(PROMPT, 4, precision="8")
    assert isinstance(before["precision"]["energy_saved_pct"], Unavailable)
    assert isinstance(own["precision"]["energy_saved_pct"], Unavailable)
    assert own["precision"]["mean_bits"] == 16
    assert isinstance(after["precision"]["energy_saved_pct"], Reading)
    engine.generate(PROMPT, 1, precision="16")
    _, still = engine.generate(PROMPT, 4, precision="8")
    assert isinstance(still["precision"]["energy_saved_pct"], Reading), "a run without a step takes no pace away"


@pytest.mark.parametrize(
    "precision", ["adaptive:5.5:entropy", "adaptive:4.5:position", "random:5.5", "shuffled:5.5:entropy", "oracle:5.5"]
)
def test_the_prompts_mean_is_within_one_step_of_the_target(engine, precision):
    """One token's step from one level to the next; spread over the prompt."""
    _, trace, metrics = engine.trace(PROMPT, 3, precision=precision)
    target = float(precision.split(":")[1])
    mean = sum(trace.prompt_bits) / len(trace.prompt_bits)
    assert abs(mean - target) <= 2 / len(trace.prompt_bits)
    assert len(set(trace.prompt_bits)) > 1
    assert metrics["precision"]["request"] == precision


def test_the_mean_of_an_answer_is_within_two_percent_after_200_tokens(engine):
    """The controller holds it, whatever the model writes."""
    _, trace, _ = engine.trace("Light", 202, precision="adaptive:5.5:entropy", temperature=1.0, seed=3)
    decoded = trace.token_bits[1:201]
    assert len(decoded) == 200, "the model ended early: choose another seed"
    assert abs(sum(decoded) / 200 / 5.5 - 1) <= 0.02
    assert len(set(decoded)) > 1


def test_a_seed_decides_the_text(engine):
    """Same seed, same text; another seed, another text, at temperature 1."""
    texts = [engine.generate(PROMPT, 16, precision="8", temperature=1.0, seed=seed)[0] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_events_tell_the_run_while_it_goes_on(engine):
    """One per token, with its level, and together they are the text."""
    events: list[TokenEvent] = []
    text, trace, _ = engine.trace(PROMPT, 9, precision="adaptive:5:entropy", on_token=events.append)
    assert [event.index for event in events] == list(range(len(trace.token_ids)))
    assert tuple(event.bits for event in events) == trace.token_bits
    assert text.startswith("".join(event.text for event in events))
    assert all(event.total == 9 and event.entropy_nats >= 0 for event in events)


def test_the_bytes_read_are_those_of_the_levels_used(engine):
    """A pass over the prompt reads what its highest level needs, every step what its own level needs."""
    _, trace, _ = engine.trace(PROMPT, 6, precision="adaptive:5:entropy")
    read = engine.nested.bytes_read
    assert trace.weight_bytes_read == read(int(max(trace.prompt_bits))) + sum(map(read, trace.token_bits[1:]))
    assert read(4) < read(5) < read(6) < read(8) <= engine.weights_bytes()


def test_the_verbs_work_one_by_one():
    """Score, plan, run and measure without an engine in sight; a second call uses the same nested copy."""
    model = load_model("tiny-random-phi3", dtype="float32")
    scored = score_importance(model, PROMPT, ["position", "token_id"])
    plan = make_plan(parse_precision("adaptive:5:position"), scored.importance, facts=scored.facts)
    trace = run(model, PROMPT, "adaptive:5:position", max_new_tokens=3)
    assert trace.prompt_bits == tuple(plan.bits[0].double().tolist())
    report = measure(model, trace)
    assert report["precision"]["mean_bits"] == trace.mean_bits
    assert report["memory"]["weights_bytes"] < report["memory"]["baseline_weights_bytes"]


def test_a_saved_plan_reproduces_the_run(engine, tmp_path):
    """Same bits for the same prompt, and the same first token; an adaptive cache may go with it."""
    plan = engine.plan(engine.score(PROMPT, "entropy"), "adaptive:5.5:entropy")
    file = Path(plan.save(tmp_path / "plan.json") or tmp_path / "plan.json")
    _, direct, _ = engine.trace(PROMPT, 3, precision="adaptive:5.5:entropy")
    _, again, metrics = engine.trace(PROMPT, 3, precision=f"plan:{file}", kv="adaptive:4")
    assert again.prompt_bits == direct.prompt_bits
    assert again.token_ids[0] == direct.token_ids[0]
    assert metrics["precision"]["request"] == f"plan:{file}"


def test_the_configured_signals_decide_an_adaptive_run():
    """Not the default signal; a signal named in the call still wins."""
    by_place = TAPEngine(TAPConfig(signals=["position"], mean_bits=5, time_reference=False))
    by_place.adopt(tiny_model("llama"))
    _, configured, _ = by_place.trace(PROMPT, 2)
    _, named, _ = by_place.trace(PROMPT, 2, precision="adaptive:5:position")
    _, other, _ = by_place.trace(PROMPT, 2, precision="adaptive:5:entropy")
    assert configured.prompt_bits == named.prompt_bits != other.prompt_bits


def test_a_level_that_is_not_stored_is_added(tmp_path):
    """Asking for 3 and 2 bits nests the model again; the levels stored before stay."""
    engine = TAPEngine(TAPConfig(time_reference=False))
    engine.load_model("tiny-random-llama")
    assert 3 not in engine.nested.levels
    _, trace, _ = engine.trace(PROMPT, 3, precision="3")
    assert set(trace.prompt_bits) == {3.0}
    assert {3, 4, 5, 6, 8} <= set(engine.nested.levels)
    _, trace, _ = engine.trace(PROMPT, 3, precision="2")
    assert set(trace.token_bits) == {2}


def test_a_nested_model_can_be_adopted_again():
    """A second engine takes over the planes that are there."""
    first = TAPEngine(TAPConfig(time_reference=False))
    handle = first.load_model("tiny-random-llama")
    second = TAPEngine(TAPConfig(time_reference=False))
    second.adopt(handle)
    assert second.nested is first.nested
    assert second.trace(PROMPT, 4, precision="5")[1].token_ids == first.trace(PROMPT, 4, precision="5")[1].token_ids


def test_more_levels_are_not_taken_from_other_weights():
    """An adopted model whose name leads elsewhere is never silently exchanged."""
    engine = TAPEngine(TAPConfig(time_reference=False))
    engine.adopt(tiny_model("llama", seed=5))
    before = engine.trace(PROMPT, 4, precision="8")[1].token_ids
    with pytest.raises(ExecutionError, match="other weights") as caught:
        engine.generate(PROMPT, 2, precision="2")
    assert "\n" not in str(caught.value)
    assert engine.trace(PROMPT, 4, precision="8")[1].token_ids == before
    with pytest.raises(ExecutionError, match="other weights"):
        engine.generate(PROMPT, 2, precision="16")


def test_the_reference_is_what_was_asked_for():
    """16 bits by default; asking for another dtype afterwards does not give the one that is there."""
    engine = TAPEngine(TAPConfig(time_reference=False))
    engine.load_model("tiny-random-llama")
    for dtype, expected in ((None, torch.bfloat16), ("float32", torch.float32), (None, torch.bfloat16)):
        reference: Any = engine.reference(dtype=dtype)
        assert {p.dtype for p in reference.model.parameters()} == {expected}
    assert engine.reference() is reference


def test_offloading_gives_the_same_tokens_as_without(tmp_path, monkeypatch):
    """Half of the weights on disk; two engines do not overwrite each other's files."""
    monkeypatch.setenv("TAPWB_CACHE_DIR", str(tmp_path))
    engines: list[Any] = []
    for seed in (0, 1):
        options = {"offload_to_cpu": True, "max_memory_bytes": 97_000, "time_reference": False}
        engine = TAPEngine(TAPConfig(**options))
        engine.adopt(tiny_model("llama", seed=seed, n_layers=4))
        engines.append(engine)
    for seed, engine in enumerate(engines):
        assert "disk" in engine._loaded.device_map.values()
        plain = TAPEngine(TAPConfig(time_reference=False))
        plain.adopt(tiny_model("llama", seed=seed, n_layers=4))
        here, there = (e.trace(PROMPT, 6, precision="adaptive:5.5:entropy") for e in (plain, engine))
        assert here[1].token_ids == there[1].token_ids
        assert 0 < there[2]["memory"]["weights_bytes"] < here[2]["memory"]["weights_bytes"]
    assert len(list((tmp_path / "offload").iterdir())) == 2
    engines.clear()
    del engine
    gc.collect()
    assert list((tmp_path / "offload").iterdir()) == []


def test_memory_efficient_mode_keeps_the_cache_at_8_bits():
    """Unless a call asks otherwise."""
    engine = TAPEngine(TAPConfig(memory_efficient_mode=True, time_reference=False))
    engine.load_model("tiny-random-llama")
    long = "Light bends. " * 24
    kv = {kv: engine.generate(long, 2, precision="8", kv=kv)[1]["memory"]["kv_bytes"] for kv in (None, 8, 16, 2)}
    assert kv[None] == kv[8] < kv[16]
    assert kv[2] < kv[8]


def test_the_baseline_cache_counts_a_sliding_window_only_up_to_its_size():
    """Otherwise a sliding model would seem to save memory that no 16-bit run takes."""
    engine = TAPEngine(TAPConfig(time_reference=False))
    engine.load_model("tiny-random-mistral")
    _, trace, metrics = engine.trace("Light bends. " * 20, 3, precision="8")
    n_cached = len(trace.prompt_ids) + len(trace.step_s)
    assert metrics["memory"]["baseline_kv_bytes"] == engine.anatomy.kv_bytes(n_cached, 16)
    assert metrics["memory"]["baseline_kv_bytes"] < n_cached * engine.anatomy.kv_bytes(1, 16)


def test_a_cancelled_run_gives_what_there_is_and_the_engine_goes_on():
    """Through a real job: three tokens, then the button; no second run is timed after it."""
    engine = TAPEngine(TAPConfig())
    engine.load_model("tiny-random-llama")
    runner = JobRunner()

    def work(job: Any) -> Any:
        def stop(event: TokenEvent) -> None:
            if event.index == 2:
                job.cancel()

        return engine.trace(PROMPT, 50, precision="8", on_token=stop, progress=job)

    job = runner.submit("generate", work)
    _, trace, metrics = job.wait(60)
    runner.shutdown()
    assert (job.state, len(trace.token_ids), metrics["finish_reason"]) == (JobState.DONE, 3, "cancelled")
    _, whole, _ = engine.trace(PROMPT, 5, precision="8")
    assert whole.token_ids[:3] == trace.token_ids


def test_cancelling_the_comparison_keeps_the_answer():
    """Once the answer is there, the timed 16-bit run is all that is left to stop; in this mode its weights go, too."""
    engine = TAPEngine(TAPConfig(memory_efficient_mode=True))
    engine.load_model("tiny-random-llama")

    class StopAtSecondPrompt:
        prompts = 0

        def stage(self, name: str, total: int | None = None, unit: str = "") -> None:
            self.prompts += name == "read the prompt"
            if self.prompts == 2:
                raise Cancelled

        def advance(self, steps: int = 1) -> None: ...

        def check_cancelled(self) -> None: ...

    text, metrics = engine.generate(PROMPT, 4, precision="8", progress=StopAtSecondPrompt())
    assert text
    assert isinstance(metrics["precision"]["energy_saved_pct"], Unavailable)
    assert engine._loaded is not None
    assert engine._loaded.reference is None


def test_cancelling_while_the_weights_are_nested_again_leaves_the_old_copy():
    """The new copy is taken over only when it is complete."""
    engine = TAPEngine(TAPConfig(time_reference=False))
    engine.load_model("tiny-random-llama")
    before = engine.trace(PROMPT, 4, precision="5")[1].token_ids

    class Stop:
        def __init__(self) -> None:
            self.nesting = False

        def stage(self, name: str, total: int | None = None, unit: str = "") -> None:
            self.nesting = name == "quantize weights"

        def advance(self, steps: int = 1) -> None:
            if self.nesting:
                raise KeyboardInterrupt

        def check_cancelled(self) -> None: ...

    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPT, 2, precision="2", progress=Stop())
    assert engine.trace(PROMPT, 4, precision="5")[1].token_ids == before


def _floats_alive() -> list[torch.Tensor]:
    gc.collect()
    return [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor) and t.is_floating_point()]


def test_no_floating_point_copy_of_a_quantized_weight_is_alive():
    """Of every tensor the garbage collector knows, after runs and with the reference released."""
    before = {id(t): t for t in _floats_alive()}
    engine = TAPEngine(TAPConfig(dtype="float32"))
    handle = engine.load_model("tiny-random-falcon", levels=[3])
    engine.generate(PROMPT, 3)
    sizes = {s.out_features * s.in_features for s in handle.anatomy.linears} | {handle.anatomy.vocab_size * 64}
    with_reference = [t.numel() for t in _floats_alive() if id(t) not in before]
    assert sizes & set(with_reference), "the scan must see the reference while it is there"
    engine.release_reference()
    assert not sizes & {t.numel() for t in _floats_alive() if id(t) not in before}

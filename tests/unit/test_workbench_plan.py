"""The workbench plans live, keeps what was set by hand over every plan, runs that plan, and opens measured points.

Seed features: S1.8
"""

import json
import time

import pytest
import torch

from tapwb.core.errors import PlanError
from tapwb.engine import TAPConfig, TAPEngine
from tapwb.evals.pareto import ParetoSettings
from tapwb.plan.overrides import PlanEdit
from tapwb.plan.precision_plan import PrecisionPlan
from tapwb.workbench import EngineShelf, Workbench

MODEL = "tiny-random-llama"
WAIT_S = 120
SETTINGS = ParetoSettings(means=(4.5, 5.5), signals=("entropy",), context=16, windows=2)


@pytest.fixture(scope="module")
def shelf() -> EngineShelf:
    """A shelf of this module's own."""
    return EngineShelf()


@pytest.fixture
def bench(shelf: EngineShelf, tmp_path, monkeypatch) -> Workbench:
    """A loaded workbench whose runs and measurements stay in this test."""
    monkeypatch.setenv("TAPWB_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("TAPWB_CACHE_DIR", str(tmp_path / "cache"))
    made = Workbench(
        shelf=shelf, model_id=MODEL, prompt="Tokens of a prompt: สวัสดี!", max_new_tokens=3, with_reference=False
    )
    made.load().wait(WAIT_S)
    return made


def test_a_new_budget_is_planned_at_once(bench):
    """No job: the plan follows the dial in a fraction of a second, edits included."""
    bench.edit(PlanEdit("tokens", (3, 4), 8))
    last_job = bench.job
    started_s = time.perf_counter()
    bench.mean_bits = 4.7
    assert bench.replan()
    assert time.perf_counter() - started_s < 0.5
    assert bench.job is last_job
    assert bench.planned.target_mean_bits == 4.7
    assert bench.plan.bits[0, [3, 4]].tolist() == [8, 8]


def test_planners_that_need_a_measurement_ask_for_a_job(bench):
    """Layers are measured once; after that their plans come at once, too."""
    bench.planner = "layers+tokens"
    assert not bench.replan()
    bench.make_plan().wait(WAIT_S)
    assert bench.plan.n_layer_groups == len(bench.card.sizes.names)
    bench.mean_bits = 6.0
    assert bench.replan()
    assert bench.plan.mean_bits == pytest.approx(6, abs=0.01)
    assert bench.outlook(bench.plan).relative_damage.source.startswith("estimated:measured damage of the layers")


def test_undo_redo_and_reset_change_the_plan(bench):
    """Each step is laid over the planner's plan anew."""
    untouched = bench.plan
    bench.edit(PlanEdit("tokens", (5,), 8))
    changed = bench.plan
    bench.undo()
    assert bench.plan == untouched
    assert bench.edited is None
    bench.redo()
    assert bench.plan == changed
    bench.reset_edits()
    assert bench.plan == untouched
    bench.undo()
    assert bench.plan == changed


def test_an_edit_that_cannot_be_changes_nothing(bench):
    """The reason is on the screen, the plan as before."""
    before = bench.plan
    bench.edit(PlanEdit("tokens", (500,), 8))
    assert "does not exist" in bench.error
    assert bench.plan is before
    assert bench.history is None


def test_another_prompt_forgets_tokens_and_keeps_layers(bench):
    """What was set for tokens belonged to the old text."""
    bench.edit(PlanEdit("tokens", (1,), 8))
    bench.edit(PlanEdit("layers", (0,), 4))
    bench.prompt = "Another text"
    bench.score().wait(WAIT_S)
    assert [edit.axis for edit in bench.history.edits] == ["layers"]
    assert (bench.plan.bits[0] == 4).all()


def test_a_run_uses_the_plan_on_the_screen(bench):
    """Prompt tokens are read at the edited bits; an edited layer holds for the answer, too."""
    bench.planner, bench.mean_bits = "uniform", 5
    assert bench.replan()
    bench.set_keep_mean(False)
    bench.edit(PlanEdit("tokens", (0, 1), 8))
    bench.edit(PlanEdit("layers", bench.card.sizes.where(role="mlp.down"), 8))
    expected = bench.plan.mean_bits
    engine = bench._shelf.engine(MODEL, bench.job)
    _, trace, _ = engine.trace(bench.prompt, 3, precision=bench.edited)
    sizes = torch.tensor(bench.card.sizes.n_weights, dtype=torch.float64)
    assert trace.prompt_bits[0] == pytest.approx(8)
    assert sum(trace.prompt_bits) / len(trace.prompt_bits) == pytest.approx(expected)
    down = sizes[list(bench.card.sizes.where(role="mlp.down"))].sum() / sizes.sum()
    assert trace.token_bits[-1] == pytest.approx(float(5 + 3 * down), abs=1e-4)
    bench.run().wait(WAIT_S)
    assert bench.run_result.n_edits == 2


def test_an_exported_plan_runs_from_its_file_and_comes_back(bench, tmp_path):
    """``plan:FILE`` reads the same bits, layer groups included; another text or other layers are refused."""
    bench.edit(PlanEdit("layers", (2, 3), 8))
    file = bench.plan.save(tmp_path / "plan.json")
    engine = TAPEngine(TAPConfig(time_reference=False))
    engine.load_model(MODEL)
    _, trace, _ = engine.trace(bench.prompt, 2, precision=f"plan:{file}")
    assert sum(trace.prompt_bits) / len(trace.prompt_bits) == pytest.approx(bench.plan.mean_bits)
    exported = bench.plan
    bench.reset_edits()
    bench.import_plan(file.read_text(encoding="utf-8"), "plan.json")
    assert torch.equal(bench.plan.bits, exported.bits)
    assert str(bench.edited.request) == "plan:plan.json"
    bench.mean_bits = 4.6
    assert bench.replan()
    assert bench.imported is None
    bench.import_plan("{", "x.json")
    assert "not JSON" in bench.error
    data = json.loads(file.read_text(encoding="utf-8"))
    bench.import_plan(json.dumps(data | {"text_id": "0" * 16}), "x.json")
    assert "another text" in bench.error
    short = PrecisionPlan.from_json(data | {"bits": data["bits"][:3], "group_weights": data["group_weights"][:3]})
    with pytest.raises(PlanError, match="layer groups"):
        engine.trace(bench.prompt, 1, precision=f"plan:{short.save(tmp_path / 'short.json')}")


def test_measured_points_open_their_runs_and_set_the_inputs(bench):
    """Measured once, found again by another user, each point a run; its precision becomes that of the workbench."""
    bench.measure_settings = SETTINGS
    bench.measure().wait(WAIT_S)
    assert bench.measurement.source == "measured"
    second = Workbench(shelf=bench._shelf, model_id=MODEL, prompt=bench.prompt, measure_settings=SETTINGS)
    second.adopt()
    second.find_measurement()
    assert second.measurement.source == "cache"
    second.point = "layers:5.5:entropy"
    assert second.point_record().settings["precision"] == "layers:5.5:entropy"
    second.use_point("layers:5.5:entropy")
    assert second.replan() or second.job.wait(WAIT_S) is None
    assert (second.precision, second.levels) == ("layers:5.5:entropy", (3, 4, 5, 6, 8))
    assert second.plan.mean_bits == pytest.approx(5.5, abs=0.02)
    second.use_point("4")
    assert (second.precision, second.plan.bits.unique().tolist()) == ("4", [4])
    second.planner = "adaptive"
    assert second.levels == ()
    second.open_measurement("{}", "x.json")
    assert "no Pareto measurement" in second.error
    assert second.measurement is not None


def test_cancelling_a_measurement_keeps_nothing(bench, tmp_path):
    """No half result in the cache, no runs."""
    bench.measure_settings = SETTINGS
    job = bench.measure()
    job.cancel()
    with pytest.raises(Exception, match="cancelled"):
        job.wait(WAIT_S)
    assert bench.measurement is None
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "cache" / "pareto").exists()

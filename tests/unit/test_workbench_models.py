"""Changing the model: what works stays until another one is there, and the way back is one call."""

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tapwb.models.tiny import save_tiny
from tapwb.workbench import EngineShelf, Workbench

MODEL, OTHER = "tiny-random-llama", "tiny-random-gpt2"
WAIT_S = 120


def loaded(shelf: EngineShelf) -> Workbench:
    """A workbench with a loaded model and a scored prompt."""
    workbench = Workbench(shelf=shelf, model_id=MODEL, prompt="Hello, สวัสดี!")
    workbench.load().wait(WAIT_S)
    return workbench


def fails_to_load(workbench: Workbench, model_id: str) -> None:
    """Name a model that cannot be loaded, and try."""
    workbench.model_id = model_id
    with pytest.raises(Exception, match=r"no-such|NaN"):
        workbench.load().wait(WAIT_S)
    assert workbench.error


def test_a_name_that_leads_nowhere_costs_nothing() -> None:
    """Even where there is room for one model only, the one that works stays loaded, with its scores and its plan."""
    shelf = EngineShelf(capacity=1)
    workbench = loaded(shelf)
    card, scored, plan = workbench.card, workbench.scored, workbench.plan
    fails_to_load(workbench, "./no-such-folder")
    assert (workbench.card, workbench.scored, workbench.plan) == (card, scored, plan)
    assert shelf.card(MODEL) is card
    assert workbench.names_another
    assert workbench.go_back() is None
    assert (workbench.model_id, workbench.error, workbench.is_stale) == (MODEL, "", False)


def test_a_model_that_had_to_make_room_comes_back(tmp_path: Path) -> None:
    """Weights that turn out to be broken cost the old model its room; its card stays, and going back loads it."""
    shelf = EngineShelf(capacity=1)
    workbench = loaded(shelf)
    card = workbench.card
    save_tiny("llama", tmp_path)
    file = next(tmp_path.glob("*.safetensors"))
    weights = load_file(file)
    next(iter(weights.values()))[0] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    fails_to_load(workbench, str(tmp_path))
    assert workbench.card is card
    assert shelf.card(MODEL) is None
    workbench.go_back().wait(WAIT_S)
    assert shelf.card(MODEL) is not None
    assert workbench.card.info.id == workbench.model_id == MODEL
    assert not workbench.is_stale


def test_scores_of_one_model_never_stand_beside_the_card_of_another() -> None:
    """While the new one scores, nothing of the old one is shown; without a prompt nothing is."""
    workbench = loaded(EngineShelf())
    seen = []
    workbench.param.watch(lambda _event: seen.append((workbench.card.info.id, workbench.scored)), ["card"])
    workbench.model_id = OTHER
    workbench.load().wait(WAIT_S)
    assert seen[0] == (OTHER, None)
    assert workbench.scored.model_id == OTHER
    workbench.param.update(model_id=MODEL, prompt="")
    workbench.load().wait(WAIT_S)
    assert (workbench.card.info.id, workbench.scored, workbench.plan) == (MODEL, None, None)


def test_the_time_of_scoring_is_estimated_from_a_timed_one() -> None:
    """Nothing is said before something was timed, nor about another model; twice the text is about twice the time."""
    workbench = loaded(EngineShelf())
    first = workbench.scoring_outlook()
    assert first.n_tokens == first.n_timed == workbench.scored.scored.token_ids.shape[1]
    assert first.time.value == pytest.approx(workbench.scored.scored.elapsed_s)
    assert not first.time.is_measured
    workbench.prompt *= 2
    assert workbench.scoring_outlook().time.value == pytest.approx(2 * first.time.value, rel=0.1)
    workbench.model_id = OTHER
    assert workbench.scoring_outlook() is None
    assert Workbench(shelf=EngineShelf(), model_id=MODEL).scoring_outlook() is None


def test_a_first_run_is_short() -> None:
    """Sixteen tokens end within seconds on a laptop."""
    assert Workbench(model_id=MODEL).max_new_tokens == 16

"""``best:MEAN`` takes the best of what is at hand for a model, and says what that was."""

import pytest
import torch

from tapwb.core.errors import ExecutionError, PlanError, PrecisionSpecError
from tapwb.core.precision import BEST_LEVELS, parse_precision
from tapwb.engine import TAPConfig, TAPEngine
from tapwb.engine.best import settle
from tapwb.engine.layer_sensitivity import cells_fingerprint, layer_damage_of
from tapwb.evals.session import ComparisonSession
from tapwb.execution.head_file import find_head, head_path
from tapwb.execution.router_file import find_router, router_path
from tapwb.plan import make_plan
from tapwb.training.importance_head import HeadSettings, train_head
from tapwb.training.router import RouterSettings, train_router

TEXT = "".join(chr(33 + (i * i * 7 + i // 5) % 90) for i in range(2000))


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """A tiny model with an empty cache, so that nothing is at hand; its own data folder is empty, too."""
    monkeypatch.setattr("tapwb.core.settings.cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr("tapwb.core.settings.data_dir", lambda: tmp_path / "data")
    made = TAPEngine(TAPConfig(precision_levels=(8,), mean_bits=8, time_reference=False))
    made.load_model("tiny-random-llama", levels=[3, 4, 5, 6, 8])
    return made


def test_it_climbs_as_more_comes_to_hand(engine):
    """Nothing: entropy; a head: learned; layers measured: both; a router: the router; a run tells which it was."""
    best = parse_precision("best:5.5")
    assert str(settle(engine, best)) == "adaptive:5.5:entropy"
    assert settle(engine, best).levels == (4, 5, 6, 8)
    train_head(engine, TEXT, HeadSettings(context=64, windows=6, target="damage"))
    assert str(settle(engine, best)) == "adaptive:5.5:learned"
    layer_damage_of(engine)
    assert str(settle(engine, best)) == "layers:5.5:learned"
    assert settle(engine, best).levels == (3, 4, 5, 6, 8)
    head_path(engine.loaded.info.checksum_sha256).unlink()
    assert str(settle(engine, best)) == "layers:5.5"
    train_router(engine, TEXT, RouterSettings(64, 6))
    assert str(settle(engine, best)) == "router:5.5"
    _, metrics = engine.generate("Hello", 3, precision="best:5.5")
    assert metrics["precision"]["request"] == "router:5.5"
    session = ComparisonSession.around(engine, engine.reference(dtype="float32"))
    ids = engine.tokenize(TEXT[:60])
    router = parse_precision("router:5.5", levels=BEST_LEVELS)
    assert torch.equal(session.run(ids, best).logits, session.run(ids, router).logits)


def test_a_mean_below_four_keeps_the_levels_that_reach_it(engine):
    """Tokens alone at 3.5 bits need 3."""
    assert settle(engine, parse_precision("best:3.5")).levels == (3, 4, 5, 6, 8)


def test_other_requests_stay_as_they_are(engine):
    """Nothing is looked up for them."""
    request = parse_precision("adaptive:5:surprisal")
    assert settle(engine, request) is request


def test_what_comes_along_is_taken_where_the_user_has_nothing(engine, tmp_path):
    """A head and a router of the program; the user's own come first."""
    checksum, cells = engine.loaded.info.checksum_sha256, cells_fingerprint(engine.nested)
    assert find_head(checksum) == head_path(checksum)
    assert find_router(checksum, cells) == router_path(checksum, cells)
    for own, find in ((head_path(checksum), find_head), (router_path(checksum, cells), find_router)):
        shipped = tmp_path / "data" / own.parent.name / own.name
        shipped.parent.mkdir(parents=True)
        shipped.write_bytes(b"")
        arguments = (checksum,) if find is find_head else (checksum, cells)
        assert find(*arguments) == shipped
        own.parent.mkdir(parents=True, exist_ok=True)
        own.write_bytes(b"")
        assert find(*arguments) == own


def test_misuse_is_refused():
    """A signal beside it, a planner that has no model, an engine without one."""
    with pytest.raises(PrecisionSpecError, match="takes no signal"):
        parse_precision("best:5.5:entropy")
    with pytest.raises(PlanError, match="stands for another"):
        make_plan(parse_precision("best:5.5"), n_tokens=4)
    with pytest.raises(ExecutionError, match="no model is loaded"):
        settle(TAPEngine(), parse_precision("best:5.5"))
    assert str(parse_precision("best:4")) == "best:4"

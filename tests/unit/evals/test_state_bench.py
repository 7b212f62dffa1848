"""What states at few bits cost, and that the bench would notice a codec that fails.

Seed features: S1.16, S1.19
"""

import pytest
import torch

from tapwb.core.errors import UsageError
from tapwb.core.reading import Unavailable
from tapwb.evals.state_bench import (
    StateLimits,
    bits_by_rank,
    log_normal_sequences,
    measure_state,
    model_update_rows,
    recovered_signal,
    sequences,
    update_errors,
)
from tapwb.execution.state.default import DEFAULT_CODEC, WRITE_EVERY
from tapwb.models.zoo import zoo_folder


@pytest.fixture(scope="module")
def table():
    """A short run."""
    return measure_state(steps=256, seeds=3)


def error_of(table, **wanted):
    """The error of the one row with these values."""
    (row,) = (r for r in table.rows if all(r.get(name) == value for name, value in wanted.items()))
    return row["relative_error"]["value"]


def test_the_default_holds_and_rounding_to_the_nearest_fails(table):
    """The gate of the bench, check by check."""
    assert table.gate["met"], table.gate["checks"]
    assert error_of(table, kind="drift", codec=DEFAULT_CODEC, write_every_tokens=WRITE_EVERY, decay="mamba2") <= 0.003
    assert error_of(table, kind="drift", codec="int8", write_every_tokens=1, decay="mamba2") > 0.01


def test_writing_less_often_helps_every_codec(table):
    """Two and more times less error with one write in sixteen tokens, with every decay."""
    for decay in ("mamba2", "retnet", "none"):
        often = error_of(table, kind="drift", codec="int8", write_every_tokens=1, decay=decay)
        rarely = error_of(table, kind="drift", codec="int8", write_every_tokens=WRITE_EVERY, decay=decay)
        assert rarely < often / 2


def test_without_decay_the_default_grows_no_faster_than_a_root(table):
    """Fourfold length, at most about twice the error: rounding errors add up like a random walk, not like a sum."""
    (row,) = (
        r
        for r in table.rows
        if (r["kind"], r.get("codec"), r.get("write_every_tokens"), r.get("decay"))
        == ("drift", DEFAULT_CODEC, WRITE_EVERY, "none")
    )
    curve = {int(n): value["value"] for n, value in row["relative_error_at_tokens"].items()}
    assert curve[128] < 3.2 * curve[32]


@pytest.mark.minutes
def test_over_2048_tokens_the_gate_is_met():
    """As the command runs it."""
    long = measure_state()
    assert long.gate["met"], long.gate["checks"]


def test_slow_signals_survive_the_default_and_die_under_rounding_to_the_nearest():
    """A sum of 2,048 equal increments."""
    assert recovered_signal(DEFAULT_CODEC, WRITE_EVERY, 2048) >= 0.95
    assert recovered_signal("int8", 1, 2048) < 0.2
    assert recovered_signal("int8-random", 1, 2048) == pytest.approx(1, abs=0.2)


def test_bits_follow_what_tokens_write(table):
    """At equal means: by write strength at least 1.5 times better than equal bits; random is worse, inverted worst."""
    errors = {row["choice"]: row["relative_error"]["value"] for row in table.rows if row["kind"] == "updates"}
    assert errors["uniform"] >= 1.5 * errors["by write strength"]
    assert errors["random"] > errors["uniform"]
    assert errors["inverted"] > errors["random"]
    assert {row["mean_bits"] for row in table.rows if row["kind"] == "updates"} == {5.0}


def test_the_bits_of_a_rank_meet_their_mean():
    """For any number of tokens, up to one token."""
    strength = torch.rand(2, 37, generator=torch.Generator().manual_seed(0))
    bits = bits_by_rank(strength).view(2, 37)
    assert float(bits.double().mean()) == pytest.approx(5, abs=4 / 37)
    assert float(strength[bits == 8].min()) > float(strength[bits == 4].median())


def test_exact_updates_cost_nothing():
    """Sixteen bits are the reference."""
    form, inputs = log_normal_sequences(40, 2, 0)
    assert max(update_errors(form, inputs, {"all": 16})["all"]) < 1e-5


def test_a_limit_that_is_not_held_is_told():
    """A gate that cannot fail is none."""
    strict = measure_state(steps=64, seeds=2, limits=StateLimits(drift=1e-9))
    assert not strict.gate["met"]
    assert [check["name"] for check in strict.gate["checks"] if not check["met"]] == ["drift of the default"]


def test_what_cannot_be_measured_is_refused():
    """Too short, too few, an unknown decay."""
    with pytest.raises(UsageError, match="tell nothing"):
        measure_state(steps=16)
    with pytest.raises(UsageError, match="tell nothing"):
        measure_state(seeds=1)
    with pytest.raises(UsageError, match="no decay of this bench"):
        sequences("half", 32, 2, 0)


def test_on_a_trained_mamba_choices_keep_their_order_and_equal_bits_win():
    """Tokens of tiny-mamba differ little in what they write, so two levels far apart lose to one between them."""
    folder = zoo_folder("tiny-mamba")
    if isinstance(folder, Unavailable):
        pytest.skip(folder.reason)
    rows = {row["choice"]: row for row in model_update_rows("tiny-mamba", tokens=256)}
    mean = {name: row["relative_error"]["value"] for name, row in rows.items()}
    assert mean["by write strength"] < mean["random"] < mean["inverted"]
    assert mean["uniform"] < mean["by write strength"]
    assert all(row["relative_error"]["n"] == 4 for row in rows.values())

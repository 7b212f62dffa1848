"""The certificate: acceptance, costs, speedup with interval, and the length from which speculation pays.

Seed features: S3.8, S3.11
"""

import pytest

from tapwb.core.reading import Reading, Unavailable
from tapwb.execution.speculative.records import Round, SpeculationRecord
from tapwb.metrics.speculation import certify, seed_metrics, speculation_metrics


def made(rounds, **options):
    """A record of rounds given as (drafted, accepted, draft seconds, verify seconds)."""
    settings = {"prefill_s": 4.0, "draft_prefill_s": 0.0, "is_greedy": True} | options
    written = tuple(
        Round(tuple(range(1 + accepted)), drafted, accepted, draft_s, verify_s, (0.0,) * (1 + accepted))
        for drafted, accepted, draft_s, verify_s in rounds
    )
    return SpeculationRecord("self:4", 8, written, **settings)


#: Plain steps take 1 s; rounds of two guesses take 0.5 s each and 1.25 s to verify.
STEADY = [(0, 0, 0.0, 1.0)] * 4 + [(2, 2, 1.0, 1.25), (2, 0, 1.0, 1.25), (2, 1, 1.0, 1.25), (2, 2, 1.0, 1.25)]


def test_acceptance_counts_guesses_only():
    """5 of 8; the target's own tokens would make it 13 of 8."""
    found = certify(made(STEADY))
    assert (found.acceptance.value, found.acceptance.n) == (5 / 8, 8)


def test_costs_are_in_plain_steps_of_the_same_run():
    """Medians: a guess half a step, three rows a step and a quarter, the prompt four steps."""
    found = certify(made(STEADY))
    assert found.draft_cost.value == pytest.approx(0.5)
    assert found.verify_cost[3].value == pytest.approx(1.25)
    assert found.fixed_tokens.value == pytest.approx(4.0)


def test_the_speedup_is_plain_time_over_time_taken():
    """13 tokens, 4 of them plain, in 13 s: exactly 1.0; with guesses that all stand it is above, interval included."""
    even = certify(made(STEADY)).speedup
    assert even.value == pytest.approx(13 / 13)
    assert even.ci95[0] < 1 < even.ci95[1]
    better = certify(made([(0, 0, 0.0, 1.0)] * 4 + [(2, 2, 1.0, 1.25)] * 40)).speedup
    assert better.value == pytest.approx(124 / 94)
    assert better.ci95[0] > 1


def test_the_formula_joins_fixed_costs_and_steady_gain():
    """S(n) = (F + n) / (F + X + n / s); half of the gain at F s; the crossover where both lines meet."""
    rounds = [(0, 0, 0.0, 1.0)] * 4 + [(3, 3, 0.5, 1.5)] * 30
    found = certify(made(rounds, draft_prefill_s=6.0))
    s = found.speedup.value
    assert s == pytest.approx(124 / 64)
    assert found.speedup_of(50).value == pytest.approx((4 + 50) / (4 + 6 + 50 / s))
    crossover = found.crossover_tokens.value
    assert crossover == pytest.approx(6 / (1 - 1 / s))
    assert found.speedup_of(round(crossover) - 2).value < 1 < found.speedup_of(round(crossover) + 2).value
    without = certify(made(rounds))
    assert without.speedup_of(round(without.half_gain_tokens.value)).value == pytest.approx((1 + s) / 2, rel=0.02)
    assert without.crossover_tokens.value == 0


def test_tried_depths_count_as_extra_cost():
    """Two first rounds that wrote two tokens in 8 s are X, not part of the steady gain."""
    rounds = [(0, 0, 0.0, 1.0), (6, 0, 6.0, 1.0)] + [(0, 0, 0.0, 1.0)] * 2 + [(1, 1, 0.1, 0.9)] * 30
    found = certify(made(rounds, n_first_rounds=2))
    assert found.speedup.value == pytest.approx(62 / 32)
    assert found.extra_tokens.value == pytest.approx(8 - 2 / found.speedup.value)


@pytest.mark.parametrize(
    "rounds", [[], [(0, 0, 0.0, 1.0)] * 9, [(2, 1, 1.0, 1.0)] * 9], ids=["none", "plain", "no plain"]
)
def test_without_a_baseline_there_is_no_speedup(rounds):
    """The reason instead, also for S(n) and for what is derived."""
    found = certify(made(rounds))
    for value in (found.speedup, found.fixed_tokens, found.crossover_tokens, found.speedup_of(50)):
        assert isinstance(value, Unavailable)
    assert "plain steps" in found.speedup.reason
    assert found.to_json()["speedup_at"]["50"].keys() == {"unavailable"}


def test_slower_at_every_length_has_no_crossover():
    """Guesses that never stand."""
    found = certify(made([(0, 0, 0.0, 1.0)] * 5 + [(2, 0, 1.0, 1.2)] * 9))
    assert found.speedup.value < 1
    assert isinstance(found.crossover_tokens, Unavailable)
    assert found.speedup_of(500).value < 1


def test_the_seeds_names_hold_what_they_say():
    """Seconds, an acceptance of at most 1, and a speedup that can exceed 1."""
    record = made([(0, 0, 0.0, 1.0)] * 4 + [(2, 2, 0.2, 1.0)] * 10)
    found = seed_metrics(record, "text", 35)
    assert set(found) == {
        "content", "total_time", "draft_time", "verify_time", "acceptance_rate", "tokens_generated", "speedup"
    }  # fmt: skip
    assert found["draft_time"] == pytest.approx(2.0)
    assert found["verify_time"] == pytest.approx(14.0)
    assert found["total_time"] == pytest.approx(20.0)
    assert found["acceptance_rate"].value == 1
    assert found["speedup"].value > 2


def test_a_runs_metrics_are_plain_data():
    """Rounds by depth and the certificate with its formula's values."""
    found = speculation_metrics(made(STEADY))
    assert found["depths"] == {"0": 4, "2": 4}
    assert found["tokens_per_round"] == pytest.approx(13 / 8)
    assert isinstance(found["speedup"], Reading)
    assert found["certificate"]["verify_cost"]["3"]["n"] == 4

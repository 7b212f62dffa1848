"""What speculation brought, from its own record: a certificate of the speedup, and the names of the source documents.

The unit of time is the plain step of the same run: steps without guesses stand between the rounds, so both saw the
same machine. With fixed costs of F such steps (reading the prompt), X more that only speculation has (the draft
model's reading, depths tried out) and a steady speedup s, an answer of n tokens is

    S(n) = (F + n) / (F + X + n / s)

times as fast. Half of the steady gain is reached at n = F s where X is 0.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tapwb.core.reading import Measured, Reading, Unavailable
from tapwb.execution.speculative.records import CLOCK, Round, SpeculationRecord

#: Fewer plain steps than this are no baseline.
_LEAST_PLAIN = 3
_RESAMPLES = 4000
#: Answer lengths that the source documents tell speedups for, tokens.
LENGTHS = (50, 200, 500)


@dataclass(frozen=True, slots=True)
class SpeedupCertificate:
    """Why an answer was, or was not, faster.

    Attributes:
        acceptance: Accepted over drafted.
        draft_cost: A guess, in plain steps.
        verify_cost: A verification in plain steps, by rows.
        speedup: Steady tokens a second over those of plain steps, with its interval over rounds.
        fixed_tokens: F: what both spend before the first token, in plain steps.
        extra_tokens: X: what only speculation spends, in plain steps; negative if the tried depths already paid.
        crossover_tokens: Shortest answer that speculation makes faster.
        half_gain_tokens: Answer length at which half of the steady gain is reached, where X is 0.
    """

    acceptance: Measured
    draft_cost: Measured
    verify_cost: dict[int, Reading]
    speedup: Measured
    fixed_tokens: Measured
    extra_tokens: Measured
    crossover_tokens: Measured
    half_gain_tokens: Measured

    def speedup_of(self, n_tokens: int) -> Measured:
        """S(n): how many times as fast an answer of ``n_tokens`` is, its prompt included."""
        s, fixed, extra = self.speedup, self.fixed_tokens, self.extra_tokens
        if not (isinstance(s, Reading) and isinstance(fixed, Reading) and isinstance(extra, Reading)):
            return s if isinstance(s, Unavailable) else Unavailable("there is no plain step to compare with")
        spent = fixed.value + extra.value + n_tokens / s.value
        if spent <= 0:
            return Unavailable(f"an answer of {n_tokens} tokens is shorter than the rounds that were measured")
        return Reading((fixed.value + n_tokens) / spent, "1", "computed:(F + n) / (F + X + n / s)")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, with S(n) at the lengths of the source documents."""
        names = [name for name in self.__slots__ if name != "verify_cost"]
        return {name: getattr(self, name).to_json() for name in names} | {
            "verify_cost": {str(rows): cost.to_json() for rows, cost in self.verify_cost.items()},
            "speedup_at": {str(n): self.speedup_of(n).to_json() for n in LENGTHS},
        }


def certify(record: SpeculationRecord, *, baseline: Sequence[Round] = (), seed: int = 0) -> SpeedupCertificate:
    """The certificate of one answer, or of several that were joined.

    Args:
        record: What was guessed.
        baseline: Plain steps timed beside it; by default those between its own rounds.
        seed: Seed of the bootstrap.
    """
    plain_s = [one.seconds for one in baseline or record.plain]
    if len(plain_s) < _LEAST_PLAIN or not record.drafting:
        missing = Unavailable(
            f"{len(plain_s)} plain steps and {len(record.drafting)} rounds with guesses were timed in this run: at "
            f"least {_LEAST_PLAIN} and 1 are needed. Write a longer answer, or let the depth be chosen."
        )
        return SpeedupCertificate(record.acceptance, missing, {}, missing, missing, missing, missing, missing)
    unit_s = statistics.median(plain_s)
    speedup = _steady_speedup(record, plain_s, seed)
    fixed = _in_steps(record.prefill_s, unit_s)
    first = record.rounds[: record.n_first_rounds]
    extra_s = record.draft_prefill_s + sum(one.seconds for one in first)
    extra = extra_s / unit_s - sum(len(one.token_ids) for one in first) / speedup.value
    return SpeedupCertificate(
        acceptance=record.acceptance,
        draft_cost=_median_cost([one.draft_s / one.n_drafted for one in record.drafting], unit_s),
        verify_cost=_verify_cost(record.drafting, unit_s),
        speedup=speedup,
        fixed_tokens=fixed,
        extra_tokens=Reading(extra, "step", CLOCK),
        crossover_tokens=_crossover(extra, speedup.value),
        half_gain_tokens=Reading(fixed.value * speedup.value, "token", "computed:F s"),
    )


def speculation_metrics(record: SpeculationRecord, *, seed: int = 0) -> dict[str, Any]:
    """What ``metrics["speculation"]`` holds of one answer.

    Args:
        record: What was guessed.
        seed: Seed of the bootstrap.
    """
    certificate = certify(record, seed=seed)
    return {
        "proposer": record.proposer,
        "target_bits": record.target_bits,
        "greedy": record.is_greedy,
        "acceptance": record.acceptance,
        "accepted": record.n_accepted,
        "drafted": record.n_drafted,
        "rounds": len(record.rounds),
        "depths": record.depths(),
        "tokens_per_round": record.n_tokens / len(record.rounds) if record.rounds else Unavailable("no round was run"),
        "draft_s": record.draft_s,
        "verify_s": record.verify_s,
        "speedup": certificate.speedup,
        "certificate": certificate.to_json(),
    }


def seed_metrics(record: SpeculationRecord, content: str, n_tokens: int) -> dict[str, Any]:
    """The same under the seed's names; a time is in seconds.

    Args:
        record: What was guessed.
        content: The answer.
        n_tokens: Its length.
    """
    return {
        "content": content,
        "total_time": record.prefill_s + record.draft_prefill_s + record.draft_s + record.verify_s,
        "draft_time": record.draft_s + record.draft_prefill_s,
        "verify_time": record.verify_s,
        "acceptance_rate": record.acceptance,
        "tokens_generated": n_tokens,
        "speedup": certify(record).speedup,
    }


def _steady_speedup(record: SpeculationRecord, plain_s: Sequence[float], seed: int) -> Reading:
    """Plain seconds for what the rounds wrote over the seconds they took; rounds and plain steps are resampled."""
    steady = record.rounds[record.n_first_rounds :]
    if sum(1 for one in steady if one.n_drafted) < 2:  # too short an answer: all rounds, tried depths included
        steady = record.rounds
    tokens = np.array([len(one.token_ids) for one in steady], dtype=np.float64)
    seconds = np.array([one.seconds for one in steady])
    unit = np.array(plain_s)
    rng = np.random.default_rng(seed)
    rounds = rng.integers(0, len(steady), (_RESAMPLES, len(steady)))
    units = rng.integers(0, len(unit), (_RESAMPLES, len(unit)))
    found = unit[units].mean(axis=1) * tokens[rounds].sum(axis=1) / seconds[rounds].sum(axis=1)
    low, high = np.quantile(found, [0.025, 0.975])
    value = float(unit.mean() * tokens.sum() / seconds.sum())
    return Reading(value, "1", CLOCK, n=len(steady), ci95=(float(low), float(high)))


def _crossover(extra: float, speedup: float) -> Measured:
    if speedup <= 1:
        return Unavailable("speculation is slower than plain steps at every length here")
    return Reading(max(0.0, extra / (1 - 1 / speedup)), "token", "computed:X / (1 - 1/s)")


def _verify_cost(rounds: Sequence[Round], unit_s: float) -> dict[int, Reading]:
    by_rows: dict[int, list[float]] = {}
    for one in rounds:
        by_rows.setdefault(one.n_drafted + 1, []).append(one.verify_s)
    return {rows: _median_cost(times, unit_s) for rows, times in sorted(by_rows.items())}


def _median_cost(times_s: Sequence[float], unit_s: float) -> Reading:
    return Reading(statistics.median(times_s) / unit_s, "step", CLOCK, n=len(times_s))


def _in_steps(seconds: float, unit_s: float) -> Reading:
    return Reading(seconds / unit_s, "step", CLOCK)

"""Does memory keep growing when the same thing is done again and again?

Memory after each call is a walk of steps. A leak is a step that comes back; a warm-up (an allocator's pool, a cache
that fills) is a step that stops. So only the second half of the calls is judged, by the mean step and a bootstrap
interval of it (steps, not levels: one late jump in a line of levels looks like a slope), and its last part must still
be growing. A suspicion is confirmed by as many calls again, which clears caches that fill slowly.
"""

import gc
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import psutil

from tapwb.core.errors import UsageError
from tapwb.core.jobs import NO_PROGRESS, Progress
from tapwb.core.reading import Reading

#: Fewer calls leave too few steps in the judged half for an interval.
LEAST_REPEATS = 12
#: Growth below this is allocator noise: a few pages per call.
TOLERATED_BYTES_PER_CALL = 32 * 1024
_RESAMPLES = 2000

Verdict = Literal["leak", "warm-up", "steady", "undecided"]


@dataclass(frozen=True, slots=True)
class LeakReport:
    """Outcome of a leak search.

    Attributes:
        verdict: ``leak``: growth goes on; ``warm-up``: it grew, then stopped; ``steady``: it never grew beyond the
            tolerance; ``undecided``: the interval allows both.
        bytes_per_call: Mean growth per call over the judged calls, with its interval, for the counter that grew most.
        counter: That counter: ``"process-rss"`` or ``"device"``.
        n_calls: Calls made, the discarded first ones included.
        levels_bytes: Memory after every call by counter, the one before the first call in front.
        explanation: One sentence for people.
    """

    verdict: Verdict
    bytes_per_call: Reading
    counter: str
    n_calls: int
    levels_bytes: Mapping[str, tuple[int, ...]]
    explanation: str

    @property
    def is_leak(self) -> bool:
        """Whether memory keeps growing."""
        return self.verdict == "leak"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "verdict": self.verdict,
            "bytes_per_call": self.bytes_per_call.to_json(),
            "counter": self.counter,
            "n_calls": self.n_calls,
            "levels_bytes": {name: list(levels) for name, levels in self.levels_bytes.items()},
            "explanation": self.explanation,
        }


def detect_leak(
    function: Callable[[], object],
    repeats: int = 20,
    *,
    warmup: int = 3,
    tolerance_bytes: int = TOLERATED_BYTES_PER_CALL,
    counters: Mapping[str, Callable[[], int]] | None = None,
    seed: int = 0,
    progress: Progress = NO_PROGRESS,
) -> LeakReport:
    """Call ``function`` repeatedly and judge whether memory keeps growing.

    Args:
        function: What may leak; called without arguments, its result is dropped.
        repeats: Calls to judge by (at least 12); a suspicion doubles them once.
        warmup: Calls before counting begins.
        tolerance_bytes: Growth per call that counts as none.
        counters: What to watch, name to a function giving bytes; by default resident memory of the process, and
            device memory where torch uses a card.
        seed: Seed of the bootstrap.
        progress: Is told of every call.

    Raises:
        UsageError: If there are too few repeats.
    """
    if repeats < LEAST_REPEATS or warmup < 0:
        raise UsageError(f"{repeats} repeats after {warmup} warm-up calls cannot show a leak. Ask for at least 12.")
    watched = dict(_default_counters() if counters is None else counters)
    levels: dict[str, list[int]] = {name: [] for name in watched}
    n_calls = 0

    def call(times: int, stage: str, n_unrecorded: int = 0) -> dict[str, tuple[Verdict, Reading]]:
        nonlocal n_calls
        progress.stage(stage, total=times, unit="call")
        for done in range(times):
            function()
            n_calls += 1
            progress.advance()
            if done >= n_unrecorded:
                _record(watched, levels)
        return {name: _judge(values, tolerance_bytes, seed) for name, values in levels.items()}

    with _only_new_garbage():
        if warmup == 0:
            _record(watched, levels)
        # The level after the last warm-up call is where the walk begins.
        findings = call(warmup + repeats, "search for leaks", max(0, warmup - 1))
        if any(verdict in ("leak", "undecided") for verdict, _ in findings.values()):
            findings = call(repeats, "confirm or clear the suspicion")
    order: list[Verdict] = ["leak", "undecided", "warm-up", "steady"]
    worst = min(findings, key=lambda name: (order.index(findings[name][0]), -findings[name][1].value))
    verdict, growth = findings[worst]
    frozen = {name: tuple(values) for name, values in levels.items()}
    return LeakReport(verdict, growth, worst, n_calls, frozen, _explain(verdict, growth, worst, n_calls))


def _judge(levels: list[int], tolerance_bytes: int, seed: int) -> tuple[Verdict, Reading]:
    steps = np.diff(np.asarray(levels, dtype=np.float64))
    judged = steps[len(steps) // 2 :]
    rng = np.random.default_rng(seed)
    means = judged[rng.integers(0, len(judged), (_RESAMPLES, len(judged)))].mean(axis=1)
    low, high = (float(end) for end in np.quantile(means, (0.025, 0.975)))
    growth = Reading(
        float(judged.mean()), "byte/call", "measured:steps-of-memory", float(means.std()), len(judged), (low, high)
    )
    still_growing = bool(judged[-(len(judged) // 2) :].mean() > tolerance_bytes)
    grew_before = bool(levels[len(levels) // 2] - levels[0] > tolerance_bytes * (len(levels) // 2))
    if low > tolerance_bytes and still_growing:
        return "leak", growth
    if growth.value > tolerance_bytes and still_growing:
        return "undecided", growth
    return ("warm-up" if grew_before or growth.value > tolerance_bytes else "steady"), growth


def _explain(verdict: Verdict, growth: Reading, counter: str, n_calls: int) -> str:
    if growth.ci95 is None:
        return verdict
    size = (
        f"{growth.value / 1e6:.3f} MB a call (95 % interval {growth.ci95[0] / 1e6:.3f} to {growth.ci95[1] / 1e6:.3f})"
    )
    return {
        "leak": f"{counter} still grows after {n_calls} calls, by {size}: something keeps what each call makes.",
        "warm-up": f"{counter} grew at first and then stopped: a pool or cache that fills, not a leak.",
        "steady": f"{counter} does not grow: {size} over {n_calls} calls.",
        "undecided": f"{counter} grew by {size}, too unevenly to tell: repeat with more calls.",
    }[verdict]


@contextmanager
def _only_new_garbage() -> Iterator[None]:
    """Let the collector skip what existed before: a full pass over a loaded torch takes a third of a second."""
    is_ours = gc.get_freeze_count() == 0
    if is_ours:
        gc.collect()
        gc.freeze()
    try:
        yield
    finally:
        if is_ours:
            gc.unfreeze()


def _record(watched: Mapping[str, Callable[[], int]], levels: dict[str, list[int]]) -> None:
    gc.collect()  # garbage in a cycle is not leaked, only not yet collected
    for name, counter in watched.items():
        levels[name].append(counter())


def _default_counters() -> dict[str, Callable[[], int]]:
    process = psutil.Process()
    counters: dict[str, Callable[[], int]] = {"process-rss": lambda: int(process.memory_info().rss)}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        counters["device"] = torch.cuda.memory_allocated
    return counters

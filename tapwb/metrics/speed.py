"""Latency and rate of one generation, from the times at which its tokens came.

Definitions, because the field has several: time to first token (TTFT) runs from the request to the first token; time
per output token (TPOT) excludes the first token, as NVIDIA and vLLM do; inter-token latency (ITL) is the gap between
neighbouring tokens. Percentiles are given with n, and only where n allows an interval.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tapwb.core.errors import UsageError
from tapwb.core.reading import Measured, Reading, Unavailable
from tapwb.metrics.statistics import percentile_ci

_CLOCK = "measured:monotonic-clock"


@dataclass(frozen=True, slots=True)
class SpeedMetrics:
    """Speed of one generation.

    Attributes:
        ttft_s: Request to first token, seconds.
        tpot_s: Mean time per token after the first, seconds.
        itl_p50_s: Median gap between tokens, seconds; ``n`` is the number of gaps.
        itl_p95_s: 95th percentile of the gaps, seconds.
        itl_p99_s: 99th percentile of the gaps, seconds.
        decode_tok_per_s: Tokens per second after the first.
        end_to_end_s: Request to last token, seconds.
        n_tokens: Tokens generated.
    """

    ttft_s: Measured
    tpot_s: Measured
    itl_p50_s: Measured
    itl_p95_s: Measured
    itl_p99_s: Measured
    decode_tok_per_s: Measured
    end_to_end_s: Measured
    n_tokens: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        out: dict[str, Any] = {name: getattr(self, name).to_json() for name in self.__slots__ if name != "n_tokens"}
        return {**out, "n_tokens": self.n_tokens}


def speed_from_times(request_s: float, token_times_s: Sequence[float]) -> SpeedMetrics:
    """Speed from one clock's readings.

    Args:
        request_s: When the request was made.
        token_times_s: When each token was there, not falling.

    Raises:
        UsageError: If the times run backwards.
    """
    times = np.asarray([request_s, *token_times_s], dtype=np.float64)
    if not np.isfinite(times).all() or (np.diff(times) < 0).any():
        raise UsageError("token times run backwards or are not finite. Give readings of one monotonic clock, in order.")
    n_tokens = len(token_times_s)
    if n_tokens == 0:
        nothing = Unavailable("no token was generated")
        return SpeedMetrics(nothing, nothing, nothing, nothing, nothing, nothing, nothing, 0)
    ttft = Reading(float(times[1] - times[0]), "s", _CLOCK, n=1)
    end_to_end = Reading(float(times[-1] - times[0]), "s", _CLOCK, n=1)
    gaps_s = np.diff(times[1:])
    decode_s = float(times[-1] - times[1])
    tpot: Measured = Unavailable("only one token was generated")
    rate = tpot
    if n_tokens > 1:
        tpot = Reading(decode_s / (n_tokens - 1), "s", _CLOCK, n=n_tokens - 1)
        rate = Unavailable("the clock did not advance between tokens")
        if decode_s > 0:
            rate = Reading((n_tokens - 1) / decode_s, "token/s", _CLOCK, n=n_tokens - 1)
    p50, p95, p99 = (_percentile(gaps_s.tolist(), quantile) for quantile in (0.50, 0.95, 0.99))
    return SpeedMetrics(ttft, tpot, p50, p95, p99, rate, end_to_end, n_tokens)


def _percentile(gaps_s: list[float], quantile: float) -> Measured:
    found = percentile_ci(gaps_s, quantile)
    if isinstance(found, Unavailable):
        return found
    return Reading(found.estimate, "s", _CLOCK, n=found.n, ci95=(found.low, found.high))

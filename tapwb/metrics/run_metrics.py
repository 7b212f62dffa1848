"""From the trace of one run to the numbers people read: bits, bytes, speed, energy, each with its source."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tapwb.core.reading import Measured, Reading, Unavailable
from tapwb.execution.trace import Trace
from tapwb.models.anatomy import ModelAnatomy
from tapwb.monitors.energy import EnergyReading
from tapwb.monitors.energy_probes.estimate import SOURCE, estimate_energy_j
from tapwb.monitors.probe import Work


@dataclass(frozen=True, slots=True)
class ReferencePace:
    """How long the 16-bit weights took on this machine, from a run of theirs.

    Attributes:
        prefill_s_per_token: Wall time per prompt token.
        decode_s_per_token: Wall time per decode step.
    """

    prefill_s_per_token: float
    decode_s_per_token: float

    @classmethod
    def of(cls, trace: Trace) -> "ReferencePace | None":
        """Pace of a reference run, or ``None`` if it decoded nothing."""
        if not trace.step_s:
            return None
        return cls(trace.prefill_s / len(trace.prompt_ids), sum(trace.step_s) / len(trace.step_s))


def work_of(trace: Trace, anatomy: ModelAnatomy) -> Work:
    """Bytes and operations of a run: weights read, cache read at its final size once per step, two per parameter."""
    n_processed = len(trace.prompt_ids) + len(trace.step_s) + trace.extra_rows
    bytes_moved = trace.weight_bytes_read + trace.kv_bytes * len(trace.step_s)
    return Work(round(bytes_moved), round(2 * anatomy.n_parameters * n_processed))


def run_metrics(
    trace: Trace,
    *,
    anatomy: ModelAnatomy,
    weights_bytes: int,
    energy: EnergyReading | None,
    pace: ReferencePace | None,
    scoring_s: float,
    device: str,
    request: str,
) -> dict[str, Any]:
    """All metrics of one run, with the keys of the command-line contract.

    Args:
        trace: What happened.
        anatomy: Shapes of the model.
        weights_bytes: Resident bytes of the weights, counted on the tensors.
        energy: The window around the run.
        pace: Speed of the 16-bit weights, if they ran in this process.
        scoring_s: Seconds spent on importance before the run.
        device: Torch device.
        request: Precision as it was asked for.
    """
    saved = _energy_saved(trace, anatomy, pace, device, request)
    decode_s = sum(trace.step_s)
    rate: Measured = Unavailable("the answer has a single token, so no decode step was timed")
    if trace.step_s:
        rate = Reading(len(trace.step_s) / decode_s, "token/s", "measured:wall-clock", n=len(trace.step_s))
    return {
        "precision": {
            "request": request,
            "mean_bits": trace.mean_bits,
            "bits_histogram": _histogram(trace.processed_bits),
            "energy_saved_pct": saved,
            "energy_source": saved.source if isinstance(saved, Reading) else "unavailable",
        },
        "memory": {
            "weights_bytes": weights_bytes,
            "baseline_weights_bytes": 2 * anatomy.n_parameters,
            "weights_ratio": weights_bytes / (2 * anatomy.n_parameters),
            "kv_bytes": trace.kv_bytes,
            "baseline_kv_bytes": trace.kv_baseline_bytes,
            "source": "measured:tensor storage",
        },
        "speed": {
            "ttft_s": scoring_s + trace.prefill_s,
            "scoring_s": scoring_s,
            "prefill_s": trace.prefill_s,
            "decode_tok_per_s": rate,
            "n_new_tokens": len(trace.token_ids),
            "weight_bytes_read": trace.weight_bytes_read,
            "source": "measured:wall-clock",
        },
        "energy": energy.to_json() if energy else Unavailable("no window was open around the run").to_json(),
        "speculation": Unavailable("the run did not speculate"),
        "finish_reason": trace.finish_reason,
        "kernel": {"name": trace.kernel.name, "reason": trace.kernel.reason},
        "notes": list(trace.notes),
    }


def _energy_saved(
    trace: Trace, anatomy: ModelAnatomy, pace: ReferencePace | None, device: str, request: str
) -> Measured:
    """Energy saved against the same run at 16 bits: an estimate from bytes, operations and the time both took."""
    if request == "16":
        return Unavailable("this is the 16-bit run that others are compared with")
    if pace is None:
        return Unavailable("no 16-bit run in this process to compare with; generate once with precision 16")
    n_steps = len(trace.step_s)
    work = work_of(trace, anatomy)
    dense_bytes = 2 * anatomy.n_parameters * (1 + n_steps) + trace.kv_baseline_bytes * n_steps
    reference_s = pace.prefill_s_per_token * len(trace.prompt_ids) + pace.decode_s_per_token * n_steps
    mine = estimate_energy_j(work.bytes_moved, work.operations, trace.prefill_s + sum(trace.step_s), device)
    plain_operations = 2 * anatomy.n_parameters * (len(trace.prompt_ids) + n_steps)
    other = estimate_energy_j(dense_bytes, plain_operations, reference_s, device)
    return Reading(100 * (1 - mine.value / other.value), "%", f"{SOURCE}, against a timed 16-bit run", n=n_steps)


def _histogram(bits_of_tokens: Sequence[float]) -> dict[str, int]:
    """Tokens by their bits; means over layers that were planned apart are told apart by tenths."""
    counts = Counter(round(bits, 1) for bits in bits_of_tokens)
    return {f"{bits:g}": n for bits, n in sorted(counts.items())}

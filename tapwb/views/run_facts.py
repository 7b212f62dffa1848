"""What a generation took, in the few lines people look for first, each number with its source.

The command line, notebooks and reports print the same lines, from live metrics or from a saved run.
"""

from collections.abc import Mapping
from typing import Any

from tapwb.core.reading import Reading, Unavailable
from tapwb.core.units import format_bytes, format_joules


def run_facts(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Lines by name.

    Args:
        metrics: From :meth:`tapwb.engine.TAPEngine.generate`, or the same as a saved run keeps it.
    """
    precision, memory, speed = metrics["precision"], metrics["memory"], metrics["speed"]
    bits = ", ".join(f"{n} at {level}" for level, n in precision["bits_histogram"].items())
    baseline = memory["baseline_weights_bytes"]
    lines = {
        "bits": f"{precision['mean_bits']:.2f} on average (tokens: {bits})",
        "weights": f"{format_bytes(memory['weights_bytes'])}; at 16 bits they take {format_bytes(baseline)}",
        "cache": format_bytes(memory["kv_bytes"]),
        "first token": f"{speed['ttft_s']:.2f} s",
        "speed": _line(speed, "decode_tok_per_s", lambda value: f"{value:.1f} tokens/s"),
        "energy": _line(metrics["energy"], "total_j", format_joules),
        "energy saved": _line(precision, "energy_saved_pct", lambda value: f"{value:.1f} %"),
    }
    return lines | {f"note {number}": note for number, note in enumerate(metrics.get("notes", ()), start=1)}


def _line(part: Any, key: str, show: Any) -> str:
    """One number with its source, whether it is a reading, its JSON, a flattened JSON, or missing."""
    value = part if _missing(part) else part[key]
    if isinstance(value, Unavailable):
        return str(value)
    if isinstance(value, Reading):
        return f"{show(value.value)} ({value.source})"
    if isinstance(value, Mapping):
        return (
            f"unavailable ({value['unavailable']})"
            if _missing(value)
            else f"{show(value['value'])} ({value['source']})"
        )
    return f"{show(value)} ({part.get(f'{key}_source', 'no source given')})"


def _missing(value: Any) -> bool:
    return isinstance(value, Unavailable) or (isinstance(value, Mapping) and set(value) == {"unavailable"})

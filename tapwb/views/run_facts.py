"""What a generation took, in the few lines people look for first, each number with its source.

The command line, notebooks and reports print the same lines, from live metrics or from a saved run.
"""

from collections.abc import Mapping
from typing import Any

from tapwb.core.reading import Reading, Unavailable
from tapwb.core.units import format_bytes, format_joules

#: More different bit-widths than this are no longer listed one by one.
_FEW = 6


def run_facts(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Lines by name.

    Args:
        metrics: From :meth:`tapwb.engine.TAPEngine.generate`, or the same as a saved run keeps it.
    """
    precision, memory, speed = metrics["precision"], metrics["memory"], metrics["speed"]
    baseline = memory["baseline_weights_bytes"]
    lines = {
        "bits": f"{precision['mean_bits']:.2f} on average ({_tokens(precision)})",
        "weights": f"{format_bytes(memory['weights_bytes'])}; at 16 bits they take {format_bytes(baseline)}",
        **_activations(metrics),
        "cache": format_bytes(memory["kv_bytes"]),
        "first token": f"{speed['ttft_s']:.2f} s",
        "speed": _line(speed, "decode_tok_per_s", lambda value: f"{value:.1f} tokens/s"),
        **_speculation(metrics),
        "energy": _line(metrics["energy"], "total_j", format_joules),
        "energy saved": _line(precision, "energy_saved_pct", lambda value: f"{value:.1f} %"),
    }
    return lines | {f"note {number}": note for number, note in enumerate(metrics.get("notes", ()), start=1)}


def _speculation(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Lines where tokens were guessed: how many stood, and what that brought over the plain steps of the same run."""
    found = metrics.get("speculation")
    if not isinstance(found, Mapping) or _missing(found):
        return {}
    stood = f"{found['accepted']} of {found['drafted']} guesses stood"
    speedup = _line(found, "speedup", lambda value: f"{value:.2f}x")
    ends = found["speedup"].ci95 if isinstance(found["speedup"], Reading) else found.get("speedup_ci95")
    interval = f", 95 % interval {ends[0]:.2f} to {ends[1]:.2f}" if ends else ""
    return {
        "speculation": f"{found['proposer']}, {found['rounds']} rounds: {stood}",
        "speedup": f"{speedup}{interval}",
    }


def _activations(metrics: Mapping[str, Any]) -> dict[str, str]:
    """A line where activations had fewer bits than usual."""
    chosen = metrics.get("activations", {})
    if chosen.get("activations", "16") == "16":
        return {}
    share = _line(chosen, "wide_share", lambda value: f"{value:.1%}")
    return {"activations": f"{chosen['activations']}; kept wide: {share}"}


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


def _tokens(precision: Mapping[str, Any]) -> str:
    """How many tokens got how many bits; only the ends where there are too many to read."""
    counts = precision["bits_histogram"]
    if len(counts) <= _FEW:
        return "tokens: " + ", ".join(f"{n} at {level}" for level, n in counts.items())
    return f"{sum(counts.values())} tokens from {min(counts, key=float)} to {max(counts, key=float)}"

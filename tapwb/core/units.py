"""Parse and print quantities. Names in code carry SI units; only people see the prefixes."""

import re

from tapwb.core.errors import UsageError

_BYTE_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_BYTE_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_COUNT_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


def format_bytes(n_bytes: float) -> str:
    """Bytes with a decimal prefix and three significant digits: ``format_bytes(141_200_000) == "141 MB"``."""
    sign, rest = ("-", -n_bytes) if n_bytes < 0 else ("", n_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if rest < 999.5:
            return f"{sign}{_three_digits(rest) if unit != 'B' else f'{rest:.0f}'} {unit}"
        rest /= 1000
    return f"{sign}{_three_digits(rest)} TB"


def parse_bytes(text: str) -> int:
    """Bytes from ``"24GB"``, ``"1.5 GiB"`` or ``"4096"``.

    Raises:
        UsageError: If the text is not a number followed by a known unit.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    unit = match.group(2).lower() if match else ""
    if match is None or (unit or "b") not in _BYTE_UNITS:
        raise UsageError(f"{text!r} is not a size. Write a number and one of B, kB, MB, GB, KiB, MiB, GiB: '24GB'.")
    return round(float(match.group(1)) * _BYTE_UNITS[unit or "b"])


def parse_parameters(text: str) -> int:
    """Parameter count from ``"13B"``, ``"135M"`` or ``"7000000000"``.

    Raises:
        UsageError: If the text is not a number followed by K, M, B or T.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmbtKMBT]?)\s*", text)
    if match is None:
        raise UsageError(f"{text!r} is not a parameter count. Write for example '13B' or '135M'.")
    return round(float(match.group(1)) * _COUNT_UNITS[match.group(2).lower()])


def format_count(count: float) -> str:
    """Count with a decimal prefix: ``format_count(134_515_008) == "135M"``."""
    for unit in ("", "K", "M", "B"):
        if count < 999.5:
            return f"{_three_digits(count) if unit else f'{count:.0f}'}{unit}"
        count /= 1000
    return f"{_three_digits(count)}T"


def format_seconds(duration_s: float) -> str:
    """Duration for people: ``"3.2 ms"``, ``"4.5 s"``, ``"2 min 05 s"``."""
    if duration_s < 1e-3:
        return f"{duration_s * 1e6:.0f} µs"
    if duration_s < 1:
        return f"{_three_digits(duration_s * 1e3)} ms"
    if duration_s < 60:
        return f"{_three_digits(duration_s)} s"
    minutes, seconds = divmod(round(duration_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def format_joules(energy_j: float) -> str:
    """Energy for people: ``"12.3 mJ"``, ``"4.56 J"``, ``"7.89 kJ"``."""
    if abs(energy_j) < 1:
        return f"{_three_digits(energy_j * 1e3)} mJ"
    if abs(energy_j) < 1000:
        return f"{_three_digits(energy_j)} J"
    return f"{_three_digits(energy_j / 1e3)} kJ"


def _three_digits(value: float) -> str:
    size = abs(value)
    return f"{value:.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"

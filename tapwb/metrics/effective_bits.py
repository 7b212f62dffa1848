"""Bits per value with everything that must be stored to read it: scales, offsets, padding, codebooks."""

from tapwb.core.errors import UsageError
from tapwb.core.reading import Reading


def effective_bits(n_bytes: int, n_values: int) -> Reading:
    """Bits per value of something that was really stored.

    Args:
        n_bytes: All bytes it occupies.
        n_values: Number of values that can be read from it.

    Raises:
        UsageError: If there is no value, or bytes are negative.
    """
    if n_values < 1 or n_bytes < 0:
        raise UsageError(f"{n_bytes} bytes for {n_values} values have no bits per value. Give at least one value.")
    return Reading(8 * n_bytes / n_values, "bit", "measured:tensor-bytes")


def format_bits(payload_bits: float, group_size: int, metadata_bytes_per_group: float = 4) -> Reading:
    """Bits per value of a grouped format, from its description alone.

    Args:
        payload_bits: Bits of one stored code.
        group_size: Values that share their metadata.
        metadata_bytes_per_group: Bytes of scale and offset; the nested format keeps two fp16 numbers.

    Raises:
        UsageError: If a quantity is out of range.
    """
    if payload_bits <= 0 or group_size < 1 or metadata_bytes_per_group < 0:
        raise UsageError(
            f"{payload_bits} bits, groups of {group_size}, {metadata_bytes_per_group} bytes per group: give positive "
            "bits and group size, and metadata of at least 0 bytes."
        )
    return Reading(payload_bits + 8 * metadata_bytes_per_group / group_size, "bit", "estimated:format-layout")

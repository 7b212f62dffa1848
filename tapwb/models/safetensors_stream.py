"""Write a safetensors file one tensor at a time.

``safetensors.save_file`` wants every tensor in memory at once; a conversion that holds one at a time needs a quarter
of the memory and can report progress and stop between two tensors. Also the cheap check that a safetensors file is as
long as its header says. Format: https://huggingface.co/docs/safetensors (8-byte length, JSON header, data).
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from tapwb.core.errors import CorruptWeights
from tapwb.core.jobs import NO_PROGRESS, Progress

_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


def write_safetensors(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], np.ndarray],
    *,
    dtype: str = "F32",
    progress: Progress = NO_PROGRESS,
) -> None:
    """Write the tensors ``read(name)`` delivers, in the order of ``shapes``.

    Args:
        path: File to write.
        shapes: Shape of every tensor by name.
        read: Delivers one tensor as float32.
        dtype: Stored type: ``"F32"``, ``"F16"`` or ``"BF16"``.
        progress: Advanced by one per tensor.

    Raises:
        ValueError: If a delivered tensor has another shape than announced (a programming error).
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * _BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name, shape in shapes.items():
            values = read(name)
            if values.shape != shape:
                raise ValueError(f"{name}: got shape {values.shape}, announced {shape}")
            file.write(_encode(values, dtype))
            progress.advance()


def check_safetensors(path: Path) -> int:
    """Number of bytes of tensor data in ``path``, after checking that they are all there.

    Raises:
        CorruptWeights: If the header is garbled or the file is shorter or longer than it announces.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        n_header = int.from_bytes(file.read(8), "little")
        text = file.read(n_header) if n_header <= size - 8 else b""
    try:
        header = json.loads(text)
        n_data = max((int(t["data_offsets"][1]) for name, t in header.items() if name != "__metadata__"), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptWeights(
            f"{path.name} is not a safetensors file: its header is garbled or cut off ({size} bytes on disk). "
            "Fetch the file again."
        ) from error
    expected = 8 + n_header + n_data
    if size != expected:
        raise CorruptWeights(
            f"{path.name} has {size} bytes on disk, its header announces {expected}. Fetch the file again."
        )
    return n_data


def _encode(values: np.ndarray, dtype: str) -> bytes:
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, dtype="<f4").view("<u4").astype(np.uint64)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()  # round to nearest even
    return np.ascontiguousarray(values, dtype="<f4" if dtype == "F32" else "<f2").tobytes()

"""Read a GGUF file: metadata, tensor table, one tensor at a time.

The ``gguf`` package parses the same file in seconds and answers a truncated one with a numpy error about reshaping;
this reader takes a tenth of that and can say how many bytes are missing. Dequantization is still ``gguf``'s.
Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little endian).
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float32

from tapwb.core.errors import CorruptWeights, ModelNotFound, UnsupportedModel

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where one tensor lies.

    Attributes:
        name: Name in the file.
        shape: Shape in torch's order (slowest first).
        type_name: ``"F32"``, ``"Q4_1"``, ...
        group_size: Values that share a scale; 1 for plain floats.
        offset: Bytes from the start of the file.
        n_bytes: Stored bytes.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    group_size: int
    offset: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A parsed GGUF header.

    Attributes:
        path: The file.
        metadata: Every key; arrays are lists.
        tensors: Every tensor by name, in file order.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the family."""
        return str(self.metadata["general.architecture"])

    @property
    def quantized_format(self) -> str | None:
        """The format of most quantized bytes (``"Q4_1 group 32"``), or ``None`` if all weights are floats."""
        n_bytes: dict[str, int] = {}
        for tensor in self.tensors.values():
            if tensor.group_size > 1:
                label = f"{tensor.type_name} group {tensor.group_size}"
                n_bytes[label] = n_bytes.get(label, 0) + tensor.n_bytes
        return max(n_bytes, key=lambda label: n_bytes[label]) if n_bytes else None

    def read(self, name: str) -> Float32[np.ndarray, "..."]:
        """One tensor as float32 in its torch shape.

        Raises:
            CorruptWeights: If it holds NaN or infinite values.
        """
        import gguf

        tensor = self.tensors[name]
        with self.path.open("rb") as file:
            file.seek(tensor.offset)
            raw = np.frombuffer(file.read(tensor.n_bytes), dtype=np.uint8)
        values = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[tensor.type_name])
        values = np.asarray(values, dtype=np.float32).reshape(tensor.shape)
        if not np.isfinite(values).all():
            raise CorruptWeights(
                f"tensor {name!r} of {self.path.name} holds NaN or infinite values; every weight must be finite. "
                "Fetch the file again."
            )
        return values


def open_gguf(path: Path) -> GgufFile:
    """Parse the header of ``path`` and check that every tensor lies inside the file.

    Raises:
        ModelNotFound: If there is no such file.
        CorruptWeights: If it is not a GGUF file, is garbled, or is shorter than its header says.
        UnsupportedModel: If its version or a tensor format is unknown.
    """
    if not path.is_file():
        raise ModelNotFound(f"there is no file {path}. Give the path of an existing GGUF file.")
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            parsed = _parse(_Reader(file, size), path)
    except (struct.error, UnicodeDecodeError, KeyError, OverflowError) as error:
        raise CorruptWeights(
            f"{path.name} starts like a GGUF file but its header is garbled or cut off ({size} bytes on disk). "
            "Fetch the file again."
        ) from error
    expected = max((t.offset + t.n_bytes for t in parsed.tensors.values()), default=0)
    if size < expected:
        raise CorruptWeights(
            f"{path.name} is truncated: {size} bytes on disk, its header announces {expected}. Fetch the file again."
        )
    return parsed


class _Reader:
    """Sequential typed reads that never ask for more bytes than the file has."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size

    def scalar(self, code: str) -> Any:
        layout = struct.Struct("<" + code)
        return layout.unpack(self._file.read(layout.size))[0]

    def string(self) -> str:
        return self._take(self.scalar("Q")).decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.scalar(_SCALARS[kind])
        kind, count = self.scalar("I"), self.scalar("Q")
        if kind in _SCALARS:
            layout = struct.Struct("<" + _SCALARS[kind])
            return [item for (item,) in layout.iter_unpack(self._take(count * layout.size))]
        return [self.value(kind) for _ in range(count)]

    def position(self) -> int:
        return self._file.tell()

    def _take(self, n_bytes: int) -> bytes:
        if n_bytes > self._size:
            raise struct.error("length beyond the end of the file")
        data = self._file.read(n_bytes)
        if len(data) < n_bytes:
            raise struct.error("end of file")
        return data


def _parse(reader: _Reader, path: Path) -> GgufFile:
    import gguf

    magic = reader.scalar("4s")
    if magic != b"GGUF":
        raise CorruptWeights(f"{path.name} starts with {magic!r}; a GGUF file starts with b'GGUF'. Fetch it again.")
    version, n_tensors, n_keys = reader.scalar("I"), reader.scalar("Q"), reader.scalar("Q")
    if version not in (2, 3):
        raise UnsupportedModel(f"{path.name} is GGUF version {version}; versions 2 and 3 can be read. Convert it.")
    metadata = {}
    for _ in range(n_keys):
        key = reader.string()
        metadata[key] = reader.value(reader.scalar("I"))
    table = []
    for _ in range(n_tensors):
        name = reader.string()
        dims = [reader.scalar("Q") for _ in range(reader.scalar("I"))]
        table.append((name, tuple(reversed(dims)), reader.scalar("I"), reader.scalar("Q")))
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    start = -(-reader.position() // alignment) * alignment
    tensors = {}
    for name, shape, type_id, offset in table:
        if type_id not in iter(gguf.GGMLQuantizationType):
            raise UnsupportedModel(f"tensor {name!r} of {path.name} has the unknown GGUF type {type_id}. Convert it.")
        kind = gguf.GGMLQuantizationType(type_id)
        group_size, group_bytes = gguf.GGML_QUANT_SIZES[kind]
        n_bytes = math.prod(shape) // group_size * group_bytes
        tensors[name] = GgufTensor(name, shape, kind.name, group_size, start + offset, n_bytes)
    if "general.architecture" not in metadata:
        raise KeyError("general.architecture")
    return GgufFile(path, metadata, tensors)

"""Read a model file of rwkv.cpp: header, tensor table, one tensor at a time.

Every length is held against the size of the file before anything is read by it, and nothing in the file is executed:
the checkpoints it is made from are pickles, this format is only numbers. Layout (little endian, as every machine that
rwkv.cpp runs on writes it): https://github.com/RWKV/rwkv.cpp/blob/master/docs/FILE_FORMAT.md::

    header   magic, version, vocabulary, width, layers, data type      six uint32
    tensor   number of dimensions, length of the name, data type       three uint32, then until the end of the file:
             dimensions (fastest first), name, values

Two kinds of parameter are stored already transformed by the converter: the decay of RWKV-4 as ``-exp(w)`` and that of
RWKV-5.2 as ``exp(-exp(w))``. They are read as they are stored.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Float32

from tapwb.core.errors import CorruptWeights, ModelNotFound, UnsupportedModel

_MAGIC = struct.pack("<I", 0x67676D66)
_HEADER = struct.Struct("<6I")
_TENSOR = struct.Struct("<3I")
_FLOATS = {0: "FP32", 1: "FP16"}
_LAYOUTS: dict[str, np.dtype[np.floating]] = {"FP32": np.dtype("<f4"), "FP16": np.dtype("<f2")}
_QUANTIZED = {2: "Q4_0", 3: "Q4_1", 4: "Q4_1_O", 5: "Q4_2", 6: "Q4_3", 7: "Q5_0", 8: "Q5_1", 9: "Q8_0"}
_MOST_DIMENSIONS = 4  # ggml has no tensor with more
_LONGEST_NAME = 255  # real names have about 30 characters; a garbled length must not become an error of megabytes
_AGAIN = "Fetch the file again, or convert its checkpoint again with rwkv.cpp."


@dataclass(frozen=True, slots=True)
class RwkvTensor:
    """Where one tensor lies.

    Attributes:
        name: Name in the file, which is that of the checkpoint: ``"blocks.0.att.key.weight"``.
        shape: Shape in torch's order (slowest first).
        type_name: ``"FP32"`` or ``"FP16"``.
        offset: Bytes from the start of the file.
        n_bytes: Stored bytes.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    offset: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class RwkvFile:
    """A parsed rwkv.cpp file.

    Attributes:
        path: The file.
        vocabulary: Tokens that the header announces.
        width: Size of the embedding that the header announces.
        layers: Blocks that the header announces.
        tensors: Every tensor by name, in file order.
    """

    path: Path
    vocabulary: int
    width: int
    layers: int
    tensors: dict[str, RwkvTensor]

    def find(self, name: str) -> RwkvTensor:
        """The entry of one tensor.

        Raises:
            CorruptWeights: If the file does not hold it.
        """
        if name not in self.tensors:
            raise CorruptWeights(
                f"{self.path.name} holds no tensor {name!r}; a model of {self.layers} layers needs it. {_AGAIN}"
            )
        return self.tensors[name]

    def read(self, name: str) -> Float32[np.ndarray, "..."]:
        """One tensor as float32 in its torch shape.

        Raises:
            CorruptWeights: If the file does not hold it, got shorter, or it holds NaN or infinite values.
        """
        tensor = self.find(name)
        with self.path.open("rb") as file:
            file.seek(tensor.offset)
            raw = file.read(tensor.n_bytes)
        if len(raw) < tensor.n_bytes:
            raise CorruptWeights(f"{self.path.name} became shorter while tensor {name!r} was read. {_AGAIN}")
        values = np.frombuffer(raw, dtype=_LAYOUTS[tensor.type_name]).astype(np.float32).reshape(tensor.shape)
        if not np.isfinite(values).all():
            raise CorruptWeights(
                f"tensor {name!r} of {self.path.name} holds NaN or infinite values; every weight must be finite. "
                f"{_AGAIN}"
            )
        return values


def is_rwkv_file(path: Path) -> bool:
    """Whether a file begins like one of rwkv.cpp.

    Args:
        path: Existing file.
    """
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def open_rwkv(path: Path) -> RwkvFile:
    """Parse the table of ``path`` and check that every tensor lies inside the file.

    Raises:
        ModelNotFound: If there is no such file.
        CorruptWeights: If it is not an rwkv.cpp file, is garbled, or is shorter than it says.
        UnsupportedModel: If its version or the type of a tensor cannot be read.
    """
    if not path.is_file():
        raise ModelNotFound(f"there is no file {path}. Give the path of an existing rwkv.cpp file (.bin).")
    size = path.stat().st_size
    with path.open("rb") as file:
        reader = _Reader(file, size, path.name)
        vocabulary, width, layers = _header(reader, path.name)
        tensors: dict[str, RwkvTensor] = {}
        while reader.left > 0:
            tensor = _tensor(reader, path.name)
            if tensor.name in tensors:
                raise CorruptWeights(f"{path.name} holds tensor {tensor.name!r} twice; once is right. {_AGAIN}")
            tensors[tensor.name] = tensor
    return RwkvFile(path, vocabulary, width, layers, tensors)


class _Reader:
    """Sequential reads that know what is left of the file and never ask for more."""

    def __init__(self, file: BinaryIO, size: int, name: str) -> None:
        self._file = file
        self._size = size
        self._name = name

    @property
    def position(self) -> int:
        """Bytes from the start of the file."""
        return self._file.tell()

    @property
    def left(self) -> int:
        """Bytes up to the end of the file."""
        return self._size - self._file.tell()

    def take(self, n_bytes: int, what: str) -> bytes:
        """The next bytes."""
        self._require(n_bytes, what)
        data = self._file.read(n_bytes)
        if len(data) < n_bytes:  # somebody shortened the file after its size was asked for
            raise CorruptWeights(f"{self._name} became shorter while {what} was read. {_AGAIN}")
        return data

    def skip(self, n_bytes: int, what: str) -> None:
        """Step over bytes that are read later."""
        self._require(n_bytes, what)
        self._file.seek(n_bytes, 1)

    def _require(self, n_bytes: int, what: str) -> None:
        if n_bytes > self.left:
            raise CorruptWeights(
                f"{self._name} is truncated: {what} needs {n_bytes} bytes at {self.position}, the file ends after "
                f"{self.left} ({self._size} bytes on disk). {_AGAIN}"
            )


def _header(reader: _Reader, name: str) -> tuple[int, int, int]:
    """Vocabulary, width and layers."""
    magic = reader.take(len(_MAGIC), "the magic number")
    if magic != _MAGIC:
        raise CorruptWeights(
            f"{name} starts with {magic!r}; an rwkv.cpp file starts with {_MAGIC!r}. "
            "Give a file that rwkv.cpp's converter wrote (a .pth checkpoint is not one)."
        )
    _, version, vocabulary, width, layers, kind = _HEADER.unpack(
        magic + reader.take(_HEADER.size - len(_MAGIC), "the header")
    )
    if version not in (100, 101):
        raise UnsupportedModel(
            f"{name} is version {version} of the rwkv.cpp format; versions 100 and 101 can be read. Convert it again."
        )
    _check_type(kind, "the header", name)
    if not (vocabulary and width and layers):
        raise CorruptWeights(
            f"{name} announces {vocabulary} tokens, width {width} and {layers} layers; at least 1 of each is needed. "
            f"{_AGAIN}"
        )
    return vocabulary, width, layers


def _tensor(reader: _Reader, name: str) -> RwkvTensor:
    """The next entry of the table; its values are stepped over."""
    start = reader.position
    n_dimensions, n_name, kind = _TENSOR.unpack(reader.take(_TENSOR.size, f"the tensor entry at {start}"))
    if not 1 <= n_dimensions <= _MOST_DIMENSIONS:
        raise CorruptWeights(
            f"the tensor entry at byte {start} of {name} has {n_dimensions} dimensions; 1 to {_MOST_DIMENSIONS} are "
            f"possible. {_AGAIN}"
        )
    if not 1 <= n_name <= _LONGEST_NAME:
        raise CorruptWeights(
            f"the tensor entry at byte {start} of {name} has a name of {n_name} bytes; 1 to {_LONGEST_NAME} are "
            f"possible. {_AGAIN}"
        )
    layout = struct.Struct(f"<{n_dimensions}I")
    dimensions = layout.unpack(reader.take(layout.size, f"the shape of the tensor at {start}"))
    try:
        label = reader.take(n_name, f"the name of the tensor at {start}").decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorruptWeights(f"the tensor entry at byte {start} of {name} has a garbled name. {_AGAIN}") from error
    shape = tuple(reversed(dimensions))
    _check_type(kind, f"tensor {label!r}", name)
    if 0 in shape:
        raise CorruptWeights(f"tensor {label!r} of {name} has the empty shape {shape}. {_AGAIN}")
    type_name = _FLOATS[kind]
    n_bytes = math.prod(shape) * _LAYOUTS[type_name].itemsize
    offset = reader.position
    reader.skip(n_bytes, f"tensor {label!r} of shape {shape} in {type_name}")
    return RwkvTensor(label, shape, type_name, offset, n_bytes)


def _check_type(kind: int, what: str, name: str) -> None:
    if kind in _FLOATS:
        return
    if kind in _QUANTIZED:
        raise UnsupportedModel(
            f"{what} of {name} is stored as {_QUANTIZED[kind]}; FP32 and FP16 can be read: quantized weights have lost "
            "the bits that a plan would give or take. Give the FP16 or FP32 file of the same model."
        )
    raise UnsupportedModel(
        f"{what} of {name} has the unknown data type {kind}; 0 (FP32) and 1 (FP16) can be read. {_AGAIN}"
    )

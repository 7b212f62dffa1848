"""Keys and values of one sequence, as native steps read and write them: contiguous, with room to grow."""

import ctypes
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

Tables = Sequence[tuple[Float[Tensor, "position rotary_dim"], Float[Tensor, "position rotary_dim"]]]
DTYPES = {torch.float32: 0, torch.float16: 2}
FIRST_CAPACITY = 256


class MemoryStruct(ctypes.Structure):
    """Mirrors ``Memory`` in ops.h, field by field."""

    _fields_ = [
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("cosines", ctypes.c_void_p),
        ("sines", ctypes.c_void_p),
        ("capacity", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
    ]


class StepMemory:
    """Keys and values of all layers.

    Args:
        shapes: Heads and columns of each layer.
        tables: Cosines and sines of the first so many positions, fp32; asked again whenever the capacity grows.
        dtype: What is stored: fp32 or fp16.
        capacity: Tokens that fit before it grows for the first time.

    Attributes:
        length: Tokens that are in it.

    Raises:
        ValueError: If the dtype is neither.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        tables: Callable[[int], Tables],
        *,
        dtype: torch.dtype = torch.float32,
        capacity: int = FIRST_CAPACITY,
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"keys and values cannot be kept as {dtype}. Use torch.float32 or torch.float16.")
        self._shapes, self._tables_of, self.dtype = tuple(shapes), tables, dtype
        self.length = 0
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._allocate(max(1, capacity))

    @property
    def capacity(self) -> int:
        """Tokens that fit before it grows."""
        return int(self._struct.capacity)

    @property
    def struct(self) -> MemoryStruct:
        """What a native step is given; valid until the memory grows."""
        return self._struct

    @property
    def tables(self) -> Tables:
        """Cosines and sines of at least as many positions as there is room for."""
        return self._tables

    def keys(self, layer: int) -> Float[Tensor, "head token channel"]:
        """Keys of the tokens that are in it, without a copy."""
        return self._keys[layer][:, : self.length]

    def values(self, layer: int) -> Float[Tensor, "head token channel"]:
        """Values of the tokens that are in it, without a copy."""
        return self._values[layer][:, : self.length]

    def reserve(self, n_tokens: int) -> None:
        """Make room for so many tokens in all; doubles, so that growing stays rare."""
        if n_tokens > self.capacity:
            self._allocate(max(n_tokens, 2 * self.capacity))

    def nbytes(self) -> int:
        """Bytes of the keys and values that are in it."""
        width = 2 * self.length * torch.empty((), dtype=self.dtype).element_size()
        return sum(width * heads * dim for heads, dim in self._shapes)

    def _allocate(self, capacity: int) -> None:
        for held in (self._keys, self._values):
            old = list(held)
            held[:] = [torch.empty(heads, capacity, dim, dtype=self.dtype) for heads, dim in self._shapes]
            for new, before in zip(held, old, strict=False):
                new[:, : self.length] = before[:, : self.length]
        self._tables = [(cos.float().contiguous(), sin.float().contiguous()) for cos, sin in self._tables_of(capacity)]
        self._pointers = [
            _pointers(self._keys),
            _pointers(self._values),
            _pointers([cosine for cosine, _ in self._tables]),
            _pointers([sine for _, sine in self._tables]),
        ]
        addresses = [ctypes.addressof(array) for array in self._pointers]
        self._struct = MemoryStruct(*addresses, capacity, DTYPES[self.dtype])


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    # One more than needed: an array of no pointers has no address.
    return (ctypes.c_void_p * (len(tensors) + 1))(*[tensor.data_ptr() for tensor in tensors])

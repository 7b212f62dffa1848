"""What a state codec is: fp32 numbers of a recurrent state to fewer bits and back.

A codec knows the axes of a state and nothing of models. Rows run along the last axis, so that a scale belongs to one
row; where tokens write outer products, a row is what one key (or channel) has gathered.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tapwb.core.registry import Registry
from tapwb.models.recurrent.form import State


@dataclass(frozen=True, slots=True, eq=False)
class HeldState:
    """An encoded tensor.

    Attributes:
        shape: Of the state, batch first.
        parts: What is stored, by the codec's names.
    """

    shape: tuple[int, ...]
    parts: Mapping[str, Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of what is stored, scales included."""
        return sum(part.numel() * part.element_size() for part in self.parts.values())

    def select(self, indices: Tensor) -> "HeldState":
        """These batch rows, in this order."""
        return HeldState(
            (int(indices.numel()), *self.shape[1:]),
            {name: part.index_select(0, indices.to(part.device)) for name, part in self.parts.items()},
        )


class StateCodec(Protocol):
    """A way of storing state tensors. Parts keep the batch axis first."""

    def encode(self, state: Tensor) -> HeldState:
        """Store a tensor.

        Args:
            state: fp32, batch first.
        """
        ...

    def decode(self, held: HeldState) -> Tensor:
        """The stored numbers, fp32.

        Args:
            held: Of this codec.
        """
        ...


codecs: Registry[StateCodec] = Registry("state codec")


def encode_state(codec: StateCodec, state: State) -> dict[str, HeldState]:
    """Every tensor of a state.

    Args:
        codec: How.
        state: By name.
    """
    return {name: codec.encode(tensor) for name, tensor in state.items()}


def decode_state(codec: StateCodec, held: Mapping[str, HeldState]) -> State:
    """The inverse of :func:`encode_state`, up to rounding.

    Args:
        codec: That encoded it.
        held: By name.
    """
    return {name: codec.decode(one) for name, one in held.items()}


def row_scale(state: Tensor, steps: int) -> Tensor:
    """What one step of a row's codes is worth, a bf16 number as fp32: the largest magnitude over the steps, rounded up.

    bf16 has the range of fp32, which states need: the first updates of a slow head are far below fp16's smallest scale.

    Args:
        state: Shape (..., row).
        steps: Largest code.

    Returns:
        Shape (..., 1); 1 for rows of zeros.
    """
    exact = state.abs().amax(dim=-1, keepdim=True) / steps
    nearest = exact.bfloat16()
    above = (nearest.view(torch.int16) + 1).view(torch.bfloat16)  # the next larger number, of positive ones
    scale = torch.where(nearest.float() < exact, above, nearest).float()
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def bits_per_number(held: HeldState) -> float:
    """Stored bits of each number of the state, scales included.

    Args:
        held: An encoded tensor.
    """
    return 8 * held.nbytes / math.prod(held.shape)

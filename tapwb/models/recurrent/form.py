"""What all recurrent forms share: inputs with a token axis, a named state, and two ways to advance it.

A form knows sizes, never weights: what a layer computes from its weights comes in as inputs. State and inputs are never
written to, so that a state can be kept and gone back to.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self, TypeVar

import torch
from torch import Tensor

from tapwb.core.errors import ExecutionError

#: State tensors by name, batch first; :class:`StateSpec` says what each holds.
State = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class StateSpec:
    """One tensor that a form carries from token to token.

    :class:`tapwb.models.anatomy_records.StateSpec` counts the bytes of a model's layers from its configuration; this
    one names the axes, so that a codec knows along which of them a scale may run.

    Attributes:
        name: Key of the tensor in a :data:`State`.
        axes: Name of each axis behind the batch: ``"head"``, ``"key"``, ``"value"``, ``"channel"`` or ``"state"``.
        shape: Size of each of them: the shape for one sequence, without the batch axis.
        meaning: What the numbers are.
        initial: Every number before the first token.
    """

    name: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    meaning: str
    initial: float = 0.0

    @property
    def nbytes(self) -> int:
        """Bytes for one sequence at fp32."""
        return math.prod(self.shape) * 4


@dataclass(frozen=True, slots=True, eq=False)
class TokenInputs:
    """What a form reads, batch first; tensors named in ``PER_TOKEN`` have the token axis second.

    Those in ``WRITTEN`` make up what a token adds to the state, and are what may be rounded to a token's bits: their
    errors last as long as the state. What is only read with, decays and step sizes are left alone.
    """

    PER_TOKEN: ClassVar[tuple[str, ...]] = ()
    WRITTEN: ClassVar[tuple[str, ...]] = ()

    @property
    def n_tokens(self) -> int:
        """Tokens that are read."""
        return int(getattr(self, self.PER_TOKEN[0]).shape[1])

    def tokens(self, start: int, stop: int) -> Self:
        """The tokens from ``start`` up to ``stop``; views, not copies."""
        return dataclasses.replace(self, **{name: getattr(self, name)[:, start:stop] for name in self.PER_TOKEN})

    def then(self, later: Self) -> Self:
        """These tokens and those that follow; what is not per token is taken from the later ones."""
        joined = {name: torch.cat([getattr(self, name), getattr(later, name)], dim=1) for name in self.PER_TOKEN}
        return dataclasses.replace(later, **joined)

    def to(self, dtype: torch.dtype) -> Self:
        """The same numbers in another type. Forms compute in fp32, the specification in fp64."""
        tensors = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return dataclasses.replace(self, **{name: x.to(dtype) for name, x in tensors.items() if x is not None})


InputsT = TypeVar("InputsT", bound=TokenInputs, contravariant=True)


class RecurrentForm(Protocol[InputsT]):
    """A recurrence over tokens whose state has a fixed size."""

    def state_spec(self) -> tuple[StateSpec, ...]:
        """The tensors of the state, in a fixed order."""
        ...

    def init_state(self, batch: int, device: torch.device | str = "cpu") -> State:
        """The state before the first token, fp32.

        Args:
            batch: Number of sequences.
            device: Where it is needed.
        """
        return {
            spec.name: torch.full((batch, *spec.shape), spec.initial, dtype=torch.float32, device=device)
            for spec in self.state_spec()
        }

    def step(self, inputs: InputsT, state: State) -> tuple[Tensor, State]:
        """Read one token.

        Args:
            inputs: Of exactly one token; the token axis stays.
            state: Before that token.

        Returns:
            The output, with a token axis of one, and the state after it.
        """
        ...

    def chunk(self, inputs: InputsT, state: State) -> tuple[Tensor, State]:
        """Read many tokens at once: the same numbers as from steps, up to rounding.

        Temporary memory grows with their number: a very long prompt is read in several chunks.

        Args:
            inputs: Of one token or more.
            state: Before the first of them.

        Returns:
            The outputs, and the state after the last token.
        """
        ...


class ParallelForm(RecurrentForm[InputsT], Protocol[InputsT]):
    """A form that can also be written as one masked matrix of all pairs of tokens."""

    def parallel(self, inputs: InputsT) -> Tensor:
        """Outputs of a sequence from its beginning; work and memory grow with the square of its length.

        Args:
            inputs: Of all its tokens.
        """
        ...


def check_tokens(inputs: TokenInputs, *, single: bool = False) -> None:
    """Refuse a number of tokens that a form cannot read.

    Args:
        inputs: What it was given.
        single: Whether it reads exactly one token.

    Raises:
        ExecutionError: If there is no token, or more than the one that is allowed.
    """
    n_tokens = inputs.n_tokens
    if n_tokens < 1 or (single and n_tokens > 1):
        allowed = "exactly one token" if single else "at least one token"
        raise ExecutionError(
            f"a recurrent form was given {n_tokens} tokens and reads {allowed}. Use chunk for several."
        )

"""The memory of a recurrent layer at few bits: updates rounded by token, the state written rarely and encoded.

Between writes the inputs of the newest tokens are kept instead of a new state (a ring of updates), and outputs are read
from the last written state and the ring together. So a state is rounded once in ``write_every`` tokens instead of at
each, which is what keeps slow signals alive; and the places where it is written depend on the number of tokens read and
on nothing else, so that a text gives the same numbers however it is cut into passes.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tapwb.core.errors import UsageError
from tapwb.execution.state.codec import HeldState, StateCodec, decode_state, encode_state
from tapwb.execution.state.update_bits import EXACT_BITS, round_updates
from tapwb.models.recurrent.form import RecurrentForm, State, TokenInputs

#: Number of tokens to their levels: one for all, or shape (token,).
UpdateBits = Callable[[int], int | Tensor]


def exact_updates(n_tokens: int) -> int:
    """Updates as they are.

    Args:
        n_tokens: Tokens of the pass.
    """
    return EXACT_BITS


class TapMemory:
    """A :class:`~tapwb.models.recurrent.memory.LayerMemory` whose state is stored by a codec.

    Args:
        codec: Stores the state.
        write_every: Tokens between writes; 1 writes after each.
        bits_of: Levels of the updates of the tokens of a pass.

    Raises:
        UsageError: If ``write_every`` is not at least 1.
    """

    def __init__(self, codec: StateCodec, write_every: int = 16, bits_of: UpdateBits = exact_updates) -> None:
        if write_every < 1:
            raise UsageError(f"a state cannot be written every {write_every} tokens. Give at least 1.")
        self._codec, self._write_every, self._bits_of = codec, write_every, bits_of
        self._held: dict[str, HeldState] = {}
        self._ring: TokenInputs | None = None
        self._rows: dict[str, Tensor] = {}

    def advance(self, form: RecurrentForm[Any], inputs: TokenInputs) -> Tensor:
        """See :meth:`~tapwb.models.recurrent.memory.LayerMemory.advance`."""
        inputs = round_updates(inputs, self._bits_of(inputs.n_tokens))
        outputs, start = [], 0
        while start < inputs.n_tokens:
            n_new = min(self._write_every - self._n_waiting, inputs.n_tokens - start)
            new = inputs.tokens(start, start + n_new)
            outputs.append(self._read(form, new))
            start += n_new
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

    def preceding(
        self, name: str, x: Float[Tensor, "batch token channel"], width: int
    ) -> Float[Tensor, "batch width channel"]:
        """See :meth:`~tapwb.models.recurrent.memory.LayerMemory.preceding`; rows are kept as they come."""
        before = self._rows.get(name)
        if before is None:
            before = x.new_zeros(x.shape[0], width, x.shape[2])
        self._rows[name] = torch.cat([before, x], dim=1)[:, -width:].clone()
        return before

    def tensors(self) -> Iterator[Tensor]:
        """All that is held: codes, scales, the ring of updates, rows."""
        for held in self._held.values():
            yield from held.parts.values()
        if self._ring is not None:
            yield from (getattr(self._ring, name) for name in self._ring.PER_TOKEN)
        yield from self._rows.values()

    def state_bytes(self) -> int:
        """Bytes of the encoded state alone, scales included."""
        return sum(held.nbytes for held in self._held.values())

    def state(self, form: RecurrentForm[Any]) -> State:
        """The state after the newest token, decoded; ``{}`` before the first.

        Args:
            form: The layer's recurrence.
        """
        if self._ring is None:
            return decode_state(self._codec, self._held)
        return form.chunk(self._ring, self._written(form, self._ring))[1]

    def snapshot(self) -> object:
        """A mark to go back to; free, because no tensor is written in place."""
        return dict(self._held), self._ring, dict(self._rows)

    def restore(self, mark: Any) -> None:
        """Go back to a :meth:`snapshot`."""
        held, ring, rows = mark
        self._held, self._ring, self._rows = dict(held), ring, dict(rows)

    def reset(self) -> None:
        """Forget everything."""
        self.restore(({}, None, {}))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Choose, for each place in the batch, whose memory it goes on with."""
        self._held = {name: held.select(beam_idx) for name, held in self._held.items()}
        self._rows = {name: rows.index_select(0, beam_idx.to(rows.device)) for name, rows in self._rows.items()}
        if self._ring is not None:
            chosen = {
                name: getattr(self._ring, name).index_select(0, beam_idx.to(getattr(self._ring, name).device))
                for name in self._ring.PER_TOKEN
            }
            self._ring = _replaced(self._ring, chosen)

    @property
    def _n_waiting(self) -> int:
        return 0 if self._ring is None else self._ring.n_tokens

    def _read(self, form: RecurrentForm[Any], new: TokenInputs) -> Tensor:
        """Outputs of tokens that still fit the ring; a full ring becomes a state."""
        ring = new if self._ring is None else self._ring.then(new)
        outputs, after = (form.step if ring.n_tokens == 1 else form.chunk)(ring, self._written(form, ring))
        if ring.n_tokens == self._write_every:
            self._held, self._ring = encode_state(self._codec, after), None
        else:
            # Clones: views would keep the inputs of a whole pass.
            self._ring = _replaced(ring, {name: getattr(ring, name).clone() for name in ring.PER_TOKEN})
        return outputs[:, -new.n_tokens :]

    def _written(self, form: RecurrentForm[Any], ring: TokenInputs) -> State:
        first: Tensor = getattr(ring, ring.PER_TOKEN[0])
        return decode_state(self._codec, self._held) or form.init_state(first.shape[0], first.device)


def _replaced(inputs: TokenInputs, tensors: dict[str, Tensor]) -> TokenInputs:
    return dataclasses.replace(inputs, **tensors)

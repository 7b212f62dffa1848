"""What recurrent layers remember of a sequence, and the one door through which they do.

A layer computes a form's inputs from its weights and hands them to :meth:`LayerMemory.advance`; it touches no state. So
whoever owns the memory decides how a state is kept and how precisely an update enters it (``tapwb.execution.state``),
and no model needs to know.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import Cache, LinearAttentionCacheLayerMixin

from tapwb.models.recurrent.form import RecurrentForm, State, TokenInputs


class LayerMemory(Protocol):
    """The memory of one layer for one batch of sequences."""

    def advance(self, form: RecurrentForm[Any], inputs: TokenInputs) -> Tensor:
        """Read the tokens that follow.

        Args:
            form: The layer's recurrence.
            inputs: Of one token or more.

        Returns:
            The form's outputs.
        """
        ...

    def preceding(
        self, name: str, x: Float[Tensor, "batch token channel"], width: int
    ) -> Float[Tensor, "batch width channel"]:
        """The last ``width`` rows before ``x``, zeros where the sequence has not begun; then those of ``x`` are kept.

        What a short convolution (kernel size less one) and a token shift (one) need.

        Args:
            name: Which of the layer's inputs it is.
            x: That input for the tokens that follow, at least one.
            width: Rows wanted.
        """
        ...


class PlainMemory(LinearAttentionCacheLayerMixin):
    """A :class:`LayerMemory` at fp32, or fp64 for inputs of that type: the specification.

    One token goes through ``step``, more through ``chunk``.
    """

    def __init__(self) -> None:
        super().__init__()
        # Under transformers' names, so that whoever counts the bytes of a cache finds them.
        self.recurrent_states: dict[str, Tensor] = {}
        self.conv_states: dict[str, Tensor] = {}

    @property
    def states(self) -> State:
        """The state of the form, by name; empty before the first token."""
        return self.recurrent_states

    @states.setter
    def states(self, states: State) -> None:
        self.recurrent_states = states

    @property
    def rows(self) -> dict[str, Tensor]:
        """The newest rows of inputs that are looked back at, by name."""
        return self.conv_states

    @rows.setter
    def rows(self, rows: dict[str, Tensor]) -> None:
        self.conv_states = rows

    def advance(self, form: RecurrentForm[Any], inputs: TokenInputs) -> Tensor:
        """See :meth:`LayerMemory.advance`."""
        first = getattr(inputs, inputs.PER_TOKEN[0])
        state: State = self.states or {
            name: tensor.to(torch.promote_types(first.dtype, tensor.dtype))
            for name, tensor in form.init_state(first.shape[0], first.device).items()
        }
        outputs, self.states = (form.step if inputs.n_tokens == 1 else form.chunk)(inputs, state)
        self.has_previous_state[0] = True
        return outputs

    def preceding(
        self, name: str, x: Float[Tensor, "batch token channel"], width: int
    ) -> Float[Tensor, "batch width channel"]:
        """See :meth:`LayerMemory.preceding`."""
        before = self.rows.get(name)
        if before is None:
            before = x.new_zeros(x.shape[0], width, x.shape[2])
        # A clone: a view would keep the inputs of the whole sequence.
        self.rows[name] = torch.cat([before, x], dim=1)[:, -width:].clone()
        return before

    def tensors(self) -> Iterator[Tensor]:
        """All that is held."""
        yield from self.states.values()
        yield from self.rows.values()

    def snapshot(self) -> object:
        """A mark to go back to; free, because no tensor is written in place."""
        return dict(self.states), dict(self.rows)

    def restore(self, mark: Any) -> None:
        """Go back to a :meth:`snapshot`."""
        states, rows = mark
        self.states, self.rows = dict(states), dict(rows)
        self.has_previous_state[0] = bool(states or rows)

    def reset(self) -> None:
        """Forget everything."""
        self.restore(({}, {}))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Choose, for each place in the batch, whose memory it goes on with."""
        for held in (self.states, self.rows):
            held.update({name: tensor.index_select(0, beam_idx.to(tensor.device)) for name, tensor in held.items()})

    @property
    def is_croppable(self) -> bool:
        """A state cannot be shortened; it can be gone back to (:meth:`snapshot`)."""
        return False

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: tensors come with the first token."""

    def update_conv_state(self, *args: Any, **kwargs: Any) -> Tensor:
        """Not this way: layers here call :meth:`preceding`."""
        raise NotImplementedError("this layer's memory is advanced with preceding() and advance()")

    def update_recurrent_state(self, *args: Any, **kwargs: Any) -> Tensor:
        """Not this way: layers here call :meth:`advance`."""
        raise NotImplementedError("this layer's memory is advanced with preceding() and advance()")


class RecurrentCache(Cache):
    """A ``transformers`` cache of a model in which every layer is recurrent.

    Args:
        n_layers: Layers of the model.
    """

    def __init__(self, n_layers: int) -> None:
        super().__init__(layers=[PlainMemory() for _ in range(n_layers)])
        self._n_seen = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens that were read."""
        return self._n_seen

    def count(self, n_tokens: int) -> None:
        """Told by the model about the tokens of a pass, once a pass."""
        self._n_seen += n_tokens

    def snapshot(self) -> object:
        """A mark of all layers to go back to."""
        return self._n_seen, [layer.snapshot() for layer in self.layers]

    def restore(self, mark: Any) -> None:
        """Go back to a :meth:`snapshot`."""
        self._n_seen, marks = mark
        for layer, own in zip(self.layers, marks, strict=True):
            layer.restore(own)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._n_seen = 0

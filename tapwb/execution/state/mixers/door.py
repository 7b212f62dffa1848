"""How a recurrent layer comes to its memory, whoever made the cache."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from tapwb.core.errors import ExecutionError
from tapwb.models.recurrent.form import RecurrentForm, TokenInputs
from tapwb.models.recurrent.memory import LayerMemory, PlainMemory

#: Places in the list of tensors of transformers' RWKV-4.
_SHIFTS = {"channel": 0, "time": 1}
_SUMS = {"numerator": 2, "denominator": 3, "maximum": 4}


def memory_of(cache: Any, layer_idx: int) -> LayerMemory:
    """The memory of one layer.

    Args:
        cache: A transformers cache, ours or another; ``None`` for a sequence that nobody goes on with.
        layer_idx: Index of the layer.

    Raises:
        ExecutionError: If the cache keeps keys and values where this layer needs a state.
    """
    if cache is None:
        return PlainMemory()
    layer: Any = cache.layers[layer_idx] if layer_idx < len(cache.layers) else None
    if hasattr(layer, "advance"):
        memory: LayerMemory = layer
        return memory
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        return BorrowedMemory(layer)
    held = "nothing" if layer is None else f"a {type(layer).__name__}"
    raise ExecutionError(
        f"layer {layer_idx} is recurrent, and the cache holds {held} for it. "
        "Make the cache from the model's configuration: DynamicCache(config=model.config)."
    )


class BorrowedMemory:
    """A :class:`~tapwb.models.recurrent.memory.LayerMemory` in the tensors of transformers' own cache layer.

    The carried state goes in and out of every pass, several tokens included; transformers' Mamba-1 layers begin such a
    pass from an empty state (5.24).

    Args:
        layer: Of a ``DynamicCache`` or ``StaticCache``.
    """

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    def advance(self, form: RecurrentForm[Any], inputs: TokenInputs) -> Tensor:
        """See :meth:`LayerMemory.advance`; forms of one tensor only."""
        (spec,) = form.state_spec()
        state = {spec.name: self._layer.recurrent_states[0]}
        if state[spec.name] is None:
            first = getattr(inputs, inputs.PER_TOKEN[0])
            state = form.init_state(first.shape[0], first.device)
        outputs, last = (form.step if inputs.n_tokens == 1 else form.chunk)(inputs, state)
        self._layer.update_recurrent_state(last[spec.name])
        return outputs

    def preceding(
        self, name: str, x: Float[Tensor, "batch token channel"], width: int
    ) -> Float[Tensor, "batch width channel"]:
        """See :meth:`LayerMemory.preceding`. transformers keeps one row more, channels first."""
        before = x.new_zeros(x.shape[0], width, x.shape[2])
        if self._layer.has_previous_state[0]:
            before = self._layer.conv_states[0][..., -width:].transpose(1, 2).to(x.dtype, copy=True)
        self._layer.update_conv_state(x.transpose(1, 2), conv_kernel_size=width + 1)
        return before


class StateListMemory:
    """The memory of one layer in the five tensors that transformers' RWKV-4 hands from pass to pass.

    Args:
        state: Shifts of channel mixing and time mixing, numerator, denominator and maximum, each of shape (batch,
            channel, layer); written in place, as transformers does.
        layer_idx: Index of the layer.
    """

    def __init__(self, state: list[Tensor], layer_idx: int) -> None:
        self._state, self._layer_idx = state, layer_idx

    def advance(self, form: RecurrentForm[Any], inputs: TokenInputs) -> Tensor:
        """See :meth:`LayerMemory.advance`."""
        sums = {name: self._state[index][:, :, self._layer_idx] for name, index in _SUMS.items()}
        outputs, last = (form.step if inputs.n_tokens == 1 else form.chunk)(inputs, sums)
        for name, index in _SUMS.items():
            self._state[index][:, :, self._layer_idx] = last[name]
        return outputs

    def preceding(
        self, name: str, x: Float[Tensor, "batch token channel"], width: int
    ) -> Float[Tensor, "batch width channel"]:
        """See :meth:`LayerMemory.preceding`; one row is kept."""
        kept = self._state[_SHIFTS[name]]
        before = kept[:, :, self._layer_idx].unsqueeze(1).to(x.dtype, copy=True)
        with torch.no_grad():
            kept[:, :, self._layer_idx] = x[:, -1]
        return before

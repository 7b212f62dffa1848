"""How much each token writes into the states of a model's recurrent layers.

Measured by the recurrence itself: the state that a token alone would leave. Its norm is the norm of the token's update,
whatever the form: ``dt x B`` in Mamba, ``k v`` in retention, ``beta k v`` under the delta rule. RWKV-4 averages instead
of adding; there it is the token's share of the average.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionLayer,
)

from tapwb.core.errors import UnsupportedModel
from tapwb.models.recurrent.form import RecurrentForm, TokenInputs
from tapwb.models.recurrent.memory import PlainMemory
from tapwb.models.recurrent.rwkv4 import RWKV4Inputs
from tapwb.models.state_layers import state_only_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Tokens whose updates are held at once.
_BLOCK_TOKENS = 16


def write_strength(form: RecurrentForm[Any], inputs: TokenInputs) -> Float[Tensor, "batch token"]:
    """What each token writes, on the scale of the layer.

    Args:
        form: The layer's recurrence.
        inputs: Of one token or more.
    """
    if isinstance(inputs, RWKV4Inputs):
        return _shares(inputs)
    batch = getattr(inputs, inputs.PER_TOKEN[0]).shape[0]
    blocks = []
    for start in range(0, inputs.n_tokens, _BLOCK_TOKENS):
        alone, device = _alone(inputs.tokens(start, start + _BLOCK_TOKENS), batch)
        n_rows = getattr(alone, alone.PER_TOKEN[0]).shape[0]
        _, left = form.step(alone, form.init_state(n_rows, device))
        squares = sum(state.float().flatten(1).square().sum(-1) for state in left.values())
        blocks.append(torch.as_tensor(squares).sqrt().unflatten(0, (batch, -1)))
    return torch.cat(blocks, dim=1)


class StateWrites:
    """What the recurrent layers of one pass were given.

    Attributes:
        by_layer: Write strength of each layer, shape (batch, token), in the order in which the layers ran.
    """

    def __init__(self) -> None:
        self.by_layer: list[Float[Tensor, "batch token"]] = []

    def mean(self) -> Float[Tensor, "batch token"] | None:
        """Mean over the layers, each divided by its own mean over the text; ``None`` if no layer has a state."""
        if not self.by_layer:
            return None
        shares = [x / x.mean(dim=1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny) for x in self.by_layer]
        return torch.stack(shares).mean(0).float().cpu()


@contextmanager
def watching_states(model: "PreTrainedModel") -> Iterator[tuple[Cache, StateWrites]]:
    """A cache for one pass from the beginning of a text that notes what is written.

    Args:
        model: A causal language model whose recurrent layers are ours.

    Raises:
        UnsupportedModel: If they are transformers' own, which hand no inputs over.
    """
    writes = StateWrites()
    recurrent = state_only_layers(model.config.get_text_config())
    layers, watched = [], []
    for index, layer in enumerate(DynamicCache(config=model.config).layers):
        if type(layer) is LinearAttentionLayer or index in recurrent:
            layer = _Watched(writes)
            watched.append(layer)
        elif type(layer) is LinearAttentionAndFullAttentionLayer:
            layer = _WatchedBeside(writes)
            watched.append(layer.memory)
        layers.append(layer)
    try:
        yield _OnePass(layers=layers), writes
        if not all(memory.rows or memory.states for memory in watched):
            raise NotImplementedError("a recurrent layer kept nothing in its memory")
    except NotImplementedError as error:
        raise UnsupportedModel(
            f"the recurrent layers of {type(model).__name__} are transformers' own and do not say what they write. "
            "Nest the model first, or choose another signal."
        ) from error


class _Watched(PlainMemory):
    def __init__(self, writes: StateWrites) -> None:
        super().__init__()
        self._writes = writes

    def advance(self, form: RecurrentForm[Any], inputs: TokenInputs) -> Tensor:
        self._writes.by_layer.append(write_strength(form, inputs).detach())
        return super().advance(form, inputs)


class _WatchedBeside(LinearAttentionAndFullAttentionLayer):  # type: ignore[misc]
    """Of a layer that attends as well."""

    def __init__(self, writes: StateWrites) -> None:
        super().__init__()
        self.memory = memory = _Watched(writes)
        self.advance, self.preceding = memory.advance, memory.preceding
        self.update_conv_state, self.update_recurrent_state = memory.update_conv_state, memory.update_recurrent_state


class _OnePass(Cache):  # type: ignore[misc]
    def get_seq_length(self, layer_idx: int = 0) -> int:
        attends = any(isinstance(layer, CacheLayerMixin) for layer in self.layers)
        return int(super().get_seq_length(layer_idx)) if attends else 0

    def count(self, n_tokens: int) -> None:
        """Models of ours tell how many tokens a pass has."""

    def __getitem__(self, index: int) -> Tensor:
        """Asked for by transformers' RWKV-4, which takes a list of tensors."""
        raise NotImplementedError("the memory of a layer is advanced with preceding() and advance()")


def _alone(inputs: TokenInputs, batch: int) -> tuple[TokenInputs, torch.device]:
    """Every token as a sequence of its own."""
    folded = {}
    for name in inputs.PER_TOKEN:
        tensor: Tensor = getattr(inputs, name)
        folded[name] = tensor.expand(batch, *tensor.shape[1:]).flatten(0, 1).unsqueeze(1)
    return dataclasses.replace(inputs, **folded), folded[inputs.PER_TOKEN[0]].device


def _shares(inputs: RWKV4Inputs) -> Float[Tensor, "batch token"]:
    """Mean over channels of the weight that each token has in the average right behind it."""
    total = torch.full_like(inputs.k[:, 0], -torch.inf)
    shares = []
    for k in inputs.k.unbind(1):
        total = torch.logaddexp(total + inputs.log_decay, k)
        shares.append((k - total).exp().mean(-1))
    return torch.stack(shares, dim=1)

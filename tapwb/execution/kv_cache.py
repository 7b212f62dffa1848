"""A key/value cache whose tokens have their own precision; a ``transformers`` cache.

Its layers are :mod:`tapwb.execution.kv_layer`, and :mod:`tapwb.execution.state.mixers.cache_layer` where a layer keeps
a state instead of keys and values, or beside them. Attention reads dequantized pages, or packed ones inside
:func:`tapwb.execution.kv_attention.reading_pages`; only there an adaptive cache sees which tokens are read. Layers with
a sliding window keep transformers' own sliding cache, as they never hold an old token.
:func:`tapwb.execution.kv_plan.cache_notes` says so to a user.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionLayer,
)

from tapwb.execution.kv_layer import (
    PAGE_TOKENS,
    SINK_TOKENS,
    WINDOW_TOKENS,
    TapCacheLayer,
    TokenBits,
    dense_bytes,
)
from tapwb.execution.kv_received import AdaptiveKv, ReceivedAttention
from tapwb.execution.state.mixers.cache_layer import MakeMemory, StateAndAttentionLayer, StateLayer, plain_memory
from tapwb.models.state_layers import state_only_layers

__all__ = ["PAGE_TOKENS", "SINK_TOKENS", "WINDOW_TOKENS", "TapCache", "TapCacheLayer", "TokenBits", "cache_bytes"]


class TapCache(Cache):
    """A cache for a whole model.

    Args:
        config: Configuration of the model.
        bits: Bits of sealed tokens: one number, or shape (token,) for the first tokens.
        default_bits: Bits of tokens beyond ``bits`` when that is a tensor.
        window_tokens: Recent tokens at 16 bits.
        adaptive: Seal at 8 bits and downgrade by received attention; ``bits`` is then not used.
        memory: Makes the memory of a recurrent layer; at fp32 by default.

    Raises:
        UsageError: If a width is not one of 2, 3, 4 and 8.
    """

    def __init__(
        self,
        config: Any,
        bits: int | Tensor = 8,
        *,
        default_bits: int = 8,
        window_tokens: int = WINDOW_TOKENS,
        adaptive: AdaptiveKv | None = None,
        memory: MakeMemory = plain_memory,
    ) -> None:
        planned = None if isinstance(bits, int) or adaptive else bits
        self.adaptive, self.window_tokens = adaptive, window_tokens
        self.token_bits = TokenBits(8 if adaptive else bits if isinstance(bits, int) else default_bits, planned)
        text_config = config.get_text_config(decoder=True)
        recurrent = state_only_layers(text_config)
        layers = []
        for index, layer in enumerate(DynamicCache(config=config).layers):
            received = ReceivedAttention() if adaptive else None
            options = (self.token_bits, window_tokens, text_config, received)
            if type(layer) is LinearAttentionLayer or index in recurrent:
                layer = StateLayer(memory(index))
            elif type(layer) is LinearAttentionAndFullAttentionLayer:
                layer = StateAndAttentionLayer(memory(index), *options)
            elif type(layer) is DynamicLayer:
                layer = TapCacheLayer(*options)
            layers.append(layer)
        super().__init__(layers=layers)
        self._settled_pages = 0

    @property
    def own_layers(self) -> list[TapCacheLayer]:
        """The layers whose tokens have their own precision."""
        return [layer for layer in self.layers if isinstance(layer, TapCacheLayer)]

    @property
    def state_layers(self) -> list[StateLayer]:
        """The layers that keep a state."""
        return [layer for layer in self.layers if isinstance(layer, StateLayer)]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens that were read, also where no layer attends."""
        states = self.state_layers
        if not states or states[0].is_borrowed or any(isinstance(layer, CacheLayerMixin) for layer in self.layers):
            return int(super().get_seq_length(layer_idx))
        return states[0].n_tokens

    def count(self, n_tokens: int) -> None:
        """Models of ours tell how many tokens a pass has; here the layers count them."""

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the newest tokens in all layers, or in none.

        Args:
            tokens_to_remove: How many, negative by transformers' convention.

        Raises:
            ExecutionError: If a layer cannot be taken back so far.
        """
        for layer in self.state_layers:
            layer.check_crop(abs(tokens_to_remove))
        super().crop(tokens_to_remove)

    def snapshot(self) -> object:
        """A mark to go back to, however far: states are kept as they are, keys and values only counted."""
        return self.get_seq_length(), [layer.snapshot() for layer in self.state_layers]

    def restore(self, mark: Any) -> None:
        """Go back to a :meth:`snapshot` of this cache.

        Raises:
            ExecutionError: If tokens were sealed since.
        """
        length, states = mark
        n_newer = self.get_seq_length() - length
        for layer in self.layers:
            if isinstance(layer, TapCacheLayer):
                TapCacheLayer.crop(layer, -n_newer)
            elif isinstance(layer, CacheLayerMixin):
                layer.crop(-n_newer)
        for layer, own in zip(self.state_layers, states, strict=True):
            layer.restore(own)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append new tokens to one layer; see :meth:`TapCacheLayer.update`."""
        own = self.own_layers
        if self.adaptive is not None and own and self.layers[layer_idx] is own[0]:
            self._settle(self.adaptive, own)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._settled_pages = 0

    def nbytes(self) -> int:
        """Bytes of all tensors in all layers."""
        return cache_bytes(self)

    def _settle(self, adaptive: AdaptiveKv, layers: list[TapCacheLayer]) -> None:
        """Give pages that have waited long enough their final bits, one page of all layers at a time."""
        while len(layers[0].pages) - self._settled_pages > adaptive.waiting_pages:
            start = SINK_TOKENS + PAGE_TOKENS * self._settled_pages
            stop = start + PAGE_TOKENS
            saliency = torch.stack([layer.received.saliency(start, stop) for layer in layers if layer.received])
            for layer, *bits in zip(layers, *adaptive.key_and_value_bits(saliency), strict=True):
                layer.pages[self._settled_pages].downgrade(*bits)
                if layer.received is not None:
                    layer.received.forget_before(stop)
            self._settled_pages += 1


def cache_bytes(cache: Cache) -> int:
    """Bytes of the tensors a transformers cache holds, ours or another, counted on the tensors."""
    total = 0
    for layer in cache.layers:
        if isinstance(layer, TapCacheLayer):
            total += layer.nbytes()
        if isinstance(layer, StateLayer):
            total += sum(dense_bytes(tensor) for tensor in layer.tensors())
        if isinstance(layer, TapCacheLayer | StateLayer):
            continue
        for name in ("keys", "values", "conv_states", "recurrent_states"):
            held = getattr(layer, name, None)
            tensors = held.values() if isinstance(held, dict) else held if isinstance(held, list) else [held]
            total += sum(dense_bytes(t) for t in tensors if isinstance(t, Tensor))
    return total

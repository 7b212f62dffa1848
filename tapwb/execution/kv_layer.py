"""Keys and values of one attention layer whose old tokens have their own precision.

Oldest token first: the first four tokens (attention sinks) at 16 bits, then sealed pages of 64 tokens at 8, 4, 3 or 2
bits, then recent tokens at 16 bits. When these have grown by a page, the oldest 64 are sealed.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from tapwb.core.errors import ExecutionError, UsageError
from tapwb.execution.kv_attention import PAGED, TILE_PAGES, CacheView
from tapwb.execution.kv_page import KV_LEVELS, KvPage, dequantize
from tapwb.execution.kv_received import ReceivedAttention

PAGE_TOKENS = 64
SINK_TOKENS = 4
WINDOW_TOKENS = 128
NEVER_SEALED = 1 << 62
"""A window that no text fills: every token stays at 16 bits."""


class TokenBits:
    """Bits each cached token is sealed at; shared by all layers of one cache.

    Args:
        default: Bits of tokens nobody has scored.
        planned: Bits of the first tokens, in order.
    """

    def __init__(self, default: int, planned: Tensor | None = None) -> None:
        if default not in KV_LEVELS:
            raise UsageError(f"a cache of {default} bits is not supported. Use 16 or {', '.join(map(str, KV_LEVELS))}.")
        self.default = default
        self.planned = torch.zeros(0, dtype=torch.long) if planned is None else planned.to(torch.long).flatten().cpu()
        wrong = sorted(set(self.planned.tolist()) - set(KV_LEVELS))
        if wrong:
            known = ", ".join(map(str, KV_LEVELS))
            raise UsageError(f"a cached token of {wrong[0]} bits is not supported. Use {known}.")

    def of(self, start: int, stop: int) -> Tensor:
        """Bits of the tokens at positions ``start`` to ``stop``, shape (stop - start,)."""
        out = torch.full((stop - start,), self.default, dtype=torch.long)
        known = self.planned[start:stop]
        out[: len(known)] = known
        return out


class TapCacheLayer(CacheLayerMixin):
    """Keys and values of one attention layer.

    Args:
        token_bits: Where the bits of a token come from.
        window_tokens: Recent tokens that stay at 16 bits.
        config: Configuration of the model; tells whether attention reads packed pages.
        received: Where the attention that tokens received is counted, in an adaptive cache.
    """

    is_sliding = False
    is_croppable = True

    def __init__(
        self,
        token_bits: TokenBits,
        window_tokens: int = WINDOW_TOKENS,
        config: Any = None,
        received: ReceivedAttention | None = None,
    ) -> None:
        super().__init__()
        self.token_bits, self.window_tokens = token_bits, window_tokens
        self.received = received
        self._config = config
        self._receipt: list[bool] | None = None
        self.pages: list[KvPage] = []
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self._sink_keys: Tensor | None = None
        self._sink_values: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take dtype, device and shape from the first keys and values."""
        # A model that computes in fp32 still caches 16 bits: keys and values lie far inside the range of fp16.
        self.dtype = torch.float16 if key_states.dtype == torch.float32 else key_states.dtype
        self.device = key_states.device
        self.keys, self.values = key_states[:, :, :0].to(self.dtype), value_states[:, :, :0].to(self.dtype)
        self._sink_keys, self._sink_values = self.keys, self.values
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append new tokens and return all keys and values.

        Args:
            key_states: Shape (batch, head, new token, channel).
            value_states: Shape (batch, head, new token, channel).
            *args: Ignored; other caches take more.
            **kwargs: Ignored likewise.

        Returns:
            Keys and values of all tokens, shape (batch, head, token, channel), in the dtype of the new ones. The new
            tokens are exact; a token is sealed only after the pass that could still see it at 16 bits. Where attention
            reads packed pages, only the new tokens, with a view of the others.

        Raises:
            ExecutionError: If bits follow received attention and nobody looks at it, or if the last pass of packed
                pages did not read them.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        old_keys, old_values = self._recent(self.keys), self._recent(self.values)
        if getattr(self._config, "_attn_implementation", None) == PAGED:
            sinks = self._recent(self._sink_keys), self._recent(self._sink_values)
            self._check_receipt()
            view = CacheView(sinks, tuple(self.pages), (old_keys, old_values), self.received)
            self._receipt = view.receipt
            self._append(key_states, value_states)
            return view.attach(key_states), value_states
        if self.received is not None:
            raise ExecutionError(
                "a cache that follows received attention must see it. Run the model inside attention_of(model, cache), "
                "or use --kv 8 or 4."
            )
        tiles = range(0, len(self.pages), TILE_PAGES)
        read = [dequantize(self.pages[start : start + TILE_PAGES]) for start in tiles]
        past_keys = torch.cat([self._recent(self._sink_keys), *(k for k, _ in read), old_keys], dim=2)
        past_values = torch.cat([self._recent(self._sink_values), *(v for _, v in read), old_values], dim=2)
        self._append(key_states, value_states)
        keys = torch.cat([past_keys.to(key_states.dtype), key_states], dim=2)
        return keys, torch.cat([past_values.to(value_states.dtype), value_states], dim=2)

    def get_seq_length(self) -> int:
        """Number of cached tokens."""
        if not self.is_initialized:
            return 0
        sealed = sum(page.shape[2] for page in self.pages)
        return self._recent(self._sink_keys).shape[2] + sealed + self._recent(self.keys).shape[2]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of what attention will see."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the newest tokens (speculation does this).

        Args:
            tokens_to_remove: How many, negative by transformers' convention.

        Raises:
            ExecutionError: If that would reach into sealed pages.
        """
        n = abs(tokens_to_remove)
        if n == 0 or not self.is_initialized:
            return
        if not self.pages:
            self._unseal_sinks()
        recent = self._recent(self.keys)
        if n > recent.shape[2]:
            raise ExecutionError(
                f"cannot forget {n} tokens: only the newest {recent.shape[2]} are not sealed yet. "
                "Forget fewer, or use a cache of 16 bits."
            )
        self.keys, self.values = recent[:, :, :-n], self._recent(self.values)[:, :, :-n]
        if self.received is not None:
            self.received.crop(self.get_seq_length())

    def reset(self) -> None:
        """Forget everything."""
        self.pages = []
        self.keys = self.values = None
        self._sink_keys = self._sink_values = self._receipt = None
        self.received = None if self.received is None else ReceivedAttention()
        self.is_initialized = False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep these batch rows, in this order."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these batch rows, in this order."""
        if not self.is_initialized:
            return
        self.keys, self.values = self._recent(self.keys)[indices], self._recent(self.values)[indices]
        self._sink_keys = self._recent(self._sink_keys)[indices]
        self._sink_values = self._recent(self._sink_values)[indices]
        for page in self.pages:
            page.select_batch(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every batch row."""
        if self.is_initialized:
            batch = self._recent(self.keys).shape[0]
            self.batch_select_indices(torch.arange(batch).repeat_interleave(repeats))

    @property
    def keeps_all(self) -> bool:
        """Whether every token stays at 16 bits, however long the text becomes."""
        return self.window_tokens >= NEVER_SEALED

    def unsealed(self) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens that are at 16 bits, oldest first, shape (batch, head, token, channel)."""
        keys = torch.cat([self._recent(self._sink_keys), self._recent(self.keys)], dim=2)
        return keys, torch.cat([self._recent(self._sink_values), self._recent(self.values)], dim=2)

    def downgrade(self) -> None:
        """Bring sealed tokens down to the bits that ``token_bits`` now asks for."""
        position = SINK_TOKENS
        for page in self.pages:
            n = page.shape[2]
            page.downgrade(self.token_bits.of(position, position + n))
            position += n

    def nbytes(self) -> int:
        """Bytes of all tensors this layer holds."""
        if not self.is_initialized:
            return 0
        dense = (self.keys, self.values, self._sink_keys, self._sink_values)
        counted = 0 if self.received is None else self.received.nbytes()
        return counted + sum(dense_bytes(self._recent(t)) for t in dense) + sum(page.nbytes() for page in self.pages)

    def _unseal_sinks(self) -> None:
        """Put the sinks back in front of the recent tokens; the next update takes them out again."""
        sink_keys, sink_values = self._recent(self._sink_keys), self._recent(self._sink_values)
        self.keys = torch.cat([sink_keys, self._recent(self.keys)], dim=2)
        self.values = torch.cat([sink_values, self._recent(self.values)], dim=2)
        self._sink_keys, self._sink_values = sink_keys[:, :, :0], sink_values[:, :, :0]

    def _check_receipt(self) -> None:
        """A model that changes keys between cache and attention loses the view: the past would go missing unnoticed."""
        if self._receipt is not None and not self._receipt:
            raise ExecutionError(
                "this model's attention did not read the pages that the cache handed over. Use --kv 8 or 4 without "
                "reading_pages."
            )

    def _append(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys = torch.cat([self._recent(self.keys), key_states.to(self.dtype)], dim=2)
        self.values = torch.cat([self._recent(self.values), value_states.to(self.dtype)], dim=2)
        self._seal()

    def _seal(self) -> None:
        keys, values = self._recent(self.keys), self._recent(self.values)
        if self._recent(self._sink_keys).shape[2] == 0 and keys.shape[2] >= SINK_TOKENS:
            # Clones: a view would keep the whole prefix alive.
            self._sink_keys, self._sink_values = keys[:, :, :SINK_TOKENS].clone(), values[:, :, :SINK_TOKENS].clone()
            keys, values = keys[:, :, SINK_TOKENS:], values[:, :, SINK_TOKENS:]
        sealed_before = len(self.pages)
        while keys.shape[2] >= self.window_tokens + PAGE_TOKENS:
            start = SINK_TOKENS + sum(page.shape[2] for page in self.pages)
            bits = self.token_bits.of(start, start + PAGE_TOKENS)
            self.pages.append(KvPage(keys[:, :, :PAGE_TOKENS], values[:, :, :PAGE_TOKENS], bits))
            keys, values = keys[:, :, PAGE_TOKENS:], values[:, :, PAGE_TOKENS:]
        if len(self.pages) > sealed_before:
            keys, values = keys.clone(), values.clone()
        self.keys, self.values = keys, values

    @staticmethod
    def _recent(tensor: Tensor | None) -> Tensor:
        if tensor is None:
            raise ExecutionError("the cache is empty. Run a prompt through the model first.")
        return tensor


def dense_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor, whatever it is a view of."""
    return tensor.numel() * tensor.element_size()

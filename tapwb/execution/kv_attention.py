"""Attention that reads the cache page by page, from its packed codes, and sees on the way which tokens are read.

Inside :func:`reading_pages` a model hands its new keys and values here together with a view of the cache. Queries are
rotated once; a few pages at a time are unpacked in rotated coordinates, and a running softmax (Milakov and Gimelshein
2018, arXiv:1805.02867) joins them with the 16-bit parts. The whole cache is never unpacked at once. This is the
reference for a fused kernel; :meth:`KvPage.dequantize` and plain attention are the reference for it.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tapwb.core.errors import ExecutionError
from tapwb.execution.kv_codes import rotation
from tapwb.execution.kv_page import KvPage, read_rotated
from tapwb.execution.kv_received import ReceivedAttention, probe_rows

#: The name under which transformers knows this attention.
PAGED = "tapwb_paged"
#: Pages unpacked, and tokens scored, at once.
TILE_PAGES = 8
TILE_TOKENS = 512
_VIEW = "tapwb_view"


@dataclass(slots=True)
class CacheView:
    """What one pass may read of one layer.

    Attributes:
        sinks: Keys and values of the first tokens, 16 bits.
        pages: Sealed pages, oldest first.
        recent: Keys and values after them, 16 bits, without those of this pass.
        received: Where received attention is counted, if it is.
        receipt: Gets an entry once attention has read the view.
    """

    sinks: tuple[Tensor, Tensor]
    pages: tuple[KvPage, ...]
    recent: tuple[Tensor, Tensor]
    received: ReceivedAttention | None
    receipt: list[bool] = field(default_factory=list)

    def attach(self, keys: Tensor) -> Tensor:
        """The new keys of a pass, carrying this view to the attention that follows."""
        carrier = keys.view_as(keys)
        setattr(carrier, _VIEW, self)
        return carrier


@contextlib.contextmanager
def reading_pages(model: Any) -> Iterator[None]:
    """Let a model attend to packed pages, and its cache see which tokens are read, while the body runs.

    Args:
        model: A transformers model.

    Raises:
        ExecutionError: If its attention cannot be replaced.
    """
    before, name = model.config._attn_implementation, type(model).__name__
    try:
        model.set_attn_implementation(PAGED)
    except ValueError as error:
        raise ExecutionError(f"{name} keeps its own attention ({error}). Use a cache of uniform bits.") from error
    if model.config._attn_implementation != PAGED:
        raise ExecutionError(f"{name} keeps its own attention. Use a cache of uniform bits: --kv 8 or 4.")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def paged_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer, in the form that transformers calls.

    Args:
        module: The attention module.
        query: Shape (batch, query head, query, channel).
        key: New keys, shape (batch, head, query, channel), carrying a :class:`CacheView`; without one plain attention
            runs.
        value: New values, likewise.
        attention_mask: True or 0 where a query sees a token, broadcast to (batch, head, query, token); causal if None.
        scaling: Factor of scores; ``channel ** -0.5`` by default.
        softcap: Cap of scores, as in Gemma 2.
        **kwargs: Passed on to plain attention.

    Returns:
        Shape (batch, query, query head, channel), and no weights.

    Raises:
        ExecutionError: If the model adds learned sinks to the softmax.
    """
    view = getattr(key, _VIEW, None)
    if view is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if kwargs.get("s_aux") is not None:
        raise ExecutionError("learned attention sinks cannot be read from packed pages. Use --kv 16.")
    view.receipt.append(True)
    _, n_heads, n_queries, channel = query.shape
    groups = n_heads // key.shape[1]
    scale = channel**-0.5 if scaling is None else scaling
    total = view.sinks[0].shape[2] + sum(page.shape[2] for page in view.pages) + view.recent[0].shape[2] + n_queries
    bias = _as_bias(attention_mask, n_queries, total, query.device)
    state = _Softmax((query.float() * scale).unflatten(1, (-1, groups)), bias, softcap)
    state.plain(*view.sinks)
    for start in range(0, len(view.pages), TILE_PAGES):
        state.rotated(*read_rotated(view.pages[start : start + TILE_PAGES]))
    state.plain(*view.recent)
    state.plain(key, value)
    if view.received is not None:
        view.received.add(*state.probed())
    return state.output().flatten(1, 2).transpose(1, 2).to(query.dtype), None


class _Softmax:
    """A softmax over segments of keys that are seen one after the other.

    Args:
        query: Scaled queries, shape (batch, head, group, query, channel).
        bias: What is added to scores, shape (batch or 1, 1, query, token).
        softcap: Cap of scores.
    """

    def __init__(self, query: Tensor, bias: Tensor, softcap: float | None) -> None:
        self._groups, self._bias, self._softcap = query.shape[2], bias, softcap
        self._query = query.flatten(2, 3)  # a key is read by all queries of its group at once
        self._rotated_query = self._query @ rotation(query.shape[-1], query.device)
        self._probes = probe_rows(query.shape[3], query.device)
        self._probe_scores: list[Tensor] = []
        self._top = torch.full((*self._query.shape[:3], 1), -torch.inf, device=query.device)
        self._mass = torch.zeros_like(self._top)
        self._sums: dict[bool, Tensor] = {}
        self._column = 0
        #: Leading tokens that every query sees: for most of a long cache there is nothing to add.
        self._all_visible = int((bias == 0).all(dim=2).all(dim=0).flatten().long().cumprod(0).sum())

    def plain(self, keys: Tensor, values: Tensor) -> None:
        """See keys and values as they are, shape (batch, head, token, channel)."""
        for start in range(0, keys.shape[2], TILE_TOKENS):
            tile = slice(start, start + TILE_TOKENS)
            self._see(self._query, keys[:, :, tile].float(), values[:, :, tile].float(), rotated=False)

    def rotated(self, keys: Tensor, values: Tensor) -> None:
        """See keys and values in rotated coordinates."""
        self._see(self._rotated_query, keys, values, rotated=True)

    def _see(self, query: Tensor, keys: Tensor, values: Tensor, *, rotated: bool) -> None:
        start, self._column = self._column, self._column + keys.shape[2]
        scores = query @ keys.transpose(-1, -2)
        if self._softcap is not None:
            scores = torch.tanh(scores / self._softcap) * self._softcap
        by_group = scores.unflatten(2, (self._groups, -1))
        if self._column > self._all_visible:
            by_group += self._bias[..., start : self._column].unsqueeze(2)
        self._probe_scores.append(by_group[:, :, :, self._probes])
        top = torch.maximum(self._top, scores.amax(-1, keepdim=True))
        shift = top.clamp(min=torch.finfo(torch.float32).min)  # a row that sees nothing yet stays zero
        weights, fade = scores.sub_(shift).exp_(), torch.exp(self._top - shift)
        self._mass = self._mass * fade + weights.sum(-1, keepdim=True)
        self._sums = {kind: kept * fade for kind, kept in self._sums.items()}
        added = weights @ values
        self._sums[rotated] = self._sums[rotated] + added if rotated in self._sums else added
        self._top = top

    def output(self) -> Tensor:
        """Shape (batch, head, group, query, channel)."""
        total = self._sums[False]  # the tokens of the pass itself are always plain
        if True in self._sums:
            total = total + self._sums[True] @ rotation(total.shape[-1], total.device)
        return (total / self._mass.clamp(min=torch.finfo(torch.float32).tiny)).unflatten(2, (self._groups, -1))

    def probed(self) -> tuple[Tensor, Tensor]:
        """Squared probability from the probes and how many could see each token, shapes (token,).

        Squares are averaged over the query heads of a group; of heads and batch rows the most attentive counts.
        """
        probability = torch.cat(self._probe_scores, -1).softmax(-1).nan_to_num()  # rows of padding see nothing
        squares = probability.square().mean(2).sum(2).amax((0, 1))
        seen = (self._bias[:, :, self._probes] == 0).sum(2).amax((0, 1))
        return squares, seen.float()


def _as_bias(mask: Tensor | None, n_queries: int, n_tokens: int, device: torch.device) -> Tensor:
    """What is added to scores, fp32, shape (batch or 1, 1, query, token)."""
    if mask is None:
        mask = torch.ones(1, 1, n_queries, n_tokens, dtype=torch.bool, device=device).tril(n_tokens - n_queries)
    if mask.dtype != torch.bool:
        return mask[..., -n_queries:, :n_tokens].float()
    bias = torch.zeros(mask.shape, device=device)
    return bias.masked_fill_(~mask, -torch.inf)


AttentionInterface.register(PAGED, paged_attention)
AttentionMaskInterface.register(PAGED, sdpa_mask)
